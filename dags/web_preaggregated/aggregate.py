"""Computes days of the web tables: into tables of the run, checked, then swapped in day by day.

Belongs here: the order of the work and what is kept of it. Not here: the SQL (`statements.py`), which days and when
(`assets.py`, `schedules.py`).

Whatever happens in the middle, the tables have each day as it was before or as it is now, and running it again gives
what one run would have given. Tables of a run that died are dropped by a later one.
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
    EVENTS_OF_A_PASS,
    SESSION_SETTINGS,
    SESSIONS,
    TABLE_SETTINGS,
    Grain,
    Window,
    counted_days_statement,
    events_by_team_statement,
    over_long_statement,
    sessions_statement,
    table_statement,
    top_pages_statement,
    windows_of,
    without_session_statement,
)

if TYPE_CHECKING:
    from clickhouse_driver import Client

logger = logging.getLogger(__name__)

# As long as the run itself may take.
TIMEOUT_SECONDS = 4 * 3600.0
TOP_PAGES = 10
COST_STATEMENT = """
SELECT sum(read_rows), sum(read_bytes), max(memory_usage) FROM system.query_log
WHERE event_date >= today() - 1 AND type = 'QueryFinish' AND query_id IN %(ids)s
"""
OLD_PARTITIONS_STATEMENT = """
SELECT DISTINCT partition FROM system.parts
WHERE database = currentDatabase() AND table = %(table)s AND active AND partition < %(first_kept)s
"""


@dataclass(frozen=True)
class Page:
    """One of the pages with most pageviews on a day."""

    team_id: int
    host: str
    pathname: str
    pageviews: int
    visitors: int


@dataclass(frozen=True)
class Day:
    """What a day has. Visitors are counted by team, and the rows by table."""

    sessions: int = 0
    pageviews: int = 0
    visitors: int = 0
    bounces: int = 0
    session_seconds: int = 0
    teams: int = 0
    pageviews_without_session: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    top_pages: Sequence[Page] = ()


@dataclass(frozen=True)
class AggregationOutcome:
    """What one call did: each day, and the seconds, rows and bytes read and the highest memory of its statements."""

    days: Mapping[dt.date, Day]
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
    events_of_a_pass: int = EVENTS_OF_A_PASS,
) -> AggregationOutcome:
    """Compute these days (UTC) of both tables of the grain, of these teams or of all, and swap them in.

    Days in a row are one pass over their events. A day without sessions is emptied, and so is what other teams had on
    it. May be called again at any time. On a cluster that replicates one host works, and reads the events of all; other
    hosts each work on their own events. Days before `drop_before` are dropped. More than `events_of_a_pass` events are
    sessionised in several passes, each of other teams. Raises StagingError, and what the
    cluster raises.
    """
    windows = windows_of(days, None if team_ids is None else tuple(team_ids))
    if not windows:
        raise ValueError("There is no day to compute: give at least one.")

    def work(client: "Client") -> AggregationOutcome:
        outcome = _work(client, grain, windows, run_id, cluster.database, events_of_a_pass)
        if drop_before is not None:
            _drop_days(client, grain, drop_before)
        return outcome

    table = grain.stats.name
    outcomes = cluster.map_write_hosts(table, work, retryable=True, timeout_seconds=TIMEOUT_SECONDS).result()
    return _merged(list(outcomes.values()))


@dataclass
class _Statements:
    """Runs statements on one client, and remembers their ids to tell what they cost."""

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
        """Rows and bytes read, and the highest memory in bytes, of all that was run."""
        self.client.execute("SYSTEM FLUSH LOGS query_log")
        ((rows, size, memory),) = self.client.execute(COST_STATEMENT, {"ids": self.ids})
        return rows, size, memory


def _work(
    client: "Client", grain: Grain, windows: Sequence[Window], run_id: str, database: str, events_of_a_pass: int
) -> AggregationOutcome:
    started = time.monotonic()
    statements = _Statements(client)
    days: dict[dt.date, Day] = {}
    for window in windows:
        with staging(client, (SESSIONS, *grain.tables), run_id, database) as (sessions, *targets):
            _sessionise(statements, window, sessions, events_of_a_pass)
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


def _sessionise(statements: _Statements, window: Window, sessions: str, events_of_a_pass: int) -> None:
    parameters = window.parameters()
    events_by_team = statements.run(events_by_team_statement(window), parameters, SESSION_SETTINGS)
    for part in window.passes(events_by_team, events_of_a_pass):
        statements.run(sessions_statement(part, sessions), part.parameters(), SESSION_SETTINGS)
    ((over_long,),) = statements.run(f"SELECT count() FROM {quoted(sessions)} WHERE is_over_long")  # noqa: S608 - a name made here
    if over_long:
        logger.info("%d session ids have events that span more than a session can have", over_long)
        statements.run(over_long_statement(window, sessions), parameters, SESSION_SETTINGS)


def _days(statements: _Statements, window: Window, sessions: str, targets: Mapping[str, Table]) -> dict[dt.date, Day]:
    days = {
        day: Day(sessions_, pageviews, visitors, bounces, seconds, teams)
        for day, sessions_, pageviews, visitors, bounces, seconds, teams in statements.run(
            counted_days_statement(sessions), None, SESSION_SETTINGS
        )
    }
    lost = statements.run(without_session_statement(window.team_ids), window.parameters(), SESSION_SETTINGS)
    without: dict[dt.date, int] = {day: count for day, count in lost}  # noqa: C416 - rows of any length to the type checker
    pages: dict[dt.date, list[Page]] = {}
    for day, *page in statements.run(top_pages_statement(sessions, TOP_PAGES), None, SESSION_SETTINGS):
        pages.setdefault(day, []).append(Page(*page))
    rows: dict[dt.date, dict[str, int]] = {day: {table.name: 0 for table in targets.values()} for day in window.days}
    for target, table in targets.items():
        for day, count in statements.run(f"SELECT toDate(period_bucket), count() FROM {quoted(target)} GROUP BY 1"):  # noqa: S608 - a name made here
            rows[day][table.name] = count
    return {
        day: dataclasses.replace(
            days.get(day, Day()),
            pageviews_without_session=without.get(day, 0),
            rows=rows[day],
            top_pages=pages.get(day, ()),
        )
        for day in window.days
    }


def _check(client: "Client", target: str, table: Table, computed: Mapping[dt.date, Day]) -> None:
    """Raise StagingError when a staging table is not of the form of its table, or has not what the sessions have."""
    check_structure(client, target, table)
    statement = f"SELECT toDate(period_bucket), sumMerge(pageviews_count_state) FROM {quoted(target)} GROUP BY 1"  # noqa: S608 - a name made here
    found = dict(client.execute(statement))
    expected = {day: one.pageviews for day, one in computed.items() if one.pageviews}
    if found != expected:
        raise StagingError(f"{target} has the pageviews {found}, and the sessions have {expected}.")


def _drop_days(client: "Client", grain: Grain, before: dt.date) -> None:
    for table in grain.tables:
        parameters = {"table": table.name, "first_kept": f"{before:%Y%m%d}"}
        for (partition,) in client.execute(OLD_PARTITIONS_STATEMENT, parameters):
            client.execute(f"ALTER TABLE {quoted(table.name)} DROP PARTITION {int(partition)}")


def _merged(outcomes: Sequence[AggregationOutcome]) -> AggregationOutcome:
    """Of hosts that have events of their own each: the numbers added, the busiest host's memory."""
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


def _sum(days: Sequence[Day]) -> Day:
    return Day(
        sessions=sum(day.sessions for day in days),
        pageviews=sum(day.pageviews for day in days),
        visitors=sum(day.visitors for day in days),
        bounces=sum(day.bounces for day in days),
        session_seconds=sum(day.session_seconds for day in days),
        teams=max(day.teams for day in days),
        pageviews_without_session=sum(day.pageviews_without_session for day in days),
        rows={name: sum(day.rows[name] for day in days) for name in days[0].rows},
        top_pages=sorted((page for day in days for page in day.top_pages), key=lambda page: -page.pageviews)[
            :TOP_PAGES
        ],
    )
