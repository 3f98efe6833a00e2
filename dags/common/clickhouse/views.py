"""The views of the web tables: finished numbers over `web_sessions`, described in docs/web-tables.md.

Parameters of every view: `team`, `since` and `until` (dates in the time zone; `until` is not included) and `time_zone`.
A session belongs as a whole to the time of its start. The start is a moment, so the numbers are exact in every zone.
"""

from dags.common.clickhouse.ddl import View

_FIRST = "toDateTime64({since:Date}, 6, {time_zone:String})"
_END = "toDateTime64({until:Date}, 6, {time_zone:String})"
# Neither column is inside a function, so that only the partitions and granules of the sessions are read.
_SELECTED = f"team_id = {{team:Int64}} AND started_at >= {_FIRST} AND started_at < {_END}"

_SESSION_NUMBERS = """
    uniqExact(person_id) AS visitors,
    count() AS sessions,
    sum(pageviews) AS pageviews,
    sum(is_bounce) AS bounces,
    avg(is_bounce) AS bounce_rate,
    avg(duration_seconds) AS average_session_seconds,
    avg(web_sessions.pageviews) AS pageviews_per_session
""".strip()
ADDITIVE_NOTE = "Over rows, only {} may be summed: the others are exact within a row."
_SESSIONS_NOTE = ADDITIVE_NOTE.format("sessions, pageviews and bounces")


def _view_by(name: str, what: str, columns: tuple[str, ...], condition: str = "") -> View:
    """Return the view of the numbers of sessions by some columns, each an expression with or without a name."""
    names = ", ".join(column.rpartition(" AS ")[2] for column in columns)
    query = f"""
SELECT
    {", ".join(columns)},
    {_SESSION_NUMBERS}
FROM {{database}}.web_sessions
WHERE {_SELECTED}{condition}
GROUP BY {names}
"""  # noqa: S608 - built from constants
    return View(name, f"{what} {_SESSIONS_NOTE}", query)


_ZONE = "{time_zone:String}"
WEB_OVERVIEW = _view_by(
    "web_overview",
    "The numbers of the sessions by hour, day or week (from Monday) of their start; grain is 'hour', 'day' or 'week'.",
    (
        f"""multiIf(
        {{grain:Enum8('hour' = 1, 'day' = 2, 'week' = 3)}} = 'hour', toStartOfHour(started_at, {_ZONE}),
        {{grain:Enum8('hour' = 1, 'day' = 2, 'week' = 3)}} = 'day', toStartOfDay(started_at, {_ZONE}),
        toDateTime(toStartOfWeek(started_at, 1, {_ZONE}), {_ZONE})
    ) AS period""",
    ),
)
WEB_ENTRY_PAGES = _view_by(
    "web_entry_pages",
    "The numbers of the sessions by the page of their first pageview.",
    ("entry_host AS host", "entry_pathname AS pathname"),
)
WEB_SOURCES = _view_by(
    "web_sources", "The numbers of the sessions by the host that led to them.", ("referring_domain",)
)
WEB_CHANNELS = _view_by("web_channels", "The numbers of the sessions by channel.", ("channel",))
WEB_CAMPAIGNS = _view_by(
    "web_campaigns",
    "The numbers of the sessions that a campaign led to, by its name, source and medium.",
    ("utm_campaign", "utm_source", "utm_medium"),
    " AND (utm_campaign != '' OR utm_source != '' OR utm_medium != '')",
)
WEB_DEVICES = _view_by(
    "web_devices",
    "The numbers of the sessions by type of device, browser and operating system.",
    ("device_type", "browser", "os"),
)
WEB_COUNTRIES = _view_by("web_countries", "The numbers of the sessions by country.", ("country_code",))

# Of one array it takes a fifth of the time of two, and most sessions see one host.
_NTH_OF_PAGE = """
if(
    arrayUniq(pages.host) = 1, arrayEnumerateUniq(pages.pathname), arrayEnumerateUniq(pages.host, pages.pathname)
)
""".strip()
# The first pageview of a page in its session counts the session. Over the rows of `page_rows`.
PAGE_NUMBERS = """
    uniqExactIf(person_id, nth_of_page = 1) AS visitors,
    countIf(nth_of_page = 1) AS sessions,
    count() AS pageviews,
    countIf(nth = 1) AS entries,
    countIf(nth = pages_in_session) AS exits
""".strip()


def page_rows(columns: str, table: str, condition: str) -> str:
    """Return a SELECT of the pageviews of sessions, for PAGE_NUMBERS. Two of the three arrays in pages are read."""
    return f"""
    SELECT {columns}, person_id, host, pathname, nth_of_page, nth, web_sessions.pageviews AS pages_in_session
    FROM {table}
    ARRAY JOIN
        pages.host AS host,
        pages.pathname AS pathname,
        {_NTH_OF_PAGE} AS nth_of_page,
        arrayEnumerate(pages.host) AS nth
    WHERE {condition}
"""  # noqa: S608 - built from constants


WEB_PAGES = View(
    "web_pages",
    "Pageviews of each page, the sessions and visitors that saw it, and the sessions that it began (entries) and ended "
    "(exits), of the sessions that started in the time. " + ADDITIVE_NOTE.format("pageviews, entries and exits"),
    f"""
SELECT
    host, pathname,
    {PAGE_NUMBERS}
FROM ({page_rows("team_id", "{database}.web_sessions", _SELECTED)})
GROUP BY host, pathname
""",  # noqa: S608 - built from constants
)
WEB_EXIT_PAGES = View(
    "web_exit_pages",
    "The pages on which sessions ended: exits, pageviews of the page, and their ratio. "
    + ADDITIVE_NOTE.format("pageviews and exits"),
    f"""
SELECT
    host, pathname,
    countIf(nth = pages_in_session) AS exits,
    count() AS pageviews,
    exits / pageviews AS exit_rate
FROM (
    SELECT host, pathname, nth, web_sessions.pageviews AS pages_in_session
    FROM {{database}}.web_sessions
    ARRAY JOIN pages.host AS host, pages.pathname AS pathname, arrayEnumerate(pages.host) AS nth
    WHERE {_SELECTED}
)
GROUP BY host, pathname
HAVING exits > 0
""",  # noqa: S608 - built from constants
)

_BEFORE = "toDateTime64({since:Date} - ({until:Date} - {since:Date}), 6, {time_zone:String})"
_IS_PRESENT = f"started_at >= {_FIRST}"


def _both(expression: str) -> str:
    """Return the values of the time and of the time before; `expression` has the condition in place of `{}`."""
    return f"({expression.format(_IS_PRESENT)}, {expression.format(f'NOT ({_IS_PRESENT})')})"


_COMPARED = (
    ("visitors", _both("toFloat64(uniqExactIf(person_id, {}))")),
    ("sessions", _both("toFloat64(countIf({}))")),
    ("pageviews", _both("toFloat64(sumIf(pageviews, {}))")),
    ("bounces", _both("toFloat64(sumIf(is_bounce, {}))")),
    ("bounce_rate", _both("avgIf(is_bounce, {})")),
    ("average_session_seconds", _both("avgIf(duration_seconds, {})")),
    ("pageviews_per_session", _both("avgIf(pageviews, {})")),
)
_COMPARED_ROWS = ",\n        ".join(f"('{name}', {values})" for name, values in _COMPARED)
WEB_COMPARISON = View(
    "web_comparison",
    "One row for each number: its value, that of as many days before, and the relative change. A rate or average of no "
    "sessions is NULL, as is a change from 0. Rows do not add up.",
    f"""
SELECT
    row.1 AS number,
    if(isNaN(row.2.1), NULL, row.2.1) AS value,
    if(isNaN(row.2.2), NULL, row.2.2) AS value_before,
    if(value_before = 0, NULL, (value - value_before) / value_before) AS change
FROM (
    SELECT arrayJoin([
        {_COMPARED_ROWS}
    ]) AS row
    FROM {{database}}.web_sessions
    WHERE team_id = {{team:Int64}} AND started_at >= {_BEFORE} AND started_at < {_END}
)
""",  # noqa: S608 - built from constants
)

# Walks through the pages of a session, and takes the next step at each page that is it: the steps that were reached.
_REACHED = (
    "arrayFold((steps, page) -> steps + toUInt64(page = {paths:Array(String)}[steps + 1]), pages.pathname, toUInt64(0))"
)
WEB_FUNNEL = View(
    "web_funnel",
    "The sessions and visitors that saw the paths one after another, with other pages between or not: a row for each "
    "step; paths is an array such as ['/', '/pricing', '/signup']. Rows do not add up.",
    f"""
SELECT
    step,
    {{paths:Array(String)}}[step] AS pathname,
    countIf(reached >= step) AS sessions,
    uniqExactIf(person_id, reached >= step) AS visitors,
    sessions / nullIf(first_value(sessions) OVER (ORDER BY step), 0) AS rate_of_first_step,
    sessions / nullIf(lagInFrame(sessions, 1, sessions) OVER (ORDER BY step), 0) AS rate_of_previous_step
FROM (
    SELECT person_id, {_REACHED} AS reached
    FROM {{database}}.web_sessions
    WHERE {_SELECTED} AND has(pages.pathname, {{paths:Array(String)}}[1])
    UNION ALL
    SELECT toUUID('00000000-0000-0000-0000-000000000000') AS person_id, toUInt64(0) AS reached
)
ARRAY JOIN arrayEnumerate({{paths:Array(String)}}) AS step
GROUP BY step
""",  # noqa: S608 - built from constants
)

WEB_VIEWS = (
    WEB_OVERVIEW,
    WEB_PAGES,
    WEB_ENTRY_PAGES,
    WEB_EXIT_PAGES,
    WEB_SOURCES,
    WEB_CHANNELS,
    WEB_CAMPAIGNS,
    WEB_DEVICES,
    WEB_COUNTRIES,
    WEB_COMPARISON,
    WEB_FUNNEL,
)
