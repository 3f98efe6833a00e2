"""The demo's report of the pre-aggregated web tables: tables of text and a plot."""

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.local.text import table
from dags.web_preaggregated.statements import AFTER_24_HOURS, NO_SESSION_ID, TEAM_NOT_SELECTED

TOP_PAGES = 10
MAX_PAGE_CHARACTERS = 90
MAX_LABELS = 10

# Visitors and sessions are counted per team, then added: no visitor belongs to two teams.
DAYS_STATEMENT = """
SELECT day, sum(visitors), sum(views), sum(sessions), sum(bounces), sum(seconds) FROM (
    SELECT
        team_id,
        toDate(started_at) AS day,
        uniqExact(person_id) AS visitors,
        sum(pageviews) AS views,
        count() AS sessions,
        sum(is_bounce) AS bounces,
        sum(duration_seconds) AS seconds
    FROM web_sessions
    WHERE team_id IN %(team_ids)s AND started_at >= %(first)s AND started_at < toDate(%(last)s) + 1
    GROUP BY team_id, day
)
GROUP BY day ORDER BY day
"""
PAGES_STATEMENT = """
SELECT host, pathname, sum(visitors), sum(pageviews) AS views FROM (
    SELECT
        team_id,
        page.host AS host,
        page.pathname AS pathname,
        uniqExact(person_id) AS visitors,
        count() AS pageviews
    FROM web_sessions ARRAY JOIN pages AS page
    WHERE team_id IN %(team_ids)s AND started_at >= %(first)s AND started_at < toDate(%(last)s) + 1
    GROUP BY team_id, host, pathname
)
GROUP BY host, pathname ORDER BY views DESC, host, pathname LIMIT %(pages)s
"""

ACCOUNTING_STATEMENT = """
SELECT sum(raw_pageviews), sumMap(left_out) FROM web_session_days FINAL WHERE day >= %(first)s AND day <= %(last)s
"""
REMEDIES = {
    NO_SESSION_ID: "send $session_id or distinct_id with each event",
    TEAM_NOT_SELECTED: "select the team with the asset web_analytics_team_selection",
    AFTER_24_HOURS: "begin a new session id at the latest after 24 hours",
}


@dataclass(frozen=True)
class Accounting:
    """The pageviews of the raw events of all teams on some days, and those of them that are in no session, by rule."""

    raw_pageviews: int
    left_out: Mapping[str, int]


@dataclass(frozen=True)
class DayTotals:
    """The totals of a day. A bounce is a session with one page view."""

    day: dt.date
    visitors: int
    pageviews: int
    sessions: int
    bounces: int
    session_seconds: int

    @property
    def bounce_rate(self) -> float:
        """Share of the sessions that were bounces; 0 without sessions."""
        return self.bounces / self.sessions if self.sessions else 0.0


@dataclass(frozen=True)
class PageTotals:
    """The totals of a page over all days."""

    host: str
    pathname: str
    visitors: int
    pageviews: int


@dataclass(frozen=True)
class WebReport:
    """The totals of some teams and days, by day and by page, and the accounting of these days."""

    days: list[DayTotals]
    pages: list[PageTotals]
    accounting: Accounting


def read(cluster: ClickhouseCluster, team_ids: Sequence[int], first: dt.date, last: dt.date) -> WebReport:
    """Read the report from ClickHouse."""
    parameters = {"team_ids": tuple(team_ids), "first": first, "last": last, "pages": TOP_PAGES}
    days = cluster.any_host(Query(DAYS_STATEMENT, parameters)).result()
    pages = cluster.any_host(Query(PAGES_STATEMENT, parameters)).result()
    (accounting,) = cluster.any_host(Query(ACCOUNTING_STATEMENT, {"first": first, "last": last})).result()
    return WebReport([DayTotals(*row) for row in days], [PageTotals(*row) for row in pages], Accounting(*accounting))


def show_accounting(accounting: Accounting) -> None:
    """Print the number of pageviews in sessions, and of those left out by each rule, with its remedy."""
    total = accounting.raw_pageviews
    print(f"\nPageviews of all teams on these days: {total:,} in the raw events")
    print(f"- {total - sum(accounting.left_out.values()):,} are in sessions")
    for rule, pageviews in sorted(accounting.left_out.items()):
        remedy = f" ({REMEDIES[rule]})" if rule in REMEDIES else ""
        print(f"- {pageviews:,} are left out: {rule.replace('_', ' ')}{remedy}")


def show(report: WebReport) -> None:
    """Print the tables."""
    print("\nWeb analytics by day")
    head = ["day", "visitors", "pageviews", "sessions", "bounce rate", "average session"]
    print(table(head, [_cells(day, head) for day in report.days]))
    print("\nTop pages")
    head = ["pageviews", "visitors", "page"]
    rows = [
        [*_right([f"{page.pageviews:,}", f"{page.visitors:,}"], head), _shortened(page.host + page.pathname)]
        for page in report.pages
    ]
    print(table(head, rows))


def draw(report: WebReport, path: Path) -> Path:
    """Draw the days, of which there must be one, as a PNG; return its path."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    days = [day.day for day in report.days]
    figure = Figure(figsize=(9, 6), layout="constrained")
    counts, rates = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for name in ("pageviews", "sessions", "visitors"):
        counts.plot(days, [getattr(day, name) for day in report.days], marker="o", label=name)
    counts.set_ylim(bottom=0)
    counts.set_ylabel("per day")
    counts.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    rates.bar(days, [day.bounce_rate for day in report.days], width=0.7, color="tab:gray")
    rates.set_ylim(0, 1)
    rates.yaxis.set_major_formatter(PercentFormatter(1))
    rates.set_ylabel("bounce rate")
    shown = days[:: math.ceil(len(days) / MAX_LABELS)]
    rates.set_xticks(shown, [f"{day:%a}\n{day:%m-%d}" for day in shown])
    midnight, margin = dt.time(), dt.timedelta(hours=16)
    rates.set_xlim(dt.datetime.combine(days[0], midnight) - margin, dt.datetime.combine(days[-1], midnight) + margin)
    for axes in (counts, rates):
        axes.set_axisbelow(True)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Web analytics, {days[0]} to {days[-1]} (UTC)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _cells(day: DayTotals, head: Sequence[str]) -> list[str]:
    average = day.session_seconds / day.sessions if day.sessions else 0
    numbers = [
        f"{day.visitors:,}",
        f"{day.pageviews:,}",
        f"{day.sessions:,}",
        f"{day.bounce_rate:.1%}",
        f"{average:.0f} s",
    ]
    return [f"{day.day:%a %Y-%m-%d}", *_right(numbers, head[1:])]


def _right(numbers: Sequence[str], head: Sequence[str]) -> list[str]:
    return [number.rjust(len(name)) for number, name in zip(numbers, head, strict=False)]


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_PAGE_CHARACTERS else text[: MAX_PAGE_CHARACTERS - 1] + "…"
