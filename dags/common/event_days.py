"""The days (UTC) whose events change in place, in the table `event_day_changes`: squashes, deletions, new overrides.

What objects bring is in the manifest `ingested_objects`. Both together say whether a day changed after it was computed.
"""

import datetime as dt
from collections.abc import Collection, Iterable
from enum import StrEnum

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert, Query
from dags.common.clickhouse.tables import EVENT_DAY_CHANGES

COLUMNS = ("day", "change_id", "state", "reason", "run_id", "version")

# The day of a row about no day: a group of overrides that was looked up.
NO_DAY = dt.date(1970, 1, 1)

LEFT_OPEN_STATEMENT = """
SELECT day, change_id FROM event_day_changes FINAL
WHERE state = 'open' AND reason = %(reason)s AND change_id != %(own)s
"""
DAYS_STATEMENT = "SELECT DISTINCT day FROM event_day_changes WHERE change_id = %(change_id)s ORDER BY day"


class ChangeReason(StrEnum):
    """Why events of a day changed: the value is that of the column `reason`."""

    SQUASH = "squash"
    DELETE = "delete"
    OVERRIDES = "overrides"


class ChangeState(StrEnum):
    """The state of a change: the value is that of the column `state`."""

    OPEN = "open"
    CLOSED = "closed"


# A closed row replaces an open one whenever it was written.
VERSIONS = {ChangeState.OPEN: 1, ChangeState.CLOSED: 2}


def record_open(
    cluster: ClickhouseCluster, days: Collection[dt.date], change_id: str, reason: ChangeReason, run_id: str
) -> None:
    """Record days whose events are about to change. Call it before the first effect; it may be repeated."""
    _record(cluster, [(day, change_id) for day in days], ChangeState.OPEN, reason, run_id)


def record_closed(
    cluster: ClickhouseCluster, days: Collection[dt.date], change_id: str, reason: ChangeReason, run_id: str
) -> None:
    """Record days whose events have changed. Call it after the last effect; it may be repeated."""
    _record(cluster, [(day, change_id) for day in days], ChangeState.CLOSED, reason, run_id)


def days_of_change(cluster: ClickhouseCluster, change_id: str) -> list[dt.date]:
    """Return the days that were recorded for a change, in order."""
    query = Query(DAYS_STATEMENT, {"change_id": change_id})
    return sorted({day for rows in cluster.map_all_hosts(query).result().values() for (day,) in rows})


def close_leftovers(cluster: ClickhouseCluster, reason: ChangeReason, run_id: str, own: str = "") -> list[dt.date]:
    """Close the changes of dead runs, except the caller's own; return their days.

    Call it when no run of the kind can be in progress: after the lock was taken and the mutations of dead runs ended.
    """
    query = Query(LEFT_OPEN_STATEMENT, {"reason": reason.value, "own": own})
    left = {(day, change_id) for rows in cluster.map_all_hosts(query).result().values() for day, change_id in rows}
    _record(cluster, sorted(left), ChangeState.CLOSED, reason, run_id)
    return sorted({day for day, _ in left})


def _record(
    cluster: ClickhouseCluster,
    changes: Iterable[tuple[dt.date, str]],
    state: ChangeState,
    reason: ChangeReason,
    run_id: str,
) -> None:
    rows = [
        (day, change_id, state.value, reason.value, run_id, VERSIONS[state]) for day, change_id in sorted(set(changes))
    ]
    if rows:
        # Sent twice, a row is the same row.
        insert = Insert(EVENT_DAY_CHANGES.name, COLUMNS, rows)
        cluster.map_write_hosts(EVENT_DAY_CHANGES.name, insert, retryable=True).result()
