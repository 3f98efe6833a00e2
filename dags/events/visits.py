"""Visits: sessions of events whose source has none.

A visit ends after 30 minutes without an event of its visitor, and after 24 hours at the latest. It continues across
objects, whatever the order in which they are loaded, with one exception: two visits that are already loaded stay
separate when a later object fills the gap between them. The id of a visit is a UUIDv7 that holds the time of its first
event, and a hash of that time, the team and the visitor, which distinguishes it from the ids of sources.
"""

from collections.abc import Mapping

from dags.common.clickhouse.query import quoted
from dags.common.clickhouse.tables import EVENTS
from dags.events.staging_table import EVENT_NAMES, IS_EVENT

VISIT_TIMEOUT_MINUTES = 30
MAX_VISIT_HOURS = 24

# Events that are staged without a session: their parameters are those of `with_visits`.
WITHOUT_SESSION = f"{IS_EVENT} AND chunk < %(first_log_chunk)s AND session_id = '' AND object IN %(objects)s"


def events_statement(staging: str) -> str:
    """Return a SELECT of the staged product events that have no session, with their visits, as `with_visits` does."""
    names = ", ".join(EVENT_NAMES)
    staged = f"SELECT {names}, '' AS agent FROM {quoted(staging)} WHERE {WITHOUT_SESSION}"  # noqa: S608 - names from code
    visitors = f"SELECT distinct_id FROM {quoted(staging)} WHERE {WITHOUT_SESSION}"  # noqa: S608 - names from code
    return with_visits(staged, visitors)


def with_visits(
    staged: str, visitors: str, *, existing: str = "1", computed_last: Mapping[str, str] | None = None
) -> str:
    """Return a SELECT of the events of the SELECT `staged`, in the order of `EVENT_NAMES`, with their visits.

    `staged` has the columns `EVENT_NAMES` and `agent`; `visitors` is a SELECT of their distinct_ids. `existing` narrows
    the events that are already loaded. `computed_last` has expressions of columns that are computed after the sorting,
    which then moves less data.

    The parameters are those of the given statements; `teams` of the staged events; `first` and `last`, the bounds of
    their timestamps; and `superseded`, the ids of objects whose events are ignored. No list may be empty.
    """
    computed = {"session_id": visit_id(), **(computed_last or {})}
    kept = ", ".join("'' AS properties" if name == "properties" else name for name in EVENT_NAMES)
    selected = ", ".join(f"{computed[name]} AS {name}" if name in computed else name for name in EVENT_NAMES)
    return f"""
    WITH
        visited AS (
            SELECT *, '' AS known_visit FROM ({staged})
            UNION ALL
            SELECT {kept}, '' AS agent, session_id AS known_visit
            FROM {EVENTS.name}
            WHERE {existing}
                AND team_id IN %(teams)s
                AND timestamp >= toDateTime64(%(first)s, 6, 'UTC') - INTERVAL {VISIT_TIMEOUT_MINUTES} MINUTE
                AND timestamp <= toDateTime64(%(last)s, 6, 'UTC') + INTERVAL {VISIT_TIMEOUT_MINUTES} MINUTE
                AND object_id NOT IN %(superseded)s
                AND distinct_id GLOBAL IN ({visitors})
                AND {is_visit_id("session_id")}
        ),
        starts AS (
            SELECT
                *,
                timestamp > lagInFrame(timestamp) OVER (
                    PARTITION BY team_id, distinct_id ORDER BY timestamp, uuid
                    ROWS BETWEEN 1 PRECEDING AND CURRENT ROW
                ) + INTERVAL {VISIT_TIMEOUT_MINUTES} MINUTE AS is_start
            FROM visited
        ),
        visits AS (
            SELECT
                *,
                sum(is_start) OVER (
                    PARTITION BY team_id, distinct_id ORDER BY timestamp, uuid
                    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                ) AS visit
            FROM starts
        ),
        starting_times AS (
            SELECT
                *,
                min(timestamp) OVER (PARTITION BY team_id, distinct_id, visit) AS first_event,
                minIf(UUIDv7ToDateTime(toUUIDOrZero(known_visit), 'UTC'), known_visit != '')
                    OVER (PARTITION BY team_id, distinct_id, visit) AS known_start,
                if(toUnixTimestamp64Milli(known_start) = 0, first_event, known_start) AS visit_start
            FROM visits
        )
    SELECT {selected}
    FROM starting_times
    WHERE known_visit = ''
    """  # noqa: S608 - names from code


def visit_id() -> str:
    """Return the expression of a visit's id: a UUIDv7 of its start, team and visitor."""
    day = MAX_VISIT_HOURS * 3_600_000
    age = "greatest(0, toUnixTimestamp64Milli(timestamp) - toUnixTimestamp64Milli(visit_start))"
    return _id(f"(toUnixTimestamp64Milli(visit_start) + intDiv({age}, {day}) * {day})")


def is_visit_id(session_id: str) -> str:
    """Return the condition that a session id is that of a visit, and was not sent by the source."""
    start = f"toUnixTimestamp64Milli(UUIDv7ToDateTime(toUUIDOrZero({session_id}), 'UTC'))"
    return f"{session_id} = {_id(start)}"


def _id(milliseconds: str) -> str:
    clock = f"leftPad(lower(hex(toUInt64({milliseconds}))), 12, '0')"
    rest = f"lower(hex(sipHash128('visit', team_id, distinct_id, {milliseconds})))"
    return (
        f"concat(substring({clock}, 1, 8), '-', substring({clock}, 9, 4), '-7', substring({rest}, 1, 3), '-8', "
        f"substring({rest}, 4, 3), '-', substring({rest}, 7, 12))"
    )
