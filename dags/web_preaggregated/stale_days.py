"""Whether a day of `web_sessions` is stale: a fingerprint of its input now, against the one that it was computed from.

The input of a day is what `ingested_objects` and `event_day_changes` have of the day and of both its neighbors, since a
session may start the day before or end the day after. A day that has not ended yet is no input: what arrives today
would make yesterday stale all day. When it has ended, the day before is stale and computed a last time.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.tables import WEB_SESSION_DAYS

if TYPE_CHECKING:
    from clickhouse_driver import Client

ONE_DAY = dt.timedelta(days=1)
# A set of rows as one number, whatever their order. No clock is in it: the version of an object grows with each state.
# Entries written before the manifest had days count on each day from their first to their last event.
FINGERPRINTS = """
SELECT day, groupBitXor(sipHash64(source, source_day)) AS fingerprint
FROM (
    SELECT
        arrayJoin(if(
            empty(rows_by_day) AND rows > 0,
            arrayMap(
                n -> toDate(first_timestamp) + n,
                range(toUInt32(dateDiff('day', first_timestamp, last_timestamp) + 1))
            ),
            mapKeys(rows_by_day)
        )) AS source_day,
        sipHash64('object', object_id, version, state, {is_selected}) AS source
    FROM ingested_objects FINAL
    UNION ALL
    SELECT day AS source_day, sipHash64('change', change_id, state) AS source FROM event_day_changes FINAL
)
ARRAY JOIN [source_day - 1, source_day, source_day + 1] AS day
WHERE source_day < %(today)s AND source_day > toDate('1970-01-02'){of_days}
GROUP BY day
"""

STALE_DAYS = """
SELECT if(computed.day > present.day, computed.day, present.day) AS stale_day, computed_at, run_id
FROM ({present}) AS present
FULL JOIN (
    SELECT day, input_fingerprint, computed_at, run_id FROM web_session_days FINAL WHERE day < %(today)s
) AS computed ON present.day = computed.day
WHERE present.fingerprint != computed.input_fingerprint AND stale_day < %(today)s
"""
COMPUTED_LATELY = "SELECT day, computed_at, run_id FROM web_session_days FINAL WHERE computed_at >= %(since)s"
NEVER = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True)
class StaleDay:
    """A day whose input changed since it was computed, at a time and by a run; or that was never computed."""

    day: dt.date
    computed_at: dt.datetime = NEVER
    run_id: str = ""


def fingerprints_query(
    team_ids: Sequence[int] | None, today: dt.date, first: dt.date | None = None, last: dt.date | None = None
) -> Query:
    """Return the query of the fingerprint of each day that has input, or of those from `first` to `last`."""
    parameters: dict[str, object] = {"today": today}
    of_days = ""
    if first is not None and last is not None:
        parameters |= {"first": first, "last": last}
        of_days = " AND day >= %(first)s AND day <= %(last)s"
    return Query(FINGERPRINTS.format(is_selected=_is_selected(team_ids, parameters), of_days=of_days), parameters)


def input_fingerprints(
    client: "Client", days: Sequence[dt.date], team_ids: Sequence[int] | None, today: dt.date | None = None
) -> dict[dt.date, int]:
    """Return the fingerprint of the input of each day; 0 for a day without input.

    Read it before the events: what changes in between makes the day stale, and it is computed again.
    """
    now = today or dt.datetime.now(dt.UTC).date()
    rows = fingerprints_query(team_ids, now, min(days), max(days))(client) if days else []
    found: dict[dt.date, int] = {day: fingerprint for day, fingerprint in rows}  # noqa: C416 - rows of any length to the type checker
    return {day: found.get(day, 0) for day in days}


def stale_days(
    cluster: ClickhouseCluster, team_ids: Sequence[int] | None, today: dt.date, first: dt.date
) -> list[StaleDay]:
    """Return the stale days from `first` to yesterday, the newest first."""
    present = fingerprints_query(team_ids, today)
    query = Query(STALE_DAYS.format(present=present.statement), present.parameters)
    # Hosts that share no rows each compute their own.
    found = cluster.map_write_hosts(WEB_SESSION_DAYS.name, query).result().values()
    by_day = {day: StaleDay(day, computed_at, run_id) for rows in found for day, computed_at, run_id in rows}
    return [by_day[day] for day in sorted(by_day, reverse=True) if day >= first]


def computed_lately(cluster: ClickhouseCluster, since: dt.datetime) -> dict[str, list[StaleDay]]:
    """Return the days that were computed since a time, by the id of the run that computed them."""
    found = cluster.map_write_hosts(WEB_SESSION_DAYS.name, Query(COMPUTED_LATELY, {"since": since})).result().values()
    by_run: dict[str, list[StaleDay]] = {}
    for rows in found:
        for day, computed_at, run_id in rows:
            by_run.setdefault(run_id, []).append(StaleDay(day, computed_at, run_id))
    return by_run


def _is_selected(team_ids: Sequence[int] | None, parameters: dict[str, object]) -> str:
    """Return the expression of whether a team is selected: the events of the others are only counted."""
    if team_ids is None:
        return "1"
    # 0 keeps the list from being empty. No team has this id.
    parameters["team_ids"] = (0, *team_ids)
    return "team_id IN %(team_ids)s"
