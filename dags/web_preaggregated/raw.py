"""The comparison of the web tables with the raw events.

The rules of `statements.py` are expressed independently, with window functions over events where that module groups
them by session. The two share no SQL, so that a mistake in one of them shows. This one is slower.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query

MAX_LISTED_DIFFERENCES = 20
TIMEOUT_SECONDS = 2 * 3600.0
_MEBIBYTE = 2**20
SETTINGS: dict[str, int] = {
    "max_bytes_before_external_group_by": 200 * _MEBIBYTE,
    "max_bytes_before_external_sort": 200 * _MEBIBYTE,
    "max_memory_usage": 4096 * _MEBIBYTE,
    "max_threads": 2,
}

Subject = Literal["stats", "bounces"]

# Every event with the start of its session and the session's first pageview.
_EVENTS = """
SELECT
    *,
    first_value((distinct_id, person_id, pathname)) OVER (
        PARTITION BY team_id, session_id, session_start ORDER BY is_page DESC, timestamp, half_uuid
    ) AS entry,
    row_number() OVER (
        PARTITION BY team_id, session_id, session_start ORDER BY is_page DESC, timestamp, half_uuid
    ) AS nth,
    max(timestamp) OVER (PARTITION BY team_id, session_id, session_start) AS session_end,
    countIf(is_page) OVER (PARTITION BY team_id, session_id, session_start) AS session_pages
FROM (
    SELECT
        *,
        -- The newest event so far without another one in the 24 hours before it.
        max(if(starts, timestamp, toDateTime64(0, 6, 'UTC'))) OVER (
            PARTITION BY team_id, session_id ORDER BY timestamp, half_uuid ROWS UNBOUNDED PRECEDING
        ) AS session_start
    FROM (
        SELECT
            team_id, session_id, timestamp, distinct_id, person_id, pathname,
            bitShiftRight(reinterpretAsUInt128(uuid), 64) AS half_uuid,
            event = '$pageview' OR event = '$screen' AS is_page,
            row_number() OVER (PARTITION BY team_id, session_id ORDER BY timestamp, half_uuid) = 1
                OR any(timestamp) OVER (
                    PARTITION BY team_id, session_id ORDER BY timestamp, half_uuid
                    ROWS BETWEEN 1 PRECEDING AND 1 PRECEDING
                ) < timestamp - INTERVAL 1 DAY AS starts
        FROM events FINAL
        WHERE timestamp >= toDateTime64(%(first)s, 6, 'UTC') - INTERVAL 1 DAY
            AND timestamp < toDateTime64(%(last)s, 6, 'UTC') + INTERVAL 2 DAY
            AND session_id <> '' AND {teams}
    )
)
WHERE timestamp <= session_start + INTERVAL 1 DAY
"""

# One row per pageview, with the numbers of its session.
_PAGES = f"""
SELECT
    page.team_id AS team_id,
    toDate(page.session_start) AS day,
    page.pathname AS path,
    if(moved.is_moved, moved.person, page.entry.2) AS person,
    (page.session_id, page.session_start) AS session,
    page.session_pages AS session_pages,
    toUnixTimestamp(page.session_end) - toUnixTimestamp(page.session_start) AS seconds
FROM ({_EVENTS}) AS page
LEFT JOIN (
    SELECT
        team_id, distinct_id,
        argMax((person_id, is_deleted), version) AS newest, newest.1 AS person, newest.2 = 0 AS is_moved
    FROM person_distinct_id_overrides GROUP BY team_id, distinct_id
) AS moved ON moved.team_id = page.team_id AND moved.distinct_id = page.entry.1
WHERE page.is_page AND toDate(page.session_start) BETWEEN %(first)s AND %(last)s
"""  # noqa: S608 - constants of this module

# By team and day as well, because unique counts do not add up over paths.
_SETS = "GROUP BY GROUPING SETS ((team_id, day), (team_id, day, path))"

_RAW: dict[Subject, str] = {
    "stats": f"""
        SELECT team_id, day, path, grouping(path) AS is_total,
            [count(), uniqExact(session), uniqExact(person)] AS numbers
        FROM ({_PAGES}) {_SETS}
    """,  # noqa: S608 - constants of this module
    "bounces": f"""
        SELECT team_id, day, path, grouping(path) AS is_total,
            [sum(session_pages), uniqExact(session), uniqExact(person), countIf(session_pages = 1),
             sum(seconds), count()] AS numbers
        FROM ({_PAGES} AND page.nth = 1) {_SETS}
    """,  # noqa: S608 - constants of this module
}
_STORED: dict[Subject, str] = {
    "stats": f"""
        SELECT team_id, toDate(period_bucket) AS day, pathname AS path, grouping(path) AS is_total,
            [sumMerge(pageviews_count_state), uniqExactMerge(sessions_uniq_state),
             uniqExactMerge(persons_uniq_state)] AS numbers
        FROM web_stats_daily WHERE period_bucket >= %(first)s AND period_bucket < toDate(%(last)s) + 1 {_SETS}
    """,  # noqa: S608 - constants of this module
    "bounces": f"""
        SELECT team_id, toDate(period_bucket) AS day, entry_pathname AS path, grouping(path) AS is_total,
            [sumMerge(pageviews_count_state), uniqExactMerge(sessions_uniq_state), uniqExactMerge(persons_uniq_state),
             sumMerge(bounces_count_state), sumMerge(total_session_duration_state),
             sumMerge(total_session_count_state)] AS numbers
        FROM web_bounces_daily WHERE period_bucket >= %(first)s AND period_bucket < toDate(%(last)s) + 1 {_SETS}
    """,  # noqa: S608 - constants of this module
}
NUMBERS: dict[Subject, tuple[str, ...]] = {
    "stats": ("pageviews", "sessions", "visitors"),
    "bounces": ("pageviews", "sessions", "visitors", "bounces", "session_seconds", "session_count"),
}


@dataclass(frozen=True)
class Difference:
    """A group (team, day, and path or None for all paths) whose stored numbers differ from the raw events."""

    team_id: int
    day: dt.date
    path: str | None
    raw: Mapping[str, int]
    stored: Mapping[str, int]

    def __str__(self) -> str:
        pairs = [
            f"{name} {self.stored[name]} stored, {self.raw[name]} in the events"
            for name in self.raw
            if self.raw[name] != self.stored[name]
        ]
        path = "all paths" if self.path is None else self.path
        return f"team {self.team_id}, {self.day}, {path}: {'; '.join(pairs)}"


@dataclass(frozen=True)
class Comparison:
    """The number of groups compared, the number that differ, and the first of these."""

    compared: int
    different: int
    listed: Sequence[Difference]


def compare_with_raw(
    cluster: ClickhouseCluster,
    subject: Subject,
    first: dt.date,
    last: dt.date,
    team_ids: Sequence[int] | None = None,
) -> Comparison:
    """Compare every number of a daily table from `first` to `last`, both included, with the raw events.

    With `team_ids`, other teams must have no stored rows.
    """
    teams = "1" if team_ids is None else "team_id IN %(team_ids)s"
    names = NUMBERS[subject]
    raw = _RAW[subject].format(teams=teams)
    groups = f"""
    SELECT team_id, day, path, is_total,
        groupArrayIf(CAST(numbers, 'Array(Int64)'), is_raw) AS raw,
        groupArrayIf(CAST(numbers, 'Array(Int64)'), NOT is_raw) AS stored,
        arrayWithConstant({len(names)}, 0) AS zeros,
        if(empty(raw), zeros, raw[1]) AS raw_numbers,
        if(empty(stored), zeros, stored[1]) AS stored_numbers,
        raw_numbers != stored_numbers AS differs
    FROM (
        SELECT team_id, day, toString(path) AS path, is_total, CAST(numbers, 'Array(Int64)') AS numbers, 1 AS is_raw
        FROM ({raw})
        UNION ALL
        SELECT team_id, day, toString(path) AS path, is_total, CAST(numbers, 'Array(Int64)') AS numbers, 0 AS is_raw
        FROM ({_STORED[subject]})
    )
    GROUP BY team_id, day, path, is_total
    """  # noqa: S608 - constants of this module
    # One pass returns the number of groups and the first that differ.
    statement = f"""
    SELECT count(), countIf(differs),
        arraySlice(
            arraySort(groupArrayIf((day, team_id, is_total, path, raw_numbers, stored_numbers), differs)),
            1, {MAX_LISTED_DIFFERENCES}
        )
    FROM ({groups})
    """  # noqa: S608 - constants of this module
    parameters: dict[str, object] = {"first": first, "last": last}
    if team_ids is not None:
        parameters["team_ids"] = tuple(team_ids)
    query = Query(statement, parameters, SETTINGS)
    ((compared, different, rows),) = cluster.any_host(query, timeout_seconds=TIMEOUT_SECONDS).result()
    listed = [
        Difference(
            team_id,
            day,
            None if is_total else path,
            dict(zip(names, raw_numbers, strict=True)),
            dict(zip(names, stored_numbers, strict=True)),
        )
        for day, team_id, is_total, path, raw_numbers, stored_numbers in rows
    ]
    return Comparison(compared, different, listed)
