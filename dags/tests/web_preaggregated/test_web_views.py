import datetime as dt
import random
from collections import defaultdict
from dataclasses import replace
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from dags.common.clickhouse.query import Insert
from dags.common.clickhouse.views import WEB_VIEWS
from dags.local.demo import report
from dags.tests.web_preaggregated.events import Event, Override, Web, person
from dags.tests.web_preaggregated.questions import PAGE, QUESTION, RAW, questions
from dags.web_preaggregated.statements import NO_SESSION_ID

SINCE, UNTIL = dt.date(2026, 11, 2), dt.date(2026, 11, 9)
# In America/Los_Angeles a clock is set back within the week before.
TIME_ZONES = ("UTC", "Asia/Kolkata", "America/Los_Angeles")
FIRST_DAY, DAYS = dt.date(2026, 10, 25), 17
SESSIONS = 400
HOSTS = ("www.example.com", "docs.example.com")
PATHS = ("/", "/product/1", "/docs/1", "/blog", "/größe")
SOURCES = (
    ("$direct", "", "", ""),
    ("www.google.com", "", "", ""),
    ("news.example.org", "", "", ""),
    ("www.google.com", "google", "cpc", "autumn"),
    ("$direct", "newsletter", "email", "autumn"),
    ("$direct", "", "", "untagged"),
)
COLUMNS = (
    *("team_id", "session_id", "timestamp", "uuid", "event", "distinct_id", "person_id", "inserted_at", "host"),
    *("pathname", "referring_domain", "utm_source", "utm_medium", "utm_campaign", "browser", "os", "device_type"),
    "country_code",
)


def history(seed: int) -> list[tuple[object, ...]]:
    """Return events of some hundred sessions of two teams, some of them inserted twice."""
    chance = random.Random(seed)  # noqa: S311 - test data
    rows: list[tuple[object, ...]] = []
    start = dt.datetime.combine(FIRST_DAY, dt.time(), tzinfo=dt.UTC)
    for number in range(SESSIONS):
        visitor = 2 * chance.randrange(20) + number % 2
        at = start + dt.timedelta(microseconds=chance.randrange(DAYS * 24 * 3600 * 10**6))
        referrer, *campaign = chance.choice(SOURCES)
        browser, system, device = chance.choice((("Firefox", "Linux", "Desktop"), ("Safari", "iOS", "Mobile")))
        for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
            row: tuple[object, ...] = (
                1 + visitor % 2,
                # Both teams have the same ids.
                f"session {number // 2}",
                at,
                UUID(int=chance.getrandbits(128)),
                chance.choices(("$pageview", "$screen", "$pageleave"), (6, 1, 1))[0],
                f"visitor {visitor}",
                person(visitor),
                dt.datetime(2026, 11, 20, tzinfo=dt.UTC),
                chance.choice(HOSTS),
                chance.choice(PATHS),
                referrer,
                *campaign,
                browser,
                system,
                device,
                chance.choice(("DE", "IN", "US", "")),
            )
            rows.extend([row] * chance.choice((1, 1, 1, 2)))
            at += dt.timedelta(microseconds=chance.randrange(1, 2 * 3600 * 10**6))
    return rows


@pytest.fixture
def asked(web: Web) -> Web:
    """Two teams with computed sessions; some visitors of the first were moved to other persons."""
    rows = history(seed=13)
    # In two parts, so that duplicates are not merged yet.
    for part in (rows[::2], rows[1::2]):
        web.cluster.any_host(Insert("events", COLUMNS, part)).result()
    web.override(Override("visitor 0", person(2)), Override("visitor 4", person(2)))
    web.compute(*(FIRST_DAY + dt.timedelta(days=n) for n in range(-1, DAYS + 1)))
    return web


def test_every_question_of_the_page_has_one_for_the_raw_events_and_every_view_is_asked() -> None:
    found = {question["title"]: question["query"] for question in QUESTION.finditer(PAGE.read_text())}
    assert set(found) == set(RAW)
    assert len(found) >= 12
    unasked = {view.name for view in WEB_VIEWS if not any(f"{view.name}(" in query for query in found.values())}
    assert unasked == set()


def test_every_question_of_the_page_is_answered_as_the_raw_events_do_in_every_time_zone(asked: Web) -> None:
    for time_zone in TIME_ZONES:
        for team_id in (1, 2):
            for question in questions(team_id, SINCE, UNTIL, time_zone):
                answer, expected = asked.rows(question.query), asked.rows(question.raw)
                assert answer, question.title
                assert len(answer) == len(expected), question.title
                for row, expected_row in zip(answer, expected, strict=True):
                    assert row == pytest.approx(expected_row, nan_ok=True), (question.title, time_zone, team_id)


def test_hours_days_and_weeks_begin_where_the_time_zone_says(asked: Web) -> None:
    starts = [at for (at,) in asked.rows("SELECT started_at FROM web_sessions WHERE team_id = 1")]
    for time_zone in TIME_ZONES:
        zone = ZoneInfo(time_zone)
        local = [at.replace(tzinfo=dt.UTC).astimezone(zone) for at in starts]
        inside = [at for at in local if SINCE - dt.timedelta(days=7) <= at.date() < UNTIL]
        for grain in ("hour", "day", "week"):
            expected: dict[dt.datetime, int] = defaultdict(int)
            for at in inside:
                hour = at.replace(minute=0, second=0, microsecond=0)
                midnight = dt.datetime.combine(at.date(), dt.time(), zone)
                monday = dt.datetime.combine(at.date() - dt.timedelta(days=at.weekday()), dt.time(), zone)
                expected[{"hour": hour, "day": midnight, "week": monday}[grain].astimezone(dt.UTC)] += 1
            found = asked.rows(
                "SELECT toTimeZone(period, 'UTC'), sessions FROM web_overview(team = 1, since = %(since)s, "
                "until = %(until)s, time_zone = %(time_zone)s, grain = %(grain)s)",
                since=str(SINCE - dt.timedelta(days=7)),
                until=str(UNTIL),
                time_zone=time_zone,
                grain=grain,
            )
            assert {at.replace(tzinfo=dt.UTC): sessions for at, sessions in found} == expected


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("grain = 'month'", "month"),
        ("since = '02.11.2026'", "since"),
        ("time_zone = 'Europe/Berlni'", "Berlni"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(web: Web, parameter: str, reason: str) -> None:
    values = {
        "team": "team = 1",
        "since": "since = '2026-11-02'",
        "until": "until = '2026-11-09'",
        "time_zone": "time_zone = 'UTC'",
        "grain": "grain = 'day'",
        parameter.split(maxsplit=1)[0]: parameter,
    }
    with pytest.raises(Exception, match=reason):
        web.rows(f"SELECT * FROM web_overview({', '.join(values.values())})")  # noqa: S608 - constants


def test_only_the_days_and_the_team_that_are_asked_for_are_read(web: Web) -> None:
    pageview = Event(dt.datetime(2026, 11, 3, 12, tzinfo=dt.UTC))
    days = [pageview.timestamp + dt.timedelta(days=n) for n in range(10)]
    web.add(*(replace(pageview, timestamp=at, session_id=str(at), uuid=UUID(int=n + 1)) for n, at in enumerate(days)))
    web.compute(*(at.date() for at in days))
    for view in WEB_VIEWS:
        more = {"web_overview": ", grain = 'day'", "web_funnel": ", paths = ['/', '/blog']"}.get(view.name, "")
        zone = "team = 1, since = '2026-11-05', until = '2026-11-06', time_zone = 'Asia/Kolkata'"
        plan = "\n".join(
            line
            for (line,) in web.rows(f"EXPLAIN indexes = 1 SELECT * FROM {view.name}({zone}{more})")  # noqa: S608 - constants
        )
        parts = 2 if view.name == "web_comparison" else 1
        assert f"Parts: {parts}/10" in plan, plan
        assert "team_id in [1, 1]" in plan


def test_a_funnel_counts_steps_in_order_with_other_pages_between(web: Web) -> None:
    def session(name: str, *paths: str) -> list[Event]:
        at = dt.datetime(2026, 11, 3, 12, tzinfo=dt.UTC)
        return [
            Event(at + dt.timedelta(seconds=n), name, path, person_id=person(int(name)), distinct_id=name)
            for n, path in enumerate(paths)
        ]

    web.add(
        *session("1", "/", "/other", "/pricing", "/signup"),
        *session("2", "/pricing", "/", "/signup"),
        *session("3", "/signup", "/pricing", "/", "/pricing"),
        *session("4", "/other"),
    )
    web.compute(dt.date(2026, 11, 3))
    common = "team = 1, since = '2026-11-03', until = '2026-11-04', time_zone = 'UTC'"
    steps = web.rows(f"SELECT * FROM web_funnel({common}, paths = ['/', '/pricing', '/signup']) ORDER BY step")  # noqa: S608 - constants
    assert steps == [
        (1, "/", 3, 3, 1.0, 1.0),
        (2, "/pricing", 2, 2, 2 / 3, 2 / 3),
        (3, "/signup", 1, 1, 1 / 3, 1 / 2),
    ]
    # A path that nobody saw, and one that is asked for twice.
    assert web.rows(f"SELECT sessions FROM web_funnel({common}, paths = ['/none', '/']) ORDER BY step") == [(0,), (0,)]  # noqa: S608 - constants
    assert web.rows(
        f"SELECT sessions FROM web_funnel({common}, paths = ['/pricing', '/pricing']) ORDER BY step"  # noqa: S608 - constants
    ) == [(3,), (1,)]


def test_the_report_of_the_demo_accounts_for_every_pageview(web: Web) -> None:
    day = dt.date(2026, 11, 3)
    pageview = Event(dt.datetime(2026, 11, 3, 12, tzinfo=dt.UTC), "of a session")
    web.add(pageview, *(replace(pageview, session_id="", uuid=UUID(int=n)) for n in (1, 2)))
    web.compute(day, day + dt.timedelta(days=1))
    found = report.read(web.cluster, [1], day, day)
    assert found.accounting == report.Accounting(3, {NO_SESSION_ID: 2})
    assert found.days == [report.DayTotals(day, 1, 1, 1, 1, 0)]
    assert found.pages == [report.PageTotals("example.com", "/", 1, 1)]
    empty = report.read(web.cluster, [1], day + dt.timedelta(days=1), day + dt.timedelta(days=1))
    assert empty == report.WebReport([], [], report.Accounting(0, {}))


def test_a_time_without_sessions_compares_as_zero_without_rates(web: Web) -> None:
    rows = web.rows(
        "SELECT * FROM web_comparison(team = 1, since = '2026-11-03', until = '2026-11-04', time_zone = 'UTC')"
    )
    assert {name: values for name, *values in rows} == {
        **{name: [0.0, 0.0, None] for name in ("visitors", "sessions", "pageviews", "bounces")},
        **{name: [None, None, None] for name in ("bounce_rate", "average_session_seconds", "pageviews_per_session")},
    }
