"""The rules of a session, and the statements that build the web tables from them.

`raw.py` expresses the same rules independently.

- An event is a row of `events` after merging: among rows with the same sorting key (team, day, event, distinct_id,
  uuid), the one inserted last. Duplicates that are not merged yet count once.
- Events of one team with the same session_id belong together. An event without another one in the 24 hours before it
  starts a session, which has every event up to 24 hours after its start, both ends included. A later event with the
  same id and without a pause of 24 hours before it is in no session. Events without a session_id are in no session
  either; their pageviews are counted separately.
- A session belongs to the day and hour (UTC) of its start as a whole. It is in the tables when it has a pageview: an
  event $pageview or $screen.
- Host, viewport, campaign, person and so on are those of the first pageview. Among pageviews at the same time, that is
  the one whose uuid has the lowest second half, which is random in every UUID version.
- The person is that of the newest override of the team and distinct_id, unless it is deleted; otherwise, the person in
  the event.
- A bounce is a session with one pageview. The duration is from the first to the last event, in whole clock seconds.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dags.common.clickhouse.ddl import Column, Placement, Table
from dags.common.clickhouse.query import quoted
from dags.common.clickhouse.tables import (
    WEB_BOUNCES_DAILY,
    WEB_BOUNCES_HOURLY,
    WEB_STATS_DAILY,
    WEB_STATS_HOURLY,
)

MAX_SESSION = dt.timedelta(hours=24)
ONE_DAY = dt.timedelta(days=1)

PAGEVIEW = "event IN ('$pageview', '$screen')"

_MEBIBYTE = 2**20

# One pass builds its sessions in memory. Events are sorted by team first, so passes by team read no event twice.
MAX_EVENTS_PER_PASS = 2_000_000
# A pass holds a state for each session, on disk beyond this limit: one team may exceed a pass.
SESSION_SETTINGS: dict[str, int | str] = {
    "max_bytes_before_external_group_by": 416 * _MEBIBYTE,
    "max_bytes_before_external_sort": 160 * _MEBIBYTE,
    "max_memory_usage": 4096 * _MEBIBYTE,
    # Rows with the same sorting key have the same day, so they are never in two partitions.
    "do_not_merge_across_partitions_select_final": 1,
    # Overrides that do not fit in memory are joined in parts, on disk.
    "join_algorithm": "grace_hash,hash",
    "max_bytes_in_join": 256 * _MEBIBYTE,
    "join_use_nulls": 1,
    "max_threads": 2,
    "max_partitions_per_insert_block": 0,
    # A distinct_id may contain the separator: it is the last of the packed values, and takes the remaining text.
    "splitby_max_substrings_includes_remaining_string": 1,
}
# Small blocks: a state takes hundreds of bytes in memory. Merges combine rows with equal keys.
TABLE_SETTINGS: dict[str, int | str] = {
    "max_block_size": 16_384,
    "min_insert_block_size_rows": 65_536,
    # Building the states takes longer than reading the sessions, and would otherwise use one thread.
    "max_insert_threads": 2,
    "max_threads": 2,
    "optimize_on_insert": 0,
    "max_partitions_per_insert_block": 0,
    "max_memory_usage": 2048 * _MEBIBYTE,
}

# Dimensions of a session from its first pageview, in the order of packing.
_TEXTS = (
    "host",
    "entry_pathname",
    "referring_domain",
    "browser",
    "os",
    "device_type",
    "country_code",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
)
_SOURCE_OF = {"entry_pathname": "pathname"}
_NUMBERS = ("viewport_width", "viewport_height")

SESSIONS = Table(
    name="web_sessions",
    comment="Sessions of the days that one run computes. Dropped at the end of the run.",
    columns=(
        Column("team_id", "Int64", "Team."),
        Column("session_id", "String", "Session."),
        Column("started_at", "DateTime64(6, 'UTC')", "First event."),
        Column("is_too_long", "UInt8", "1 when the events of the id span more than a session."),
        Column("duration_seconds", "Int64", "From the first to the last event."),
        Column("person_id", "UUID", "Person, after overrides."),
        Column("pathnames", "Array(LowCardinality(String))", "Path of every pageview."),
        Column("end_pathname", "LowCardinality(String)", "Path of the last pageview."),
        *(Column(name, "LowCardinality(String)", "Of the first pageview.") for name in _TEXTS),
        *(Column(name, "Int32", "Of the first pageview.") for name in _NUMBERS),
    ),
    engine="MergeTree",
    partition_by="toDate(started_at)",
    order_by=("is_too_long",),
    placement=Placement.EVERY_NODE,
)


@dataclass(frozen=True)
class Grain:
    """A pair of tables, by day or by hour, and the expression of the bucket of a session."""

    name: str
    stats: Table
    bounces: Table
    bucket: str

    @property
    def tables(self) -> tuple[Table, Table]:
        """Both tables of the grain."""
        return self.stats, self.bounces


DAILY = Grain("daily", WEB_STATS_DAILY, WEB_BOUNCES_DAILY, "toStartOfDay(started_at)")
HOURLY = Grain("hourly", WEB_STATS_HOURLY, WEB_BOUNCES_HOURLY, "toStartOfHour(started_at)")


@dataclass(frozen=True)
class Window:
    """Consecutive days, both ends included, and the teams to compute; None for all teams."""

    first: dt.date
    last: dt.date
    team_ids: tuple[int, ...] | None = None

    @property
    def days(self) -> list[dt.date]:
        """Every day."""
        return [self.first + n * ONE_DAY for n in range((self.last - self.first).days + 1)]

    def parameters(self) -> dict[str, object]:
        """Return the parameters of the statements: the bounds of the days, and of the events of their sessions."""
        return {
            "first": _start_of(self.first),
            "last": _end_of(self.last),
            "events_from": _start_of(self.first - MAX_SESSION),
            "events_to": _end_of(self.last + MAX_SESSION),
            **({} if self.team_ids is None else {"team_ids": self.team_ids}),
        }

    @property
    def span_condition(self) -> str:
        """The condition on time and team. `timestamp` is not wrapped in a function, so that the primary key is used."""
        teams = "" if self.team_ids is None else " AND team_id IN %(team_ids)s"
        return f"timestamp >= %(events_from)s AND timestamp <= %(events_to)s{teams}"

    @property
    def events_condition(self) -> str:
        """The condition of the events that are read."""
        return f"{self.span_condition} AND session_id != ''"

    def passes(self, events_by_team: Iterable[tuple[int, int]], max_events: int) -> "list[Window]":
        """Split the window into parts of at most `max_events` events, or of one team.

        `events_by_team` has the number of events of each team, in the order of team ids.
        """
        parts: list[list[int]] = []
        total = 0
        for team, events in events_by_team:
            if not parts or total + events > max_events:
                parts.append([])
                total = 0
            parts[-1].append(team)
            total += events
        return [self] if len(parts) < 2 else [replace(self, team_ids=tuple(part)) for part in parts]  # noqa: PLR2004


def windows_of(days: Iterable[dt.date], team_ids: tuple[int, ...] | None = None) -> list[Window]:
    """Return the days as windows of consecutive days."""
    windows: list[Window] = []
    for day in sorted(set(days)):
        if windows and windows[-1].last == day - ONE_DAY:
            windows[-1] = Window(windows[-1].first, day, team_ids)
        else:
            windows.append(Window(day, day, team_ids))
    return windows


def _start_of(day: dt.date) -> str:
    return f"{day} 00:00:00.000000"


def _end_of(day: dt.date) -> str:
    return f"{day} 23:59:59.999999"


# Orders events within a session by time, then by half of the uuid. One number, because tuples are slow to compare.
_MOMENT = (
    "bitShiftLeft(toUInt128(toUnixTimestamp64Micro(timestamp)), 64) + bitShiftRight(reinterpretAsUInt128(uuid), 64)"
)
# Sorts after every pageview, however late: 2 ** 62 microseconds are 146,000 years.
_OTHERS_LAST = "bitShiftLeft(toUInt128(NOT is_pageview), 126)"


def _escaped(column: str) -> str:
    # On a LowCardinality column this runs once per distinct value of a block.
    return f"replaceAll(replaceAll({column}, '\\x01', '\\x01e'), '\\0', '\\x01z')"


def _unescaped(text: str) -> str:
    return f"replaceAll(replaceAll({text}, '\\x01z', '\\0'), '\\x01e', '\\x01')"


# The values of the first pageview in one text: a dozen aggregate functions, or one of a tuple, take twice as long.
_PACKED = ", ".join(
    (
        "toString(person_id)",
        *(f"toString({name})" for name in _NUMBERS),
        *(_escaped(_SOURCE_OF.get(name, name)) for name in _TEXTS),
        "distinct_id",
    )
)
_PACKED_COUNT = 2 + len(_NUMBERS) + len(_TEXTS)
_UNPACKED = ",\n    ".join(
    (
        *(f"toInt32(packed[{index}]) AS {name}" for index, name in enumerate(_NUMBERS, start=2)),
        *(f"{_unescaped(f'packed[{index}]')} AS {name}" for index, name in enumerate(_TEXTS, start=2 + len(_NUMBERS))),
    )
)
_SESSION_COLUMNS = ", ".join(
    (
        "team_id, session_id, started_at, is_too_long, duration_seconds, pathnames, end_pathname",
        *_NUMBERS,
        *_TEXTS,
        "person_id",
    )
)
_MAX_SESSION_MICROSECONDS = MAX_SESSION // dt.timedelta(microseconds=1)


def _with_persons(sessions: str) -> str:
    """Return a SELECT of the rows of `sessions` in the columns of the table of sessions."""
    return f"""
SELECT
    team_id, session_id, started_at, is_too_long, duration_seconds, pathnames, end_pathname,
    {_UNPACKED},
    coalesce(overrides.person_id, toUUID(packed[1])) AS person_id
FROM (
    SELECT *, splitByChar('\\0', packed_text, {_PACKED_COUNT}) AS packed, packed[{_PACKED_COUNT}] AS distinct_id
    FROM ({sessions})
) AS sessions
LEFT JOIN (
    SELECT team_id, distinct_id, person_id FROM person_distinct_id_overrides FINAL WHERE is_deleted = 0
) AS overrides
ON sessions.team_id = overrides.team_id AND sessions.distinct_id = overrides.distinct_id
"""  # noqa: S608 - built from constants


def events_by_team_statement(window: Window) -> str:
    """Return the statement that counts the events to read by team, including duplicates."""
    return f"SELECT team_id, count() FROM events WHERE {window.span_condition} GROUP BY team_id ORDER BY team_id"  # noqa: S608 - built from constants


def sessions_statement(window: Window, sessions: str) -> str:
    """Return the statement that inserts every session that starts in the window into the table `sessions`.

    It is the only pass over the raw events. An id whose events span more than a session gets a row that only marks it.
    """
    grouped = f"""
    SELECT
        team_id,
        session_id,
        min(timestamp) AS started_at,
        max(timestamp) AS ended_at,
        dateDiff('microsecond', started_at, ended_at) > {_MAX_SESSION_MICROSECONDS} AS is_too_long,
        dateDiff('second', started_at, ended_at) AS duration_seconds,
        groupArrayIf(pathname, is_pageview) AS pathnames,
        argMax(pathname, is_pageview * ({_MOMENT})) AS end_pathname,
        argMin(concatWithSeparator('\\0', {_PACKED}), {_MOMENT} + {_OTHERS_LAST}) AS packed_text
    FROM (SELECT *, {PAGEVIEW} AS is_pageview FROM events FINAL WHERE {window.events_condition})
    GROUP BY team_id, session_id
    HAVING is_too_long OR (started_at >= %(first)s AND started_at <= %(last)s AND notEmpty(pathnames))
    """  # noqa: S608 - built from constants
    return f"INSERT INTO {quoted(sessions)} ({_SESSION_COLUMNS}) {_with_persons(grouped)}"


def too_long_sessions_statement(window: Window, sessions: str) -> str:
    """Return the statement that inserts the sessions of the marked ids: their events in order, split at pauses."""
    event = f"({_MOMENT}, timestamp, {PAGEVIEW}, toString(pathname), concatWithSeparator('\\0', {_PACKED}))"
    cut = f"""
    SELECT
        team_id,
        session_id,
        arraySort(groupArray({event})) AS events,
        arrayJoin(arraySplit((item, pause) -> pause > {_MAX_SESSION_MICROSECONDS}, events, arrayMap(
            (item, earlier) -> dateDiff('microsecond', earlier.2, item.2),
            events,
            arrayPushFront(arrayPopBack(events), events[1])
        ))) AS piece,
        piece[1].2 AS started_at,
        arrayFilter(
            item -> dateDiff('microsecond', started_at, item.2) <= {_MAX_SESSION_MICROSECONDS}, piece
        ) AS members,
        arrayFilter(item -> item.3, members) AS pageviews
    FROM events FINAL
    WHERE {window.events_condition}
        AND (team_id, session_id) IN (SELECT team_id, session_id FROM {quoted(sessions)} WHERE is_too_long)
    GROUP BY team_id, session_id
    """  # noqa: S608 - built from constants
    rows = f"""
    SELECT
        team_id,
        session_id,
        started_at,
        0 AS is_too_long,
        dateDiff('second', started_at, members[-1].2) AS duration_seconds,
        arrayMap(item -> item.4, pageviews) AS pathnames,
        pageviews[-1].4 AS end_pathname,
        pageviews[1].5 AS packed_text
    FROM ({cut})
    WHERE started_at >= %(first)s AND started_at <= %(last)s AND notEmpty(pageviews)
    """  # noqa: S608 - built from constants
    return f"INSERT INTO {quoted(sessions)} ({_SESSION_COLUMNS}) {_with_persons(rows)}"


_STATES = {
    "persons_uniq_state": "initializeAggregation('uniqExactState', person_id)",
    "sessions_uniq_state": "initializeAggregation('uniqExactState', session_id)",
    "bounces_count_state": "initializeAggregation('sumState', toUInt64(length(pathnames) = 1))",
    "total_session_duration_state": "initializeAggregation('sumState', duration_seconds)",
    "total_session_count_state": "initializeAggregation('sumState', toUInt64(1))",
}


def table_statement(grain: Grain, table: Table, target: str, sessions: str) -> str:
    """Return the statement that fills `target`, a staging table of one of the grain's tables, from the sessions.

    A row is a session, or a pageview of one. Rows are not grouped by dimensions first, because few share them: merges
    combine rows with equal keys.
    """
    by_page = table is grain.stats
    pageviews = "toUInt64(1)" if by_page else "toUInt64(length(pathnames))"
    expressions = {
        **_STATES,
        "period_bucket": grain.bucket,
        "pageviews_count_state": f"initializeAggregation('sumState', {pageviews})",
    }
    names = [column.name for column in table.columns]
    columns = ", ".join(map(quoted, names))
    selected = ",\n    ".join(f"{expressions.get(name, quoted(name))} AS {quoted(name)}" for name in names)
    pages = " ARRAY JOIN pathnames AS pathname" if by_page else ""
    return (
        f"INSERT INTO {quoted(target)} ({columns})\n"
        f"SELECT\n    {selected}\nFROM {quoted(sessions)}{pages}\nWHERE NOT is_too_long"
    )


def counted_days_statement(sessions: str) -> str:
    """Return the statement that counts sessions, pageviews, visitors, bounces, seconds and teams by day."""
    return f"""
    SELECT
        toDate(started_at), count(), sum(length(pathnames)), uniqExact((team_id, person_id)),
        countIf(length(pathnames) = 1), sum(duration_seconds), uniqExact(team_id)
    FROM {quoted(sessions)} WHERE NOT is_too_long GROUP BY 1
    """  # noqa: S608 - built from constants


def top_pages_statement(sessions: str, pages: int) -> str:
    """Return the statement of the pages with most pageviews by day: team, host, path, pageviews and visitors.

    Visitors are counted for these pages only: a set of persons for each page would take too much memory.
    """
    return f"""
    SELECT toDate(started_at) AS day, team_id, host, pathname, count() AS pageviews, uniqExact(person_id)
    FROM {quoted(sessions)} ARRAY JOIN pathnames AS pathname
    WHERE NOT is_too_long AND (day, team_id, host, pathname) IN (
        SELECT toDate(started_at) AS day, team_id, host, pathname
        FROM {quoted(sessions)} ARRAY JOIN pathnames AS pathname WHERE NOT is_too_long
        GROUP BY day, team_id, host, pathname
        ORDER BY day, count() DESC, team_id, host, pathname LIMIT {pages:d} BY day
    )
    GROUP BY day, team_id, host, pathname ORDER BY day, pageviews DESC, team_id, host, pathname
    """  # noqa: S608 - built from constants


def without_session_statement(team_ids: Sequence[int] | None) -> str:
    """Return the statement that counts the pageviews without a session_id by day. No table has them."""
    teams = "" if team_ids is None else " AND team_id IN %(team_ids)s"
    return f"""
    SELECT toDate(timestamp), count() FROM events FINAL
    WHERE timestamp >= %(first)s AND timestamp <= %(last)s AND session_id = '' AND {PAGEVIEW}{teams} GROUP BY 1
    """  # noqa: S608 - built from constants
