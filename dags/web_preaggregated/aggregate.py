"""Computing days of the web tables: into staging tables of the run, checked, then swapped in day by day.

If a run dies, each day of the tables is either unchanged or complete, and running it again gives the same result. A
later run drops the staging tables of a run that died.
"""

import dataclasses
import datetime as dt
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import Table
from dags.common.clickhouse.query import Rows, quoted
from dags.common.clickhouse.staging import StagingError, check_structure, staging, swap_statement
from dags.web_preaggregated.statements import (
    MAX_EVENTS_PER_PASS,
    SESSION_SETTINGS,
    SESSIONS,
    TABLE_SETTINGS,
    Grain,
    Window,
    counted_days_statement,
    events_by_team_statement,
    sessions_statement,
    table_statement,
    too_long_sessions_statement,
    top_pages_statement,
    windows_of,
    without_session_statement,
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
OLD_PARTITIONS_STATEMENT = """
SELECT DISTINCT partition FROM system.parts
WHERE database = currentDatabase() AND table = %(table)s AND active AND partition < %(first_kept)s
"""


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
    """The numbers of a day. Visitors are counted by team, rows by table."""

    sessions: int = 0
    pageviews: int = 0
    visitors: int = 0
    bounces: int = 0
    session_seconds: int = 0
    teams: int = 0
    pageviews_without_session: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
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
    grain: Grain,
    days: Iterable[dt.date],
    *,
    run_id: str,
    team_ids: Sequence[int] | None = None,
    drop_before: dt.date | None = None,
    max_events_per_pass: int = MAX_EVENTS_PER_PASS,
) -> AggregationOutcome:
    """Compute these days (UTC) of both tables of the grain, for these teams or for all, and swap them in.

    Consecutive days share one pass over their events. A day without sessions, and the rows of other teams, are removed.
    It may be called again at any time. On a replicated cluster one host computes from the events of all; otherwise each
    host computes from its own events. Days before `drop_before` are dropped. More than `max_events_per_pass` events are
    read in several passes by team. Raises StagingError, and what the cluster raises.
    """
    windows = windows_of(days, None if team_ids is None else tuple(team_ids))
    if not windows:
        raise ValueError("There are no days to compute: give at least one.")

    def compute(client: "Client") -> AggregationOutcome:
        outcome = _compute(client, grain, windows, run_id, cluster.database, max_events_per_pass)
        if drop_before is not None:
            _drop_days(client, grain, drop_before)
        return outcome

    table = grain.stats.name
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
    client: "Client", grain: Grain, windows: Sequence[Window], run_id: str, database: str, max_events_per_pass: int
) -> AggregationOutcome:
    started = time.monotonic()
    statements = _Statements(client)
    days: dict[dt.date, DayNumbers] = {}
    for window in windows:
        with staging(client, (SESSIONS, *grain.tables), run_id, database) as (sessions, *targets):
            _build_sessions(statements, window, sessions, max_events_per_pass)
            for target, table in zip(targets, grain.tables, strict=True):
                statements.run(table_statement(grain, table, target, sessions), None, TABLE_SETTINGS)
            computed = _days(statements, window, sessions, dict(zip(targets, grain.tables, strict=True)))
            for target, table in zip(targets, grain.tables, strict=True):
                _check(client, target, table, computed)
            for day in window.days:
                for target, table in zip(targets, grain.tables, strict=True):
                    statements.run(swap_statement(table, target, day, computed[day].rows[table.name]))
        days |= computed
    rows_read, bytes_read, memory = statements.cost()
    return AggregationOutcome(days, time.monotonic() - started, rows_read, bytes_read, memory)


def _build_sessions(statements: _Statements, window: Window, sessions: str, max_events_per_pass: int) -> None:
    parameters = window.parameters()
    events_by_team = statements.run(events_by_team_statement(window), parameters, SESSION_SETTINGS)
    for part in window.passes(events_by_team, max_events_per_pass):
        statements.run(sessions_statement(part, sessions), part.parameters(), SESSION_SETTINGS)
    ((too_long,),) = statements.run(f"SELECT count() FROM {quoted(sessions)} WHERE is_too_long")  # noqa: S608 - a generated name
    if too_long:
        logger.info("%d session ids have events that span more than a session", too_long)
        statements.run(too_long_sessions_statement(window, sessions), parameters, SESSION_SETTINGS)


def _days(
    statements: _Statements, window: Window, sessions: str, targets: Mapping[str, Table]
) -> dict[dt.date, DayNumbers]:
    days = {
        day: DayNumbers(sessions_, pageviews, visitors, bounces, seconds, teams)
        for day, sessions_, pageviews, visitors, bounces, seconds, teams in statements.run(
            counted_days_statement(sessions), None, SESSION_SETTINGS
        )
    }
    without_session = statements.run(without_session_statement(window.team_ids), window.parameters(), SESSION_SETTINGS)
    without: dict[dt.date, int] = {day: count for day, count in without_session}  # noqa: C416 - rows of any length to the type checker
    pages: dict[dt.date, list[TopPage]] = {}
    for day, *page in statements.run(top_pages_statement(sessions, MAX_TOP_PAGES), None, SESSION_SETTINGS):
        pages.setdefault(day, []).append(TopPage(*page))
    rows: dict[dt.date, dict[str, int]] = {day: {table.name: 0 for table in targets.values()} for day in window.days}
    for target, table in targets.items():
        for day, count in statements.run(f"SELECT toDate(period_bucket), count() FROM {quoted(target)} GROUP BY 1"):  # noqa: S608 - a generated name
            rows[day][table.name] = count
    return {
        day: dataclasses.replace(
            days.get(day, DayNumbers()),
            pageviews_without_session=without.get(day, 0),
            rows=rows[day],
            top_pages=pages.get(day, ()),
        )
        for day in window.days
    }


def _check(client: "Client", target: str, table: Table, computed: Mapping[dt.date, DayNumbers]) -> None:
    """Raise StagingError when a staging table differs from its table in form, or from the sessions in pageviews."""
    check_structure(client, target, table)
    statement = f"SELECT toDate(period_bucket), sumMerge(pageviews_count_state) FROM {quoted(target)} GROUP BY 1"  # noqa: S608 - a generated name
    found = dict(client.execute(statement))
    expected = {day: one.pageviews for day, one in computed.items() if one.pageviews}
    if found != expected:
        raise StagingError(f"{target} has the pageviews {found}, but the sessions have {expected}.")


def _drop_days(client: "Client", grain: Grain, before: dt.date) -> None:
    for table in grain.tables:
        parameters = {"table": table.name, "first_kept": f"{before:%Y%m%d}"}
        for (partition,) in client.execute(OLD_PARTITIONS_STATEMENT, parameters):
            client.execute(f"ALTER TABLE {quoted(table.name)} DROP PARTITION {int(partition)}")


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
        pageviews_without_session=sum(day.pageviews_without_session for day in days),
        rows={name: sum(day.rows[name] for day in days) for name in days[0].rows},
        top_pages=sorted((page for day in days for page in day.top_pages), key=lambda page: -page.pageviews)[
            :MAX_TOP_PAGES
        ],
    )
