"""The rules of a session, and the statements that build the table of sessions from them.

`raw.py` expresses the same rules independently.

- An event is a row of `events` after merging: among rows with the same sorting key (team, day, event, distinct_id,
  uuid), the one inserted last. Duplicates that are not merged yet count once.
- Events of one team with the same session_id belong together. An event without another one in the 24 hours before it
  starts a session, which has every event up to 24 hours after its start, both ends included. A later event with the
  same id and without a pause of 24 hours before it is in no session. Events without a session_id are in no session
  either. The pageviews of both are counted, by rule.
- A session belongs to the day (UTC) of its start as a whole. It is in the table when it has a pageview: an event
  $pageview or $screen.
- Viewport, campaign, person and so on are those of the first pageview. Among pageviews at the same time, that is the
  one whose uuid has the lowest second half, which is random in every UUID version. Host and path are those of each
  pageview.
- The person is that of the newest override of the team and distinct_id, unless it is deleted; otherwise, the person in
  the event.
- A bounce is a session with one pageview. The duration is from the first to the last event, in whole clock seconds.
"""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dags.common.clickhouse.query import quoted
from dags.web_preaggregated.channels import channel_expression

MAX_SESSION = dt.timedelta(hours=24)
ONE_DAY = dt.timedelta(days=1)

PAGEVIEW = "event IN ('$pageview', '$screen')"

# The rules by which a pageview of the raw events is in no session. The first that holds counts.
TEAM_NOT_SELECTED = "team_not_selected"
NO_SESSION_ID = "no_session_id"
AFTER_24_HOURS = "more_than_24_hours_after_the_start_of_its_session_id"

_MEBIBYTE = 2**20

# One pass builds its sessions in memory. Events are sorted by team first, so passes by team read no event twice.
MAX_EVENTS_PER_PASS = 1_000_000
# A pass holds a state for each session, on disk beyond this limit: one team may exceed a pass.
SESSION_SETTINGS: dict[str, int | str] = {
    "max_bytes_before_external_group_by": 240 * _MEBIBYTE,
    "max_bytes_before_external_sort": 100 * _MEBIBYTE,
    "max_memory_usage": 4096 * _MEBIBYTE,
    # Rows with the same sorting key have the same day, so they are never in two partitions.
    "do_not_merge_across_partitions_select_final": 1,
    # Overrides that do not fit in memory are joined in parts, on disk.
    "join_algorithm": "grace_hash,hash",
    "max_bytes_in_join": 128 * _MEBIBYTE,
    "join_use_nulls": 1,
    "max_threads": 2,
    "max_insert_threads": 2,
    # A session has some hundred bytes in memory: smaller parts, which the server merges.
    "max_block_size": 32_768,
    "min_insert_block_size_rows": 65_536,
    "max_partitions_per_insert_block": 0,
    # Without it, the rules of the channel run once for each distinct value of a block, not for each row.
    "short_circuit_function_evaluation": "disable",
    # A distinct_id may contain the separator: it is the last of the packed values, and takes the remaining text.
    "splitby_max_substrings_includes_remaining_string": 1,
}

# Dimensions of a session from its first pageview, in the order of packing.
_TEXTS = (
    "referring_domain",
    "browser",
    "os",
    "device_type",
    "country_code",
    "region",
    "city",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
)
_NUMBERS = {
    "viewport_width": "Int32",
    "viewport_height": "Int32",
    "has_gclid": "UInt8",
    "has_gad_source": "UInt8",
    "has_fbclid": "UInt8",
}


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
            "before_from": _start_of(self.first - 2 * MAX_SESSION),
            "first_start": _start_of(self.first),
            "first_end": _end_of(self.first),
            "last_start": _start_of(self.last),
            "last_end": _end_of(self.last),
            **({} if self.team_ids is None else {"team_ids": self.team_ids}),
        }

    @property
    def span_condition(self) -> str:
        """The condition on time and team. `timestamp` is not wrapped in a function, so that the primary key is used."""
        return f"timestamp >= %(events_from)s AND timestamp <= %(events_to)s{self._teams_condition}"

    @property
    def events_condition(self) -> str:
        """The condition of the events that are read."""
        return f"{self.span_condition} AND session_id != ''"

    @property
    def sessions_condition(self) -> str:
        """The condition of the events that sessions of the window may have.

        Before and after the window these are the events of ids that have one on its first or last day: a session that
        has none there is not cut by its bounds. The ids are compared by a hash, which keeps at most too many events.
        """
        if self.first == self.last:
            is_inside = "timestamp >= %(first)s AND timestamp <= %(last)s"
            return f"{self.events_condition} AND ({is_inside} OR {self._is_on('first')})"
        return (
            f"{self.events_condition} AND (timestamp >= %(first)s OR {self._is_on('first')}) "
            f"AND (timestamp <= %(last)s OR {self._is_on('last')})"
        )

    def _is_on(self, bound: str) -> str:
        identity = "sipHash64(team_id, session_id)"
        return (
            f"{identity} IN (SELECT {identity} FROM events "  # noqa: S608 - built from constants
            f"WHERE timestamp >= %({bound}_start)s AND timestamp <= %({bound}_end)s{self._teams_condition})"
        )

    @property
    def before_condition(self) -> str:
        """The condition of the events that decide whether those of the first day continue an earlier session."""
        return f"timestamp >= %(before_from)s AND timestamp <= %(first_end)s{self._teams_condition}"

    @property
    def _teams_condition(self) -> str:
        return "" if self.team_ids is None else " AND team_id IN %(team_ids)s"

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
    return f"toLowCardinality(replaceAll(replaceAll({text}, '\\x01z', '\\0'), '\\x01e', '\\x01'))"


# The values of the first pageview in one text: a dozen aggregate functions, or one of a tuple, take twice as long.
_PACKED = ", ".join(
    ("toString(person_id)", *(f"toString({name})" for name in _NUMBERS), *map(_escaped, _TEXTS), "distinct_id")
)
_PACKED_COUNT = 2 + len(_NUMBERS) + len(_TEXTS)
_UNPACKED = ",\n    ".join(
    (
        *(f"to{kind}(packed[{index}]) AS {name}" for index, (name, kind) in enumerate(_NUMBERS.items(), start=2)),
        *(f"{_unescaped(f'packed[{index}]')} AS {name}" for index, name in enumerate(_TEXTS, start=2 + len(_NUMBERS))),
    )
)
_SESSION_COLUMNS = ", ".join(
    (
        "team_id, session_id, started_at, duration_seconds, pages, pageviews, is_bounce",
        "entry_host, entry_pathname, exit_host, exit_pathname",
        *_NUMBERS,
        *_TEXTS,
        "channel, person_id",
    )
)
_MAX_SESSION_MICROSECONDS = MAX_SESSION // dt.timedelta(microseconds=1)

# Ids that need more than one pass over the events are marked by rows of this day, which is never swapped in. The
# duration of a mark is 1 if the events of the id span more than a session.
_MARKED_AT = "toDateTime64(0, 6, 'UTC')"
IS_MARK = f"started_at = {_MARKED_AT}"
_IS_SESSION = f"started_at > {_MARKED_AT}"


def _with_persons(sessions: str) -> str:
    """Return a SELECT of the rows of `sessions` in the columns of the table of sessions."""
    return f"""
SELECT
    team_id, session_id, started_at, duration_seconds,
    pages,
    length(pages) AS pageviews,
    pageviews = 1 AS is_bounce,
    toLowCardinality(pages[1].1) AS entry_host, pages[1].2 AS entry_pathname,
    pages[-1].1 AS exit_host, pages[-1].2 AS exit_pathname,
    {_UNPACKED},
    {channel_expression()} AS channel,
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


def sessions_statement(window: Window, target: str) -> str:
    """Return the statement that inserts every session that starts in the window into `target`, a staging table.

    Apart from the ids of the first and last day, it is the only pass over the raw events. An id whose events span more
    than a session, or that had events before the window and has some in it, gets a row that only marks it.
    """
    grouped = f"""
    SELECT
        team_id,
        session_id,
        min(timestamp) AS first_at,
        max(timestamp) AS last_at,
        dateDiff('microsecond', first_at, last_at) > {_MAX_SESSION_MICROSECONDS} AS is_too_long,
        is_too_long OR (first_at < %(first)s AND last_at >= %(first)s) AS is_mark,
        groupArrayIf({_MOMENT}, is_pageview) AS moments,
        groupArrayIf(host, is_pageview) AS hosts,
        groupArrayIf(pathname, is_pageview) AS pathnames,
        argMin(concatWithSeparator('\\0', {_PACKED}), {_MOMENT} + {_OTHERS_LAST}) AS packed_text
    FROM (SELECT *, {PAGEVIEW} AS is_pageview FROM events FINAL WHERE {window.sessions_condition})
    GROUP BY team_id, session_id
    HAVING is_mark OR (first_at >= %(first)s AND first_at <= %(last)s AND notEmpty(moments))
    """  # noqa: S608 - built from constants
    rows = f"""
    SELECT
        team_id,
        session_id,
        if(is_mark, {_MARKED_AT}, first_at) AS started_at,
        if(is_mark, is_too_long, dateDiff('second', first_at, last_at)) AS duration_seconds,
        arrayMap(
            page -> (page.2, page.3, fromUnixTimestamp64Micro(toInt64(bitShiftRight(page.1, 64)), 'UTC')),
            if(is_mark, [], arraySort(page -> page.1, arrayZip(moments, hosts, pathnames)))
        ) AS pages,
        packed_text
    FROM ({grouped})
    """  # noqa: S608 - built from constants
    return f"INSERT INTO {quoted(target)} ({_SESSION_COLUMNS}) {_with_persons(rows)}"


def too_long_sessions_statement(window: Window, target: str) -> str:
    """Return the statement that inserts the sessions of the ids that are marked because their events span too long."""
    rows = f"""
    SELECT
        team_id,
        session_id,
        started_at,
        dateDiff('second', started_at, members[-1].2) AS duration_seconds,
        arrayMap(item -> (item.4, item.5, item.2), pageviews) AS pages,
        pageviews[1].6 AS packed_text
    FROM ({_cut_statement(f"{window.events_condition} AND {_is_marked(target)} AND duration_seconds = 1)", _PACKED)})
    WHERE started_at >= %(first)s AND started_at <= %(last)s AND notEmpty(pageviews)
    """  # noqa: S608 - built from constants
    return f"INSERT INTO {quoted(target)} ({_SESSION_COLUMNS}) {_with_persons(rows)}"


def continued_pageviews_statement(window: Window, target: str) -> str:
    """Return the statement that counts the pageviews of the first day in sessions that started the day before."""
    condition = f"{window.before_condition} AND session_id != '' AND {_is_marked(target)})"
    return f"""
    SELECT sum(arrayCount(item -> item.2 >= %(first)s, pageviews)) FROM ({_cut_statement(condition, "''")})
    WHERE started_at >= %(events_from)s AND started_at < %(first)s
    """  # noqa: S608 - built from constants


def _is_marked(target: str) -> str:
    """Return the start of a condition of the events whose ids are marked; the caller closes the parenthesis."""
    return f"(team_id, session_id) IN (SELECT team_id, session_id FROM {quoted(target)} WHERE {IS_MARK}"  # noqa: S608 - a generated name


def _cut_statement(condition: str, packed: str) -> str:
    """Return a SELECT of the sessions of these events, whatever they span: their events in order, split at pauses."""
    event = (
        f"({_MOMENT}, timestamp, {PAGEVIEW}, toString(host), toString(pathname), concatWithSeparator('\\0', {packed}))"
    )
    return f"""
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
    WHERE {condition}
    GROUP BY team_id, session_id
    """  # noqa: S608 - built from constants


def counted_days_statement(sessions: str) -> str:
    """Return the statement that counts sessions, pageviews, visitors, bounces, seconds and teams by day."""
    return f"""
    SELECT
        toDate(started_at), count(), sum(pageviews), uniqExact((team_id, person_id)),
        sum(is_bounce), sum(duration_seconds), uniqExact(team_id)
    FROM {quoted(sessions)} WHERE {_IS_SESSION} GROUP BY 1
    """  # noqa: S608 - built from constants


def counted_pages_statement(sessions: str) -> str:
    """Return the statement that counts the pageviews in sessions by the day of the pageview."""
    return (
        f"SELECT toDate(arrayJoin(pages.at)) AS day, count() FROM {quoted(sessions)} WHERE {_IS_SESSION} GROUP BY day"  # noqa: S608 - built from constants
    )


def top_pages_statement(sessions: str, pages: int) -> str:
    """Return the statement of the pages with most pageviews by day: team, host, path, pageviews and visitors.

    Visitors are counted for these pages only: a set of persons for each page would take too much memory.
    """
    return f"""
    SELECT toDate(started_at) AS day, team_id, page.host, page.pathname, count() AS views, uniqExact(person_id)
    FROM {quoted(sessions)} ARRAY JOIN pages AS page
    WHERE {_IS_SESSION} AND (day, team_id, page.host, page.pathname) IN (
        SELECT toDate(started_at) AS day, team_id, page.host, page.pathname
        FROM {quoted(sessions)} ARRAY JOIN pages AS page WHERE {_IS_SESSION}
        GROUP BY day, team_id, page.host, page.pathname
        ORDER BY day, count() DESC, team_id, page.host, page.pathname LIMIT {pages:d} BY day
    )
    GROUP BY day, team_id, page.host, page.pathname ORDER BY day, views DESC, team_id, page.host, page.pathname
    """  # noqa: S608 - built from constants


def raw_pageviews_statement(team_ids: Sequence[int] | None) -> str:
    """Return the statement that counts the pageviews of the raw events by day and rule; an empty rule if none holds."""
    unselected = "" if team_ids is None else f"team_id NOT IN %(team_ids)s, '{TEAM_NOT_SELECTED}', "
    return f"""
    SELECT toDate(timestamp), multiIf({unselected}session_id = '', '{NO_SESSION_ID}', '') AS rule, count()
    FROM events FINAL
    WHERE timestamp >= %(first)s AND timestamp <= %(last)s AND {PAGEVIEW} GROUP BY 1, rule
    """  # noqa: S608 - built from constants
