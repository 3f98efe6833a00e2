"""Recompute the days of the web tables and of the digest that lost events. How is in the pipelines of both."""

import datetime as dt
from collections.abc import Collection

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.daily_digest.digest import write_digests
from dags.web_preaggregated.aggregate import pre_aggregate
from dags.web_preaggregated.statements import ONE_DAY
from dags.web_preaggregated.teams import selected_teams

# As in a run of the web tables by default: the memory of a pass grows with its days.
MAX_DAYS_PER_PASS = 14

DIGEST_DAYS_STATEMENT = "SELECT DISTINCT day FROM analytics_digest_daily WHERE day IN %(days)s"
COMPUTED_DAYS_STATEMENT = """
SELECT day FROM web_session_days WHERE day IN %(days)s UNION DISTINCT
SELECT toDate(parseDateTimeBestEffort(partition)) FROM system.parts
WHERE database = currentDatabase() AND table = 'web_sessions' AND active
"""


def recompute_web_tables(cluster: ClickhouseCluster, days: Collection[dt.date], run_id: str) -> list[dt.date]:
    """Recompute the days (UTC) of `web_sessions` that depend on events of these days; return them.

    That includes both neighbors: a session may have started the day before, and what is left of a session may start
    the day after. Days that were never computed are left to the schedule.
    """
    affected = {day + n * ONE_DAY for day in days for n in (-1, 0, 1)}
    teams = selected_teams(cluster)
    computed = _computed_days(cluster, affected)
    for start in range(0, len(computed), MAX_DAYS_PER_PASS):
        pre_aggregate(cluster, computed[start : start + MAX_DAYS_PER_PASS], run_id=run_id, team_ids=teams)
    return computed


def recompute_digests(cluster: ClickhouseCluster, days: Collection[dt.date], run_id: str) -> list[dt.date]:
    """Recompute the digests of these days and their neighbors, after the web tables; return the days that have one."""
    affected = {day + n * ONE_DAY for day in days for n in (-1, 0, 1)}
    query = Query(DIGEST_DAYS_STATEMENT, {"days": tuple(sorted(affected))})
    stored = sorted(day for (day,) in cluster.any_host(query).result()) if affected else []
    if stored:
        write_digests(cluster, stored, run_id)
    return stored


def _computed_days(cluster: ClickhouseCluster, days: Collection[dt.date]) -> list[dt.date]:
    """Return those of the days that any host has computed, also if a run died before it recorded them."""
    if not days:
        return []
    answers = cluster.map_all_hosts(Query(COMPUTED_DAYS_STATEMENT, {"days": tuple(sorted(days))})).result()
    return sorted({day for rows in answers.values() for (day,) in rows if day in days})
