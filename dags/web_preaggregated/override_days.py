"""The days whose sessions get other persons because overrides were written, recorded in `event_day_changes`.

Overrides are grouped by team and by the hour in which they were written. A group that changed since it was looked up,
by a new override or by one that was replaced or removed, is looked up again. Its hash is part of the identity of the
change, for each day only of the overrides with events on that day: only a day with a changed override is stale.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Sequence

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.event_days import NO_DAY, ChangeReason, record_closed

TIMEOUT_SECONDS = 3600.0
# Of one statement, and so of its set of visitors.
MAX_GROUPS_PER_PASS = 1000

OVERRIDE = "cityHash64(distinct_id, person_id, version, is_deleted)"
GROUP = "concat('overrides ', toString(team_id), ' ', toString(toStartOfHour(_timestamp)))"
UNRECORDED_GROUPS = f"""
SELECT override_group, concat(override_group, ' ', hex(hash)) AS change_id
FROM (
    SELECT {GROUP} AS override_group, groupBitXor({OVERRIDE}) AS hash
    FROM person_distinct_id_overrides FINAL GROUP BY override_group
)
WHERE change_id NOT IN (SELECT change_id FROM event_day_changes WHERE day = toDate('1970-01-01'))
ORDER BY override_group
"""  # noqa: S608 - constants of this module
DAYS_OF_GROUPS = f"""
SELECT day, concat(override_group, ' ', hex(groupBitXor(hash))) AS change_id
FROM (
    SELECT DISTINCT toDate(timestamp) AS day, team_id, distinct_id FROM events
    PREWHERE distinct_id IN (SELECT distinct_id FROM person_distinct_id_overrides WHERE {GROUP} IN %(groups)s)
    WHERE (team_id, distinct_id) IN (
        SELECT team_id, distinct_id FROM person_distinct_id_overrides WHERE {GROUP} IN %(groups)s
    )
) AS days
INNER JOIN (
    SELECT team_id, distinct_id, {GROUP} AS override_group, {OVERRIDE} AS hash
    FROM person_distinct_id_overrides FINAL WHERE override_group IN %(groups)s
) AS overrides
ON days.team_id = overrides.team_id AND days.distinct_id = overrides.distinct_id
GROUP BY day, override_group
"""  # noqa: S608 - constants of this module


def unrecorded_groups(cluster: ClickhouseCluster) -> list[tuple[str, str]]:
    """Return the groups of overrides that changed since they were looked up, each with its present identity."""
    return [(group, change_id) for group, change_id in cluster.any_host(Query(UNRECORDED_GROUPS)).result()]


def record_override_days(cluster: ClickhouseCluster, run_id: str) -> list[dt.date]:
    """Record the days with events of overrides that are not recorded yet; return them. Safe to repeat at any time."""
    days: set[dt.date] = set()
    groups = unrecorded_groups(cluster)
    for start in range(0, len(groups), MAX_GROUPS_PER_PASS):
        part = groups[start : start + MAX_GROUPS_PER_PASS]
        days |= _record_days(cluster, [group for group, _ in part], run_id)
        # Last, so that a run that dies before looks them up again.
        for _, change_id in part:
            record_closed(cluster, [NO_DAY], change_id, ChangeReason.OVERRIDES, run_id)
    return sorted(days)


def _record_days(cluster: ClickhouseCluster, groups: Sequence[str], run_id: str) -> set[dt.date]:
    query = Query(DAYS_OF_GROUPS, {"groups": tuple(groups)}, {"max_query_size": 16 * 1024**2})
    found = cluster.map_write_hosts("event_day_changes", query, timeout_seconds=TIMEOUT_SECONDS).result().values()
    by_change: dict[str, set[dt.date]] = defaultdict(set)
    for rows in found:
        for day, change_id in rows:
            by_change[change_id].add(day)
    for change_id, days in by_change.items():
        record_closed(cluster, days, change_id, ChangeReason.OVERRIDES, run_id)
    return {day for days in by_change.values() for day in days}
