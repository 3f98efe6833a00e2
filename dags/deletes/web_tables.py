"""Recompute the days of the web tables that lost events. How a day is computed is in `dags/web_preaggregated/`."""

import datetime as dt
from collections.abc import Collection

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.web_preaggregated.aggregate import pre_aggregate
from dags.web_preaggregated.statements import DAILY, HOURLY, ONE_DAY, Grain
from dags.web_preaggregated.teams import selected_teams

# As in a run of the web tables by default: the memory of a pass grows with its days.
MAX_DAYS_PER_PASS = 14

COMPUTED_RANGE_STATEMENT = """
SELECT min(partition), max(partition) FROM system.parts
WHERE database = currentDatabase() AND table = %(table)s AND active HAVING count() > 0
"""


def recompute_web_tables(cluster: ClickhouseCluster, days: Collection[dt.date], run_id: str) -> list[dt.date]:
    """Recompute the days (UTC) of the web tables that depend on events of these days; return the daily ones.

    That includes both neighbors: a session may have started the day before, and what is left of a session may start
    the day after. Days that were never computed are left to the schedule.
    """
    affected = {day + n * ONE_DAY for day in days for n in (-1, 0, 1)}
    teams = selected_teams(cluster)
    for grain in (HOURLY, DAILY):
        computed = _computed_days(cluster, grain, affected)
        for start in range(0, len(computed), MAX_DAYS_PER_PASS):
            pre_aggregate(cluster, grain, computed[start : start + MAX_DAYS_PER_PASS], run_id=run_id, team_ids=teams)
    return computed


def _computed_days(cluster: ClickhouseCluster, grain: Grain, days: Collection[dt.date]) -> list[dt.date]:
    bounds: list[str] = []
    for table in grain.tables:
        answers = cluster.map_all_hosts(Query(COMPUTED_RANGE_STATEMENT, {"table": table.name})).result()
        bounds += [partition for rows in answers.values() for row in rows for partition in row]
    if not bounds:
        return []
    first, last = (
        dt.datetime.strptime(text, "%Y%m%d").replace(tzinfo=dt.UTC).date() for text in (min(bounds), max(bounds))
    )
    return sorted(day for day in days if first <= day <= last)
