"""Computing days of `web_sessions`: into a staging table of the run, then swapped in and recorded day by day.

If a run dies, each day of the table is either unchanged or complete, and running it again gives the same result. A day
is recorded in `web_session_days` after it was swapped in, with the fingerprint of its input from before: if a run dies
between, the day is stale, and computed again. A later run drops the staging table of a run that died.
"""

import datetime as dt
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert, Rows, quoted
from dags.common.clickhouse.staging import check_structure, staging, swap_statement
from dags.common.clickhouse.tables import WEB_SESSION_DAYS, WEB_SESSIONS
from dags.web_preaggregated.stale_days import input_fingerprints
from dags.web_preaggregated.statements import (
    AFTER_24_HOURS,
    IS_MARK,
    MAX_EVENTS_PER_PASS,
    SESSION_SETTINGS,
    Window,
    continued_pageviews_statement,
    counted_days_statement,
    counted_pages_statement,
    events_by_team_statement,
    raw_pageviews_statement,
    sessions_statement,
    too_long_sessions_statement,
    top_pages_statement,
    windows_of,
)

if TYPE_CHECKING:
    from clickhouse_driver import Client

logger = logging.getLogger(__name__)

# The maximum runtime of the run itself.
TIMEOUT_SECONDS = 4 * 3600.0
MAX_TOP_PAGES = 10
COST_STATEMENT = """
SELECT sum(read_rows), sum(read_bytes), max(memory_usage) FROM system.query_log
WHERE event_date >= today() - 1 AND type = 'QueryFinish' AND query_id IN %(ids)s
"""
DAY_COLUMNS = ("day", "input_fingerprint", "sessions", "pageviews", "raw_pageviews", "left_out", "run_id", "version")


@dataclass(frozen=True)
class TopPage:
    """One of the pages with most pageviews on a day."""

    team_id: int
    host: str
    pathname: str
    pageviews: int
    visitors: int


@dataclass(frozen=True)
class DayNumbers:
    """The numbers of a day: of the sessions that started on it, with visitors by team.

    `raw_pageviews` is the number of pageviews of the raw events of the day. Of these, `left_out` are in no session, by
    rule; the others are in sessions that started on this day or the day before.
    """

    sessions: int = 0
    pageviews: int = 0
    visitors: int = 0
    bounces: int = 0
    session_seconds: int = 0
    teams: int = 0
    raw_pageviews: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    top_pages: Sequence[TopPage] = ()


@dataclass(frozen=True)
class AggregationOutcome:
    """The result of one call: each day, the duration, and the rows, bytes and peak memory of its statements."""

    days: Mapping[dt.date, DayNumbers]
    seconds: float
    rows_read: int
    bytes_read: int
    peak_memory_bytes: int


def pre_aggregate(
    cluster: ClickhouseCluster,
    days: Iterable[dt.date],
    *,
    run_id: str,
    team_ids: Sequence[int] | None = None,
    max_events_per_pass: int = MAX_EVENTS_PER_PASS,
) -> AggregationOutcome:
    """Compute the sessions of these days (UTC), for these teams or for all, swap them in and record the days.

    Consecutive days share one pass over their events. A day without sessions, and the rows of other teams, are removed.
    It may be called again at any time. On a replicated cluster one host computes from the events of all; otherwise each
    host computes from its own events. More than `max_events_per_pass` events are read in several passes by team. Raises
    StagingError, and what the cluster raises.
    """
    windows = windows_of(days, None if team_ids is None else tuple(team_ids))
    if not windows:
        raise ValueError("There are no days to compute: give at least one.")

    def compute(client: "Client") -> AggregationOutcome:
        return _compute(client, windows, run_id, cluster.database, max_events_per_pass)

    table = WEB_SESSIONS.name
    outcomes = cluster.map_write_hosts(table, compute, retryable=True, timeout_seconds=TIMEOUT_SECONDS).result()
    return _merged(list(outcomes.values()))


@dataclass
class _Statements:
    """Statements on one client, whose query ids are kept to measure their cost."""

    client: "Client"
    ids: list[str] = field(default_factory=list)

    def run(
        self,
        statement: str,
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, int | str] | None = None,
    ) -> Rows:
        query_id = str(uuid.uuid4())
        self.ids.append(query_id)
        rows: Rows = self.client.execute(
            statement,
            None if parameters is None else dict(parameters),
            settings=dict(settings or {}),
            query_id=query_id,
        )
        return rows

    def cost(self) -> tuple[int, int, int]:
        """Return rows read, bytes read and peak memory in bytes of all statements that were run."""
        self.client.execute("SYSTEM FLUSH LOGS query_log")
        ((rows, size, memory),) = self.client.execute(COST_STATEMENT, {"ids": self.ids})
        return rows, size, memory


def _compute(
    client: "Client", windows: Sequence[Window], run_id: str, database: str, max_events_per_pass: int
) -> AggregationOutcome:
    started = time.monotonic()
    statements = _Statements(client)
    days: dict[dt.date, DayNumbers] = {}
    for window in windows:
        fingerprints = input_fingerprints(client, window.days, window.team_ids)
        with staging(client, (WEB_SESSIONS,), run_id, database) as (target,):
            check_structure(client, target, WEB_SESSIONS)
            marks = _build_sessions(statements, window, target, max_events_per_pass)
            computed = _days(statements, window, target, marks=marks)
            for day in window.days:
                statements.run(swap_statement(WEB_SESSIONS, target, day, computed[day].sessions))
                _record(client, day, computed[day], fingerprints[day], run_id)
        days |= computed
    rows_read, bytes_read, memory = statements.cost()
    return AggregationOutcome(days, time.monotonic() - started, rows_read, bytes_read, memory)


def _build_sessions(statements: _Statements, window: Window, target: str, max_events_per_pass: int) -> int:
    """Fill the staging table; return the number of ids that are marked in it."""
    parameters = window.parameters()
    events_by_team = statements.run(events_by_team_statement(window), parameters, SESSION_SETTINGS)
    for part in window.passes(events_by_team, max_events_per_pass):
        statements.run(sessions_statement(part, target), part.parameters(), SESSION_SETTINGS)
    statement = f"SELECT count(), countIf(duration_seconds = 1) FROM {quoted(target)} WHERE {IS_MARK}"  # noqa: S608 - a generated name
    ((marks, too_long),) = statements.run(statement)
    if too_long:
        logger.info("%d session ids have events that span more than a session", too_long)
        statements.run(too_long_sessions_statement(window, target), parameters, SESSION_SETTINGS)
    return int(marks)


def _days(statements: _Statements, window: Window, target: str, *, marks: int) -> dict[dt.date, DayNumbers]:
    names = ("sessions", "pageviews", "visitors", "bounces", "session_seconds", "teams")
    found = {
        day: dict(zip(names, numbers, strict=True))
        for day, *numbers in statements.run(counted_days_statement(target), None, SESSION_SETTINGS)
    }
    raw, left_out = _accounting(statements, window, target, marks=marks)
    pages: dict[dt.date, list[TopPage]] = {}
    for day, *page in statements.run(top_pages_statement(target, MAX_TOP_PAGES), None, SESSION_SETTINGS):
        pages.setdefault(day, []).append(TopPage(*page))
    return {
        day: DayNumbers(
            **found.get(day, {}),
            raw_pageviews=raw.get(day, 0),
            left_out=left_out.get(day, {}),
            top_pages=pages.get(day, ()),
        )
        for day in window.days
    }


def _accounting(
    statements: _Statements, window: Window, target: str, *, marks: int
) -> tuple[dict[dt.date, int], dict[dt.date, dict[str, int]]]:
    """Return by day the pageviews of the raw events, and those of them that are in no session by rule."""
    in_sessions: dict[dt.date, int] = dict(statements.run(counted_pages_statement(target), None, SESSION_SETTINGS))
    if marks:
        ((continued,),) = statements.run(
            continued_pageviews_statement(window, target), window.parameters(), SESSION_SETTINGS
        )
        in_sessions[window.first] = in_sessions.get(window.first, 0) + continued
    totals: dict[dt.date, int] = {}
    left_out: dict[dt.date, dict[str, int]] = {}
    counts = statements.run(raw_pageviews_statement(window.team_ids), window.parameters(), SESSION_SETTINGS)
    for day, rule, count in counts:
        totals[day] = totals.get(day, 0) + count
        number = count if rule else count - in_sessions.get(day, 0)
        if number:
            left_out.setdefault(day, {})[rule or AFTER_24_HOURS] = number
    return totals, left_out


def _record(client: "Client", day: dt.date, numbers: DayNumbers, fingerprint: int, run_id: str) -> None:
    row = (
        day,
        fingerprint,
        numbers.sessions,
        numbers.pageviews,
        numbers.raw_pageviews,
        dict(numbers.left_out),
        run_id,
        time.time_ns(),
    )
    Insert(WEB_SESSION_DAYS.name, DAY_COLUMNS, [row])(client)


def _merged(outcomes: Sequence[AggregationOutcome]) -> AggregationOutcome:
    """Return the sum of the hosts' outcomes, with the longest duration and the highest memory."""
    if len(outcomes) == 1:
        return outcomes[0]
    days = {day: _sum([outcome.days[day] for outcome in outcomes]) for day in outcomes[0].days}
    return AggregationOutcome(
        days,
        max(outcome.seconds for outcome in outcomes),
        sum(outcome.rows_read for outcome in outcomes),
        sum(outcome.bytes_read for outcome in outcomes),
        max(outcome.peak_memory_bytes for outcome in outcomes),
    )


def _sum(days: Sequence[DayNumbers]) -> DayNumbers:
    return DayNumbers(
        sessions=sum(day.sessions for day in days),
        pageviews=sum(day.pageviews for day in days),
        visitors=sum(day.visitors for day in days),
        bounces=sum(day.bounces for day in days),
        session_seconds=sum(day.session_seconds for day in days),
        teams=max(day.teams for day in days),
        raw_pageviews=sum(day.raw_pageviews for day in days),
        left_out={
            rule: sum(day.left_out.get(rule, 0) for day in days)
            for rule in sorted({r for day in days for r in day.left_out})
        },
        top_pages=sorted((page for day in days for page in day.top_pages), key=lambda page: -page.pageviews)[
            :MAX_TOP_PAGES
        ],
    )
