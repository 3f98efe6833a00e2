"""The comparison of `web_sessions` with the raw events.

The rules of `statements.py` are expressed independently, with window functions over events where that module groups
them by session. The two share no SQL, so that a mistake in one of them shows. This one is slower.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

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

# Pageviews by host and path; sessions by first page; the pageviews that are in no session, by rule.
Subject = Literal["pages", "sessions", "accounting"]
SUBJECTS: tuple[Subject, ...] = get_args(Subject)

# Of the first pageview.
_DIMENSIONS = (
    "referring_domain, utm_source, utm_medium, utm_campaign, utm_term, utm_content, has_gclid, has_gad_source, "
    "has_fbclid, browser, os, device_type, viewport_width, viewport_height, country_code, region, city"
)

# Every event with a session_id, and the newest event of its id so far without another one in the 24 hours before it.
_STARTS = f"""
SELECT
    *,
    max(if(starts, timestamp, toDateTime64(0, 6, 'UTC'))) OVER (
        PARTITION BY team_id, session_id ORDER BY timestamp, half_uuid ROWS UNBOUNDED PRECEDING
    ) AS session_start
FROM (
    SELECT
        team_id, session_id, timestamp, distinct_id, person_id, host, pathname, {_DIMENSIONS},
        bitShiftRight(reinterpretAsUInt128(uuid), 64) AS half_uuid,
        event = '$pageview' OR event = '$screen' AS is_page,
        row_number() OVER (PARTITION BY team_id, session_id ORDER BY timestamp, half_uuid) = 1
            OR any(timestamp) OVER (
                PARTITION BY team_id, session_id ORDER BY timestamp, half_uuid
                ROWS BETWEEN 1 PRECEDING AND 1 PRECEDING
            ) < timestamp - INTERVAL 1 DAY AS starts
    FROM events FINAL
    WHERE timestamp >= toDateTime64(%(first)s, 6, 'UTC') - INTERVAL 2 DAY
        AND timestamp < toDateTime64(%(last)s, 6, 'UTC') + INTERVAL 2 DAY
        AND session_id <> '' AND {{teams}}
)
"""  # noqa: S608 - constants of this module

# One row per pageview, with the numbers of its session.
_PAGES = f"""
SELECT
    page.team_id AS team_id,
    toDate(page.session_start) AS day,
    page.host AS host,
    page.pathname AS path,
    page.timestamp AS timestamp,
    page.half_uuid AS half_uuid,
    page.nth AS nth,
    if(moved.is_moved, moved.person, page.entry.2) AS person,
    page.session_id AS session_id,
    page.session_start AS session_start,
    ({_DIMENSIONS}) AS dimensions,
    page.session_pages AS session_pages,
    toUnixTimestamp(page.session_end) - toUnixTimestamp(page.session_start) AS seconds
FROM (
    SELECT
        *,
        first_value((distinct_id, person_id)) OVER (
            PARTITION BY team_id, session_id, session_start ORDER BY is_page DESC, timestamp, half_uuid
        ) AS entry,
        row_number() OVER (
            PARTITION BY team_id, session_id, session_start ORDER BY is_page DESC, timestamp, half_uuid
        ) AS nth,
        max(timestamp) OVER (PARTITION BY team_id, session_id, session_start) AS session_end,
        countIf(is_page) OVER (PARTITION BY team_id, session_id, session_start) AS session_pages
    FROM ({_STARTS})
    WHERE timestamp <= session_start + INTERVAL 1 DAY
) AS page
LEFT JOIN (
    SELECT
        team_id, distinct_id,
        argMax((person_id, is_deleted), version) AS newest, newest.1 AS person, newest.2 = 0 AS is_moved
    FROM person_distinct_id_overrides GROUP BY team_id, distinct_id
) AS moved ON moved.team_id = page.team_id AND moved.distinct_id = page.entry.1
WHERE page.is_page AND toDate(page.session_start) BETWEEN %(first)s AND %(last)s
"""  # noqa: S608 - constants of this module

# By team and day as well, because unique counts do not add up over pages.
_SETS = "GROUP BY GROUPING SETS ((team_id, day), (team_id, day, host, path))"
_STORED_DAYS = "started_at >= %(first)s AND started_at < toDate(%(last)s) + 1"

# The checksum is that of every value of the rows, whatever their order: equal rows are equal in every time zone.
_RAW: dict[Subject, str] = {
    "pages": f"""
        SELECT team_id, day, host, path, grouping(path) AS is_total,
            [count(), uniqExact(session_id, session_start), uniqExact(person)] AS numbers
        FROM ({_PAGES}) {_SETS}
    """,  # noqa: S608 - constants of this module
    "sessions": f"""
        SELECT team_id, day, entry_host AS host, entry_path AS path, grouping(path) AS is_total,
            [toInt64(sum(views)), toInt64(count()), toInt64(uniqExact(visitor)), toInt64(countIf(views = 1)),
             toInt64(sum(duration)), toInt64(sum(row_hash))] AS numbers
        FROM (
            SELECT
                team_id, day, count() AS views, any(seconds) AS duration, any(person) AS visitor,
                argMin(host, nth) AS entry_host, argMin(path, nth) AS entry_path,
                cityHash64(
                    session_id, toUnixTimestamp64Micro(session_start), visitor, toInt64(duration),
                    arrayMap(
                        one -> (one.3, one.4, one.1),
                        arraySort(groupArray(
                            (toUnixTimestamp64Micro(timestamp), half_uuid, toString(host), toString(path))
                        ))
                    ),
                    toString(argMin(dimensions, nth))
                ) AS row_hash
            FROM ({_PAGES})
            GROUP BY team_id, day, session_id, session_start
        ) {_SETS}
    """,  # noqa: S608 - constants of this module
}
_STORED: dict[Subject, str] = {
    "pages": f"""
        SELECT team_id, toDate(started_at) AS day, page.host AS host, page.pathname AS path,
            grouping(path) AS is_total, [count(), uniqExact(session_id, started_at), uniqExact(person_id)] AS numbers
        FROM web_sessions ARRAY JOIN pages AS page WHERE {_STORED_DAYS} {_SETS}
    """,  # noqa: S608 - constants of this module
    "sessions": f"""
        SELECT team_id, toDate(started_at) AS day, entry_host AS host, entry_pathname AS path,
            grouping(path) AS is_total,
            [toInt64(sum(pageviews)), toInt64(count()), toInt64(uniqExact(person_id)), toInt64(sum(is_bounce)),
             toInt64(sum(duration_seconds)),
             toInt64(sum(cityHash64(
                session_id, toUnixTimestamp64Micro(started_at), person_id, duration_seconds,
                arrayMap(page -> (toString(page.1), toString(page.2), toUnixTimestamp64Micro(page.3)), pages),
                toString(({_DIMENSIONS}))
             )))] AS numbers
        FROM web_sessions WHERE {_STORED_DAYS} {_SETS}
    """,  # noqa: S608 - constants of this module
}
NUMBERS: dict[Subject, tuple[str, ...]] = {
    "pages": ("pageviews", "sessions", "visitors"),
    "sessions": ("pageviews", "sessions", "visitors", "bounces", "session_seconds", "checksum_of_rows"),
}

_RAW_ACCOUNTING = f"""
SELECT day, sumMap(map(rule, pageviews)) FROM (
    SELECT toDate(timestamp) AS day, if({{teams}}, 'no_session_id', 'team_not_selected') AS rule, count() AS pageviews
    FROM events FINAL
    WHERE timestamp >= toDateTime64(%(first)s, 6, 'UTC')
        AND timestamp < toDateTime64(%(last)s, 6, 'UTC') + INTERVAL 1 DAY
        AND (event = '$pageview' OR event = '$screen') AND (session_id = '' OR NOT ({{teams}}))
    GROUP BY day, rule
    UNION ALL
    SELECT
        toDate(timestamp) AS day,
        if(timestamp > session_start + INTERVAL 1 DAY, 'more_than_24_hours_after_the_start_of_its_session_id', ''),
        count()
    FROM ({_STARTS}) WHERE is_page AND toDate(timestamp) BETWEEN %(first)s AND %(last)s GROUP BY 1, 2
)
GROUP BY day
"""  # noqa: S608 - constants of this module
_STORED_ACCOUNTING = """
SELECT day, if(in_sessions = 0, left_out, mapConcat(left_out, map('', in_sessions))) FROM (
    SELECT day, left_out, toUInt64(raw_pageviews - arraySum(mapValues(left_out))) AS in_sessions
    FROM web_session_days FINAL WHERE day BETWEEN %(first)s AND %(last)s AND raw_pageviews > 0
)
"""


@dataclass(frozen=True)
class Difference:
    """A group (such as a team, a day and a page) whose stored numbers differ from the raw events."""

    day: dt.date
    group: str
    raw: Mapping[str, int]
    stored: Mapping[str, int]

    def __str__(self) -> str:
        pairs = [
            f"{name} {self.stored.get(name, 0)} stored, {self.raw.get(name, 0)} in the events"
            for name in {**self.raw, **self.stored}
            if self.raw.get(name, 0) != self.stored.get(name, 0)
        ]
        return f"{self.group}: {'; '.join(pairs)}"


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
    """Compare every number of the sessions from `first` to `last`, both included, with the raw events.

    With `team_ids`, other teams must have no stored rows.
    """
    parameters: dict[str, object] = {"first": first, "last": last}
    if team_ids is not None:
        parameters["team_ids"] = tuple(team_ids)
    teams = "1" if team_ids is None else "team_id IN %(team_ids)s"
    if subject == "accounting":
        return _compare_accounting(cluster, teams, parameters)
    return _compare_numbers(cluster, subject, teams, parameters)


def _compare_numbers(
    cluster: ClickhouseCluster, subject: Subject, teams: str, parameters: Mapping[str, object]
) -> Comparison:
    names = NUMBERS[subject]
    raw = _RAW[subject].format(teams=teams)
    rows = "team_id, day, toString(host) AS host, toString(path) AS path, is_total, CAST(numbers, 'Array(Int64)')"
    groups = f"""
    SELECT team_id, day, host, path, is_total,
        groupArrayIf(numbers, is_raw) AS raw,
        groupArrayIf(numbers, NOT is_raw) AS stored,
        arrayWithConstant({len(names)}, 0) AS zeros,
        if(empty(raw), zeros, raw[1]) AS raw_numbers,
        if(empty(stored), zeros, stored[1]) AS stored_numbers,
        raw_numbers != stored_numbers AS differs
    FROM (
        SELECT {rows} AS numbers, 1 AS is_raw FROM ({raw})
        UNION ALL
        SELECT {rows} AS numbers, 0 AS is_raw FROM ({_STORED[subject]})
    )
    GROUP BY team_id, day, host, path, is_total
    """  # noqa: S608 - constants of this module
    # One pass returns the number of groups and the first that differ.
    statement = f"""
    SELECT count(), countIf(differs),
        arraySlice(
            arraySort(groupArrayIf((day, team_id, is_total, host, path, raw_numbers, stored_numbers), differs)),
            1, {MAX_LISTED_DIFFERENCES}
        )
    FROM ({groups})
    """  # noqa: S608 - constants of this module
    ((compared, different, found),) = _rows(cluster, statement, parameters)
    listed = [
        Difference(
            day,
            f"team {team_id}, {day}, {'all pages' if is_total else host + path}",
            dict(zip(names, raw_numbers, strict=True)),
            dict(zip(names, stored_numbers, strict=True)),
        )
        for day, team_id, is_total, host, path, raw_numbers, stored_numbers in found
    ]
    return Comparison(compared, different, listed)


def _compare_accounting(cluster: ClickhouseCluster, teams: str, parameters: Mapping[str, object]) -> Comparison:
    raw: dict[dt.date, dict[str, int]] = dict(_rows(cluster, _RAW_ACCOUNTING.format(teams=teams), parameters))
    stored: dict[dt.date, dict[str, int]] = dict(_rows(cluster, _STORED_ACCOUNTING, parameters))
    days = sorted({*raw, *stored})
    different = [
        Difference(
            day,
            f"{day}, all teams",
            {f"pageviews {rule or 'in sessions'}": count for rule, count in raw.get(day, {}).items()},
            {f"pageviews {rule or 'in sessions'}": count for rule, count in stored.get(day, {}).items()},
        )
        for day in days
        if raw.get(day, {}) != stored.get(day, {})
    ]
    return Comparison(len(days), len(different), different[:MAX_LISTED_DIFFERENCES])


def _rows(cluster: ClickhouseCluster, statement: str, parameters: Mapping[str, object]) -> list[tuple[Any, ...]]:
    query = Query(statement, parameters, SETTINGS)
    return cluster.any_host(query, timeout_seconds=TIMEOUT_SECONDS).result()
