"""The questions of docs/web-tables.md, and the same questions of the raw events."""

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

from dags.web_preaggregated.channels import channel_expression

PAGE = Path(__file__).parents[3] / "docs" / "web-tables.md"
QUESTION = re.compile(r"^### (?P<title>.+?)$.*?^```sql\n(?P<query>.*?)^```", re.DOTALL | re.MULTILINE)

# What the queries of the page have in place of parameters.
PAGE_TEAM = re.compile(r"\bteam(_id)? = 1\b")
PAGE_SINCE, PAGE_UNTIL, PAGE_TIME_ZONE = "2026-11-02", "2026-11-09", "Europe/Berlin"

# Sessions as an analyst makes them from events, by id: for ids whose events span at most 24 hours. The engine computes
# the columns that a question needs.
_OF_CHANNEL = ("referring_domain", "utm_source", "utm_medium", "utm_campaign")
SESSIONS = f"""
SELECT *, {channel_expression()} AS channel
FROM (
    SELECT * REPLACE ({", ".join(f"toLowCardinality({name}) AS {name}" for name in _OF_CHANNEL)}) FROM (
    SELECT
        session_id,
        min(timestamp) AS started_at,
        dateDiff('second', min(timestamp), max(timestamp)) AS seconds,
        countIf(is_page) AS pageviews,
        argMinIf(person, timestamp, is_page) AS visitor,
        argMinIf(host, timestamp, is_page) AS entry_host,
        argMinIf(pathname, timestamp, is_page) AS entry_pathname,
        argMaxIf(host, timestamp, is_page) AS exit_host,
        argMaxIf(pathname, timestamp, is_page) AS exit_pathname,
        argMinIf(referring_domain, timestamp, is_page) AS referring_domain,
        argMinIf(utm_source, timestamp, is_page) AS utm_source,
        argMinIf(utm_medium, timestamp, is_page) AS utm_medium,
        argMinIf(utm_campaign, timestamp, is_page) AS utm_campaign,
        argMinIf(has_gclid, timestamp, is_page) AS has_gclid,
        argMinIf(has_gad_source, timestamp, is_page) AS has_gad_source,
        argMinIf(has_fbclid, timestamp, is_page) AS has_fbclid,
        argMinIf(device_type, timestamp, is_page) AS device_type,
        argMinIf(browser, timestamp, is_page) AS browser,
        argMinIf(os, timestamp, is_page) AS os,
        argMinIf(country_code, timestamp, is_page) AS country_code,
        arraySort(groupArrayIf((timestamp, toString(host), toString(pathname)), is_page)) AS pages
    FROM (
        SELECT
            event.*,
            event.event IN ('$pageview', '$screen') AS is_page,
            if(moved.is_moved, moved.moved_to, event.person_id) AS person
        FROM (
            SELECT * FROM events FINAL
            WHERE team_id = {{team}} AND session_id != ''
                AND timestamp >= {{first}} - INTERVAL 1 DAY AND timestamp < {{end}} + INTERVAL 1 DAY
        ) AS event
        LEFT JOIN (
            SELECT distinct_id, person_id AS moved_to, 1 AS is_moved
            FROM person_distinct_id_overrides FINAL WHERE team_id = {{team}} AND is_deleted = 0
        ) AS moved USING (distinct_id)
    )
    GROUP BY session_id
    HAVING started_at >= {{first}} AND started_at < {{end}} AND pageviews > 0
    )
)
"""  # noqa: S608 - built from constants

NUMBERS = {
    "visitors": "toFloat64(uniqExactIf(visitor, {now}))",
    "sessions": "toFloat64(countIf({now}))",
    "pageviews": "toFloat64(sumIf(pageviews, {now}))",
    "bounces": "toFloat64(countIf(pageviews = 1 AND {now}))",
    "bounce_rate": "countIf(pageviews = 1 AND {now}) / countIf({now})",
    "average_session_seconds": "sumIf(seconds, {now}) / countIf({now})",
    "pageviews_per_session": "sumIf(pageviews, {now}) / countIf({now})",
}


def _compared() -> str:
    rows = []
    for name, sql in NUMBERS.items():
        value, before = (sql.format(now=now) for now in ("started_at >= {since}", "started_at < {since}"))
        change = "if(value_before = 0, NULL, (value - value_before) / value_before)"
        rows.append(f"SELECT '{name}' AS number, {value} AS value, {before} AS value_before, {change} FROM sessions")  # noqa: S608 - constants
    return " UNION ALL ".join(rows)


def _by(columns: str, *numbers: str, order: str, condition: str = "1", limit: str = " LIMIT 10") -> str:
    return (
        f"SELECT {columns}, {', '.join(numbers)} FROM sessions WHERE {condition} "  # noqa: S608 - constants
        f"GROUP BY {columns} ORDER BY {order}{limit}"
    )


_VISITORS = "uniqExact(visitor) AS visitors"
_SESSIONS = "count() AS sessions"
_BOUNCES = "countIf(pageviews = 1) AS bounces"
_BOUNCE_RATE = "countIf(pageviews = 1) / count() AS bounce_rate"
_SECONDS = "avg(seconds) AS average_session_seconds"
_HAS_CAMPAIGN = "NOT (utm_campaign = '' AND utm_source = '' AND utm_medium = '')"
_SAW = "indexOf(arrayMap(page -> page.3, pages), {path})"
# The positions of the first, second and third step; 0 for a step that was not reached.
_FUNNEL = """
SELECT step, ['/', '/product/1', '/docs/1'][step] AS pathname, countIf(reached) AS sessions,
    uniqExactIf(visitor, reached) AS visitors,
    sessions / (SELECT countIf(first > 0) FROM steps) AS rate_of_first_step,
    sessions / [
        (SELECT countIf(first > 0) FROM steps),
        (SELECT countIf(first > 0) FROM steps),
        (SELECT countIf(second > 0) FROM steps)
    ][step] AS rate_of_previous_step
FROM (SELECT visitor, step, [first, second, third][step] > 0 AS reached FROM steps ARRAY JOIN [1, 2, 3] AS step)
GROUP BY step ORDER BY step
"""
_STEPS = """
steps AS (
    SELECT visitor, arrayMap(page -> page.3, pages) AS paths,
        indexOf(paths, '/') AS first,
        if(first = 0, 0, arrayFirstIndex((path, n) -> n > first AND path = '/product/1', paths, arrayEnumerate(paths)))
            AS second,
        if(second = 0, 0, arrayFirstIndex((path, n) -> n > second AND path = '/docs/1', paths, arrayEnumerate(paths)))
            AS third
    FROM sessions
)
"""
_PAGEVIEWS = "sessions ARRAY JOIN pages AS page, arrayEnumerate(pages) AS nth"

# By the title of the question.
RAW = {
    "How much traffic was there each day?": _by(
        "toDate(toTimeZone(started_at, '{time_zone}')) AS day",
        _VISITORS,
        _SESSIONS,
        "sum(sessions.pageviews) AS pageviews",
        _BOUNCE_RATE.replace("pageviews", "sessions.pageviews"),
        _SECONDS,
        order="day",
        limit="",
    ).replace("GROUP BY toDate(toTimeZone(started_at, '{time_zone}')) AS day", "GROUP BY day"),
    "At which hours of the day do sessions start?": (
        "SELECT toHour(toTimeZone(started_at, '{time_zone}')) AS hour, count() AS sessions, "
        "sum(pageviews) AS pageviews FROM sessions GROUP BY hour ORDER BY hour"
    ),
    "How does the week compare with the week before?": f"SELECT * FROM ({_compared()}) ORDER BY number",  # noqa: S608 - constants
    "Which pages have the most pageviews?": f"""
        SELECT page.2 AS host, page.3 AS pathname, count() AS pageviews, {_VISITORS},
            uniqExact(session_id) AS sessions, countIf(nth = 1) AS entries, countIf(nth = length(pages)) AS exits
        FROM (SELECT visitor, session_id, pages, page, nth FROM {_PAGEVIEWS})
        GROUP BY host, pathname ORDER BY pageviews DESC, host, pathname LIMIT 10
    """,  # noqa: S608 - constants
    "What is the bounce rate by entry page?": _by(
        "entry_host, entry_pathname",
        _SESSIONS,
        _BOUNCES,
        _BOUNCE_RATE,
        order="sessions DESC, entry_host, entry_pathname",
    ),
    "On which pages do sessions end?": f"""
        SELECT page.2 AS host, page.3 AS pathname, countIf(nth = length(pages)) AS exits, count() AS pageviews,
            exits / pageviews AS exit_rate
        FROM (SELECT pages, page, nth FROM {_PAGEVIEWS})
        GROUP BY host, pathname HAVING exits > 0 ORDER BY exits DESC, host, pathname LIMIT 10
    """,  # noqa: S608 - constants
    "Which sites lead to sessions?": _by(
        "referring_domain", _VISITORS, _SESSIONS, _BOUNCE_RATE, order="sessions DESC, referring_domain"
    ),
    "Which channels lead to sessions?": _by(
        "channel",
        _VISITORS,
        _SESSIONS,
        "sum(pageviews) / count() AS pageviews_per_session",
        order="sessions DESC, channel",
        limit="",
    ),
    "How do the campaigns perform?": _by(
        "utm_campaign, utm_source, utm_medium",
        _VISITORS,
        _SESSIONS,
        _BOUNCE_RATE,
        _SECONDS,
        order="sessions DESC, utm_campaign, utm_source, utm_medium",
        condition=_HAS_CAMPAIGN,
    ),
    "Which devices and browsers do visitors use?": _by(
        "device_type, browser, os", _VISITORS, _SESSIONS, order="sessions DESC, device_type, browser, os"
    ),
    "How many visitors come from each country?": _by(
        "country_code", _VISITORS, _SESSIONS, order="visitors DESC, country_code", limit=""
    ),
    "How many sessions go from the start page to a product and on to the documentation?": _FUNNEL,
    "Which pages do visitors from search engines see?": f"""
        SELECT page.3 AS pathname, count() AS pageviews, {_VISITORS}
        FROM (SELECT visitor, page, channel FROM {_PAGEVIEWS}) WHERE channel = 'Organic Search'
        GROUP BY pathname ORDER BY pageviews DESC, pathname LIMIT 10
    """,  # noqa: S608 - constants
    "How often do visitors come back?": (
        "SELECT of_visitor, count() AS visitors "
        "FROM (SELECT visitor, count() AS of_visitor FROM sessions GROUP BY visitor) "
        "GROUP BY of_visitor ORDER BY of_visitor"
    ),
}


@dataclass(frozen=True)
class Question:
    """A question of the page: its query, and the same question of the raw events."""

    title: str
    query: str
    raw: str


def questions(team_id: int, since: dt.date, until: dt.date, time_zone: str) -> list[Question]:
    """Return the questions of the page with these parameters."""
    asked = []
    for found in QUESTION.finditer(PAGE.read_text()):
        title, query = found["title"], PAGE_TEAM.sub(rf"team\1 = {team_id}", found["query"])
        for written, wanted in (
            (PAGE_SINCE, str(since)),
            (PAGE_UNTIL, str(until)),
            (PAGE_TIME_ZONE, time_zone),
        ):
            query = query.replace(f"'{written}'", f"'{wanted}'")
        before = since - (until - since) if "web_comparison" in query else since
        values = {
            "team": str(team_id),
            "first": _moment(before, time_zone),
            "since": _moment(since, time_zone),
            "end": _moment(until, time_zone),
            "time_zone": time_zone,
        }
        steps = f", {_STEPS}" if RAW[title] is _FUNNEL else ""
        raw = f"WITH sessions AS ({SESSIONS}){steps} {RAW[title]}"
        for name, value in values.items():
            raw = raw.replace(f"{{{name}}}", value)
        asked.append(Question(title, query, raw))
    return asked


def _moment(day: dt.date, time_zone: str) -> str:
    return f"toDateTime64('{day} 00:00:00', 6, '{time_zone}')"
