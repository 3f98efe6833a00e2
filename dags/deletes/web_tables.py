"""Computes again what was computed from events that are gone: days of the web tables.

Belongs here: which days that is. Not here: how a day is computed (`dags/web_preaggregated/`).
"""

import datetime as dt
from collections.abc import Collection

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.web_preaggregated.aggregate import pre_aggregate
from dags.web_preaggregated.statements import DAILY, HOURLY, ONE_DAY, Grain
from dags.web_preaggregated.teams import selected_teams

# As many as a run of the web tables takes by default: the memory of one pass grows with its days.
DAYS_PER_PASS = 14

COMPUTED_STATEMENT = """
SELECT min(partition), max(partition) FROM system.parts
WHERE database = currentDatabase() AND table = %(table)s AND active HAVING count() > 0
"""


def compute_web_tables_again(cluster: ClickhouseCluster, days: Collection[dt.date], run_id: str) -> list[dt.date]:
    """Compute the days (UTC) of the web tables that events of these days had a part in; return the daily ones.

    A visit may have begun the day before, and what is left of one may begin the day after. Days that were never
    computed are left to the schedule.
    """
    affected = {day + n * ONE_DAY for day in days for n in (-1, 0, 1)}
    teams = selected_teams(cluster)
    for grain in (HOURLY, DAILY):
        computed = _among_computed(cluster, grain, affected)
        for start in range(0, len(computed), DAYS_PER_PASS):
            pre_aggregate(cluster, grain, computed[start : start + DAYS_PER_PASS], run_id=run_id, team_ids=teams)
    return computed


def _among_computed(cluster: ClickhouseCluster, grain: Grain, days: Collection[dt.date]) -> list[dt.date]:
    bounds: list[str] = []
    for table in grain.tables:
        answers = cluster.map_all_hosts(Query(COMPUTED_STATEMENT, {"table": table.name})).result()
        bounds += [partition for rows in answers.values() for row in rows for partition in row]
    if not bounds:
        return []
    first, last = (
        dt.datetime.strptime(text, "%Y%m%d").replace(tzinfo=dt.UTC).date() for text in (min(bounds), max(bounds))
    )
    return sorted(day for day in days if first <= day <= last)
