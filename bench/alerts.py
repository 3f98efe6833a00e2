"""The alert router beside a stock `run_failure_sensor` that posts each failure, on a fake Slack with Slack's pace.

Run: `python bench/alerts.py` (about ten minutes; `--runs 10000 --failures 500` for a smaller one). All in one run on
one machine, on a Postgres server of its own that holds Dagster's storage with 100,000 finished runs (five events and
five tags each, over 30 days, copied in SQL from runs that Dagster executed), and the router's store:

- the database time of a quiet tick: everything that its client waits for, including connecting and committing, as the
  median of ticks without anything new; then of a tick that sweeps, and of one that evaluates the watch rules;
- how long failures take until they are notified: 1, 100 (of 10 jobs), 5,000 of one backfill, and 5,000 of 50 jobs in
  turns, all of one team and so of one channel. Another process writes them through a DagsterInstance as fast as it can,
  beginning right after a tick. Ticks come as from the daemon, which checks every 5 seconds whether the interval of the
  sensor has passed;
- the stock sensor in the same way at its interval of 30 seconds: 1 failure, then a sample of 15. The times for 100 and
  5,000 are extrapolated from how many of the sample one tick handled, and the names of the figures say so.

A failure is notified when a message of the fake Slack names its job or its backfill; a backfill is counted when a
message gives the number of all its failures. A failure that the stock sensor posts too fast for Slack is lost. Ends
with one line per figure: `name value unit aim AIM ok|short`.
"""

import argparse
import datetime as dt
import logging
import math
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from dagster._core.events import DagsterEventType
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from measuring import Figures
from slack_sdk import WebClient

from dags import slack_alerts
from dags.alerts import store, tables, watch
from dags.alerts.redact import redact
from dags.alerts.tick import WATCHED_AT, TickReport
from dags.alerts.tick import tick as tick_router
from dags.alerts.values import AttemptState, Policy
from dags.common.slack import make_client
from dags.local import ports, services
from dags.tests.alerts.fake_slack import TOKEN, FakeSlack, serving
from dags.tests.alerts.world import World, local_instance, op_job

OWNER, CHANNEL, DEFAULT_CHANNEL = "team-a", "#alerts-a", "#default"
POLICY = Policy(channel_of_owner={OWNER: CHANNEL}, default_channel=DEFAULT_CHANNEL, domain="dagster.example.com")
JOBS, JOBS_OF_HUNDRED = 50, 10
STOCK_SAMPLE = 15
QUIET_TICKS = 20
DAYS_OF_RUNS = 30
RUNS_PER_FAILURE = 50
DAEMON_CHECK_SECONDS = 5
WRITERS = 3
STOCK_INTERVAL_SECONDS = 30
MAX_SECONDS = 400
BACKFILL_ID = "benchbackfill"
PARTITION = "partition_of_the_template"
# The events that are copied of a finished run.
KEPT_EVENTS = [
    kind.value
    for kind in (
        DagsterEventType.RUN_START,
        DagsterEventType.STEP_START,
        DagsterEventType.STEP_OUTPUT,
        DagsterEventType.STEP_SUCCESS,
        DagsterEventType.STEP_FAILURE,
        DagsterEventType.RUN_SUCCESS,
        DagsterEventType.RUN_FAILURE,
    )
]
TAGS = {f"tag_{number}": f"value {number}" for number in range(5)}

NEW_RUN_ID = "md5(run_id || n)::uuid::text"
# The newest run ended ten minutes ago, and each other one some time before the next.
ENDED_AT = "(now() AT TIME ZONE 'utc') - interval '10 minutes' - n * make_interval(secs => :seconds_between)"


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """Run a Postgres server until the end of the block. Yields its address, without a database."""
    credentials, port = services.Credentials(), ports.free_port()
    with services.Lifeline.opened() as lifeline:
        started = services.start(services.postgres(directory, port, credentials), lifeline, directory / "logs")
        try:
            services.wait_until_healthy(started, credentials)
            yield f"postgresql://{credentials.postgres_user}@{ports.LOOPBACK}:{port}"
        finally:
            services.stop(started)


@contextmanager
def writing(dsn: str) -> Iterator[sa.Connection]:
    """Open a transaction of SQLAlchemy."""
    opened = sa.create_engine(sa.make_url(dsn).set(drivername="postgresql+psycopg2"))
    with opened.begin() as connection:
        yield connection
    opened.dispose()


def execute(dsn: str, statement: str) -> None:
    """Execute a statement outside any transaction."""
    with closing(psycopg2.connect(dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)


@dg.op
def work() -> None:
    """Do nothing."""


@dg.op
def work_in_vain() -> None:
    """Fail."""
    raise ValueError("the table is gone")


@dg.job(tags=TAGS)
def finished_job() -> None:
    """Succeed, as a job of the finished runs."""
    work()


@dg.job(name="finished_job", tags=TAGS)
def finished_in_vain_job() -> None:
    """Fail, as the same job."""
    work_in_vain()


def copy_runs(connection: sa.Connection, template: str, values: dict[str, Any]) -> None:
    """Make copies 1 to `count` of runs, with tags and events. `template` is an SQL expression for the run to copy.

    The copies end at ENDED_AT, in that order, or now. The id of a copy is NEW_RUN_ID.
    """
    ended_at = ENDED_AT if "seconds_between" in values else "now() AT TIME ZONE 'utc'"
    body = f"replace(replace(run_body, run_id, {NEW_RUN_ID}), '{PARTITION}', 'part_' || n)"
    of_runs = {
        "run_id": NEW_RUN_ID,
        "run_body": body,
        "create_timestamp": ended_at,
        "update_timestamp": ended_at,
        "start_time": f"extract(epoch FROM {ended_at})",
        "end_time": f"CASE WHEN end_time IS NULL THEN NULL ELSE extract(epoch FROM {ended_at}) END",
    }
    of_events = {
        "run_id": NEW_RUN_ID,
        "event": f"replace(event, run_id, {NEW_RUN_ID})",
        "timestamp": ended_at,
    }
    of_tags = {"run_id": NEW_RUN_ID, "value": f"replace(value, '{PARTITION}', 'part_' || n)"}
    for table, changed in ((RunsTable, of_runs), (SqlEventLogStorageTable, of_events), (RunTagsTable, of_tags)):
        columns = [column.name for column in table.columns if column.name != "id"]
        chosen = ", ".join(changed.get(name, f'"{name}"') for name in columns)
        quoted = ", ".join(f'"{name}"' for name in columns)
        kept = "AND dagster_event_type = ANY(:kept)" if table is SqlEventLogStorageTable else ""
        connection.execute(
            sa.text(
                f"INSERT INTO {table.name} ({quoted}) "
                f"SELECT {chosen} FROM {table.name}, generate_series(1, :count) AS n "
                f"WHERE run_id = {template} {kept} ORDER BY n DESC, id"
            ),
            {"kept": KEPT_EVENTS, **values},
        )


def fill(instance: dg.DagsterInstance, dsn: str, runs: int) -> None:
    """Store so many finished runs, of which one in RUNS_PER_FAILURE failed, but not the newest."""
    # The logs of the two executions are of no interest.
    logging.disable()
    good = finished_job.execute_in_process(instance=instance)
    bad = finished_in_vain_job.execute_in_process(instance=instance, raise_on_error=False)
    logging.disable(logging.NOTSET)
    with writing(dsn) as connection:
        copy_runs(
            connection,
            f"CASE WHEN n % {RUNS_PER_FAILURE} = 0 THEN :bad ELSE :good END",
            {
                "count": runs,
                "seconds_between": DAYS_OF_RUNS * 86400 / runs,
                "good": good.run_id,
                "bad": bad.run_id,
            },
        )
        # The originals were executed now: only their copies stand for the past.
        for table in ("event_logs", "run_tags", "runs"):
            connection.execute(
                sa.text(f"DELETE FROM {table} WHERE run_id = ANY(:ids)"), {"ids": [good.run_id, bad.run_id]}
            )
    # So that Postgres has statistics, as after a long time.
    execute(dsn, "VACUUM ANALYZE")


def start_runs(world: World, dsn: str, jobs: int, failures: int, tags: dict[str, str]) -> list[tuple[str, str]]:
    """Start runs of so many jobs, whose step has failed. Return the id and job of each, with the jobs mixed."""
    started: list[tuple[str, str]] = []
    each = failures // jobs
    with writing(dsn) as connection:
        for number in range(jobs):
            job = op_job(f"job_{number:02}_of_the_team", (OWNER,))
            template = world.start(job, tags=tags)
            world.step_fails(template, job.name, "step_0")
            copy_runs(connection, ":template", {"template": template, "count": each - 1})
            ids = connection.execute(
                sa.text(
                    f"SELECT {NEW_RUN_ID} FROM runs, generate_series(1, :count) AS n "
                    "WHERE run_id = :template ORDER BY n"
                ),
                {"template": template, "count": each - 1},
            ).scalars()
            started += [(template, job.name), *((run_id, job.name) for run_id in ids)]
    return [one for turn in range(each) for one in started[turn::each]]


def write_failures(home: str, runs: Sequence[tuple[str, str]], backfill_id: str | None) -> None:
    """End runs in failure, several at once, and then their backfill, as Dagster's processes do."""
    # One process stands for thousands, whose commits would not wait for each other.
    os.environ["PGOPTIONS"] = "-c synchronous_commit=off"
    instance = dg.DagsterInstance.from_config(home)

    def end(run: tuple[str, str]) -> None:
        World(instance).end(*run, DagsterEventType.RUN_FAILURE)

    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(end, runs))
    backfill = None if backfill_id is None else instance.get_backfill(backfill_id)
    if backfill is not None:
        ended = backfill.with_status(BulkActionStatus.COMPLETED_FAILED).with_end_timestamp(time.time())
        instance.update_backfill(ended)


class Waited:
    """The time for which this process has waited for Postgres."""

    seconds = 0.0
    statements = 0


@contextmanager
def waiting() -> Iterator[None]:
    """Add the time of the block."""
    start = time.perf_counter()
    try:
        yield
    finally:
        Waited.seconds += time.perf_counter() - start


class TimedCursor(psycopg2.extensions.cursor):
    """A cursor whose time is measured."""

    def execute(self, *arguments: Any) -> None:
        """Execute a statement and fetch its rows."""
        Waited.statements += 1
        with waiting():
            super().execute(*arguments)

    def executemany(self, *arguments: Any) -> None:
        """Execute a statement several times."""
        Waited.statements += 1
        with waiting():
            super().executemany(*arguments)


class TimedConnection(psycopg2.extensions.connection):
    """A connection whose time is measured."""

    def cursor(self, *arguments: Any, **named: Any) -> Any:
        """Return a cursor whose time is measured."""
        return super().cursor(*arguments, **{"cursor_factory": TimedCursor, **named})

    def commit(self) -> None:
        """Commit."""
        with waiting():
            super().commit()

    def rollback(self) -> None:
        """Roll back."""
        with waiting():
            super().rollback()


@contextmanager
def timed_connections() -> Iterator[None]:
    """Measure all new connections of SQLAlchemy until the end of the block."""

    def connect(_dialect: Any, _record: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
        with waiting():
            return psycopg2.connect(*arguments, connection_factory=TimedConnection, **named)

    sa.event.listen(sa.Engine, "do_connect", connect)
    try:
        yield
    finally:
        sa.event.remove(sa.Engine, "do_connect", connect)


def now() -> dt.datetime:
    """Return the current time."""
    return dt.datetime.now(dt.UTC)


@contextmanager
def opened_store(instance: dg.DagsterInstance) -> Iterator[sa.Engine]:
    """Open the router's store until the end of the block."""
    opened = store.open_store(store.address_of(instance))
    try:
        yield opened
    finally:
        opened.dispose()


def tick(instance: dg.DagsterInstance, client: WebClient) -> TickReport:
    """Tick like the sensor, which opens and closes the store."""
    with opened_store(instance) as opened:
        find = partial(watch.findings, instance, opened, POLICY, now, redact)
        return tick_router(instance, opened, client, POLICY, now, watch=find)


@dataclass(frozen=True)
class Cost:
    """The cost of a tick."""

    database_milliseconds: float
    milliseconds: float
    statements: int


def cost_of_tick(home: Path, client: WebClient, *, deleting: Sequence[str] = ()) -> Cost:
    """Return the cost of a tick after these stored values, such as the time of the last sweep, were deleted."""
    with dg.DagsterInstance.from_config(str(home)) as instance:
        with opened_store(instance) as opened, store.transaction(opened) as connection:
            connection.execute(sa.delete(tables.stored_values).where(tables.stored_values.c.name.in_(deleting)))
        # The process of the sensor keeps connections between ticks.
        instance.get_runs(limit=1)
        before, statements, start = Waited.seconds, Waited.statements, time.perf_counter()
        tick(instance, client)
        return Cost(
            (Waited.seconds - before) * 1000, (time.perf_counter() - start) * 1000, Waited.statements - statements
        )


def measure_ticks(figures: Figures, home: Path, dsn: str, runs: int) -> None:
    """Fill the storage, tick until nothing is new, and measure ticks."""
    with local_instance(home, dsn) as instance:
        start = time.perf_counter()
        fill(instance, dsn, runs)
        print(f"  {runs} runs stored in {time.perf_counter() - start:.0f} s", flush=True)
        with serving(CHANNEL, DEFAULT_CHANNEL) as slack:
            start = time.perf_counter()
            while tick(instance, make_client(TOKEN, slack.base_url)).events or _waits(instance):
                pass
            figures.add("first_ticks_until_quiet", time.perf_counter() - start, "s")
        figures.add(
            "ended_runs_read_by_first_ticks", _ended_runs(instance), "runs", at_least=runs * 2 / DAYS_OF_RUNS - 60
        )
    with serving(CHANNEL, DEFAULT_CHANNEL) as slack, timed_connections():
        client = make_client(TOKEN, slack.base_url)
        quiet = [cost_of_tick(home, client) for _ in range(QUIET_TICKS)]
        sweeping = [cost_of_tick(home, client, deleting=["swept_at"]) for _ in range(3)]
        finding = [cost_of_tick(home, client, deleting=[WATCHED_AT]) for _ in range(3)]
    middle = statistics.median
    figures.add("quiet_tick_database", middle(one.database_milliseconds for one in quiet), "ms", at_most=50)
    figures.add("quiet_tick_statements", middle(one.statements for one in quiet), "statements")
    figures.add("quiet_tick", middle(one.milliseconds for one in quiet), "ms")
    figures.add("sweeping_tick_database", middle(one.database_milliseconds for one in sweeping), "ms")
    figures.add("watching_tick_database", middle(one.database_milliseconds for one in finding), "ms")


def _ended_runs(instance: dg.DagsterInstance) -> int:
    """Return how many ended runs are in the router's store."""
    with opened_store(instance) as opened, store.reading(opened) as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(tables.attempts)).scalar_one()


def _waits(instance: dg.DagsterInstance) -> bool:
    """Return whether an attempt is not decided yet."""
    with opened_store(instance) as opened, store.reading(opened) as connection:
        query = sa.select(sa.func.count()).where(tables.attempts.c.state == AttemptState.NEW)
        return bool(connection.execute(query).scalar())


@dataclass
class Texts:
    """The texts of Slack's messages, each with the time at which it was first seen."""

    slack: FakeSlack
    texts: list[tuple[float, str]] = field(default_factory=list)
    _versions: list[int] = field(default_factory=list)

    def read_new(self) -> None:
        """Read the messages that are new or were edited."""
        with self.slack.lock:
            at = time.time()
            for number, message in enumerate(self.slack.messages):
                version = len(message.earlier_texts)
                if number == len(self._versions):
                    self._versions.append(-1)
                if version > self._versions[number]:
                    self._versions[number] = version
                    self.texts.append((at, message.text))

    def first(self, *words: str) -> float:
        """Return when a message first contained all the words, infinity when none did."""
        return min((at for at, text in self.texts if all(word in text for word in words)), default=math.inf)


@contextmanager
def watching(slack: FakeSlack) -> Iterator[Texts]:
    """Read the messages continuously until the end of the block."""
    texts, done = Texts(slack), threading.Event()

    def read() -> None:
        while not done.wait(0.05):
            texts.read_new()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield texts
    finally:
        done.set()
        thread.join()


def drive(tick_once: Callable[[], object], interval_seconds: float, is_done: Callable[[], bool]) -> int:
    """Tick like the daemon until `is_done`. Return the number of ticks. The first comes after one interval."""
    begun = last = time.monotonic()
    ticks = 0
    for check in range(1, int(MAX_SECONDS / DAEMON_CHECK_SECONDS)):
        while time.monotonic() < begun + check * DAEMON_CHECK_SECONDS:
            if is_done():
                return ticks
            time.sleep(0.05)
        if time.monotonic() - last >= interval_seconds - 0.5:
            last = time.monotonic()
            tick_once()
            ticks += 1
    return ticks


@dataclass(frozen=True)
class Notified:
    """How failures were notified.

    `named_seconds` is the longest time from a failure until a message named it, `counted_seconds` that from the last
    failure of a backfill until a message gave the number of all.
    """

    named_seconds: float
    counted_seconds: float | None
    messages: int
    edits: int
    too_fast: int
    writing_seconds: float
    longest_tick_seconds: float


@contextmanager
def copied_database(server: str, home: Path, template: str) -> Iterator[str]:
    """Copy a database until the end of the block. Yields the address of the copy."""
    execute(f"{server}/postgres", f"CREATE DATABASE {home.name} TEMPLATE {template} STRATEGY FILE_COPY")
    try:
        yield f"{server}/{home.name}"
    finally:
        execute(f"{server}/postgres", f"DROP DATABASE {home.name} WITH (FORCE)")


def measure_notifying(server: str, home: Path, jobs: int, failures: int, *, is_backfill: bool = False) -> Notified:
    """Measure how the router notifies failures of so many jobs."""
    tags = {"dagster/backfill": BACKFILL_ID, "dagster/partition": PARTITION} if is_backfill else {}
    with (
        copied_database(server, home, "filled") as dsn,
        local_instance(home, dsn) as instance,
        serving(CHANNEL, DEFAULT_CHANNEL) as slack,
        watching(slack) as texts,
    ):
        slack.enforces_rate = True
        if is_backfill:
            instance.add_backfill(
                PartitionBackfill(
                    BACKFILL_ID, BulkActionStatus.REQUESTED, from_failure=False, tags={}, backfill_timestamp=time.time()
                )
            )
        runs = start_runs(World(instance), dsn, jobs, failures, tags)
        client = make_client(TOKEN, slack.base_url)
        tick(instance, client)
        writer = multiprocessing.get_context("spawn").Process(
            target=write_failures, args=(str(home), runs, BACKFILL_ID if is_backfill else None)
        )
        durations: list[float] = []

        def timed_tick() -> None:
            start = time.monotonic()
            tick(instance, client)
            durations.append(time.monotonic() - start)

        names = [BACKFILL_ID] if is_backfill else sorted({job for _, job in runs})
        count = f"{failures:,} runs failed"

        def is_notified() -> bool:
            return all(texts.first(name) < math.inf for name in names)

        def is_counted() -> bool:
            return texts.first(BACKFILL_ID, count) < math.inf

        def is_done() -> bool:
            return is_notified() and (is_counted() or not is_backfill) and not writer.is_alive()

        writer.start()
        drive(timed_tick, slack_alerts.SECONDS_BETWEEN_TICKS, is_done)
        writer.join()
        failed = _failure_times(instance, runs)
        subject = {run_id: BACKFILL_ID if is_backfill else job for run_id, job in runs}
        return Notified(
            named_seconds=max(texts.first(subject[run_id]) - at for run_id, at in failed.items()),
            counted_seconds=texts.first(BACKFILL_ID, count) - max(failed.values()) if is_backfill else None,
            messages=len(slack.messages),
            edits=sum(method == "chat.update" for method, _ in slack.calls),
            too_fast=sum(method == "chat.postMessage" for method, _ in slack.calls) - len(slack.messages),
            writing_seconds=max(failed.values()) - min(failed.values()),
            longest_tick_seconds=max(durations),
        )


def _failure_times(instance: dg.DagsterInstance, runs: Sequence[tuple[str, str]]) -> dict[str, float]:
    records: dict[str, float] = {}
    ids = {run_id for run_id, _ in runs}
    storage: Any = instance.event_log_storage
    table = SqlEventLogStorageTable
    with storage.index_connection() as connection:
        query = sa.select(table.c.run_id, table.c.timestamp).where(
            table.c.dagster_event_type == DagsterEventType.RUN_FAILURE.value
        )
        for row in connection.execute(query.order_by(table.c.id.desc()).limit(len(runs))):
            if row.run_id in ids:
                records[row.run_id] = row.timestamp.replace(tzinfo=dt.UTC).timestamp()
    return records


@dataclass(frozen=True)
class StockNotified:
    """How the stock sensor notified failures."""

    seconds: float
    ticks: int
    messages: int


def measure_stock(server: str, home: Path, failures: int) -> StockNotified:
    """Measure how a sensor as in Dagster's documentation notifies failures."""
    with (
        copied_database(server, home, "filled") as dsn,
        local_instance(home, dsn) as instance,
        serving(CHANNEL, DEFAULT_CHANNEL) as slack,
    ):
        slack.enforces_rate = True
        client = WebClient(TOKEN, slack.base_url)
        handled: list[str] = []

        @dg.run_failure_sensor(monitor_all_code_locations=True, minimum_interval_seconds=STOCK_INTERVAL_SECONDS)
        def stock(context: dg.RunFailureSensorContext) -> None:
            run = context.dagster_run
            handled.append(run.run_id)
            client.chat_postMessage(channel=CHANNEL, text=f"{run.job_name} failed: {context.failure_event.message}")

        cursor: str | None = None

        def stock_tick() -> None:
            nonlocal cursor
            with dg.build_sensor_context(instance=instance, cursor=cursor, definitions=dg.Definitions()) as context:
                cursor = stock.evaluate_tick(context).cursor

        runs = start_runs(World(instance), dsn, 1, failures, {})
        stock_tick()
        for run in runs:
            World(instance).end(*run, DagsterEventType.RUN_FAILURE)
        begun = time.monotonic()
        ticks = drive(stock_tick, STOCK_INTERVAL_SECONDS, lambda: len(handled) >= failures)
        return StockNotified(time.monotonic() - begun, ticks, len(slack.messages))


def main() -> None:
    """Measure everything and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000, help="finished runs in storage")
    parser.add_argument("--failures", type=int, default=5_000, help="failures of a burst")
    parser.add_argument("--only", choices=["ticks", "notifying", "stock"], help="measure this part alone")
    arguments = parser.parse_args()
    os.environ["DEBUG"] = "1"
    burst, figures = arguments.failures, Figures()
    with tempfile.TemporaryDirectory(prefix="bench-alerts-") as path, postgres(Path(path)) as server:
        directory = Path(path)
        execute(f"{server}/postgres", "CREATE DATABASE filled")
        print("A quiet tick", flush=True)
        measure_ticks(figures, directory / "filled", f"{server}/filled", arguments.runs)
        if arguments.only in (None, "notifying"):
            for name, jobs, failures, is_backfill, seconds, messages in (
                ("router_1_failure", 1, 1, False, 60, None),
                ("router_100_failures_of_10_jobs", JOBS_OF_HUNDRED, 100, False, 60, None),
                (f"router_{burst}_failures_of_a_backfill", 1, burst, True, 60, 10),
                (f"router_{burst}_failures_of_{JOBS}_jobs", JOBS, burst, False, 120, None),
            ):
                print(name, flush=True)
                notified = measure_notifying(server, directory / name, jobs, failures, is_backfill=is_backfill)
                figures.add(f"{name}_until_notified", notified.named_seconds, "s", at_most=seconds)
                if notified.counted_seconds is not None:
                    figures.add(f"{name}_until_counted", notified.counted_seconds, "s", at_most=seconds)
                figures.add(f"{name}_messages", notified.messages, "messages", at_most=messages)
                figures.add(f"{name}_edits", notified.edits, "edits")
                figures.add(f"{name}_posts_too_fast_for_slack", notified.too_fast, "posts", at_most=0)
                figures.add(f"{name}_written_in", notified.writing_seconds, "s")
                figures.add(f"{name}_longest_tick", notified.longest_tick_seconds, "s")
        if arguments.only in (None, "stock"):
            print("The stock sensor", flush=True)
            one = measure_stock(server, directory / "stock_1", 1)
            figures.add("stock_1_failure_until_notified", one.seconds, "s")
            sample = measure_stock(server, directory / "stock_sample", STOCK_SAMPLE)
            a_tick = STOCK_SAMPLE / sample.ticks
            figures.add("stock_failures_a_tick", a_tick, "failures")
            figures.add(f"stock_{STOCK_SAMPLE}_failures_until_handled", sample.seconds, "s")
            figures.add(f"stock_{STOCK_SAMPLE}_failures_lost", STOCK_SAMPLE - sample.messages, "failures")
            for failures in (100, burst):
                seconds = math.ceil(failures / a_tick) * STOCK_INTERVAL_SECONDS
                figures.add(f"stock_{failures}_failures_until_handled_extrapolated", seconds, "s")
    figures.print_all()


if __name__ == "__main__":
    main()
