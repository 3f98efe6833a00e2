"""Loading and computing in runs that Dagster launches: after a kill, the next run completes the work.

Killing a load at each statement is in `dags/tests/events`, computing without Dagster in `test_crash.py`.
"""

import contextlib
import datetime as dt
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import psutil
import pytest
from pydantic import SecretStr

from dags.common.clickhouse.object_storage import ObjectStorage
from dags.common.clickhouse.schema import apply_schema
from dags.common.clickhouse.staging import STAGING_PREFIX
from dags.common.postgres import Postgres
from dags.local.services import Lifeline
from dags.tests import webserver
from dags.tests.conftest import CREDENTIALS
from dags.tests.events.world import World, event, lines, log_line
from dags.tests.web_preaggregated.events import DAY
from dags.tests.web_preaggregated.node import Node
from dags.tests.webserver import Webserver, wait_for, wait_for_run, worker_of
from dags.web_preaggregated.raw import SUBJECTS, compare_with_raw

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

ROUNDS = 10
LINES = 4000
RUN_SECONDS = 180
DAYS = [DAY + dt.timedelta(days=n) for n in (-1, 0, 1)]
# The four events of a session span more than six hours, so many sessions continue after midnight.
SECONDS_BETWEEN_EVENTS, SECONDS_OF_ALL = 7919, 250_000
TABLES = ("web_sessions_daily",)
LOCATION = "definitions"

# By object: its events, its distinct events, and the lowest and highest number.
EVENTS_STATEMENT = """
SELECT object, count(), uniqExact(number), min(number), max(number)
FROM (SELECT object_id, toUInt64(substring(pathname, 2)) AS number FROM events) AS stored
LEFT JOIN (SELECT object, object_id FROM ingested_objects FINAL WHERE state = 'loaded') AS known USING (object_id)
GROUP BY object
"""
# By object: the number of its contents that are loaded, and that are neither loaded nor replaced.
STATES_STATEMENT = """
SELECT object, countIf(state = 'loaded'), countIf(state NOT IN ('loaded', 'replaced'))
FROM ingested_objects FINAL GROUP BY object
"""
STAGING_STATEMENT = """
SELECT name FROM system.tables
WHERE database = currentDatabase() AND (startsWith(name, 'events_load_') OR startsWith(name, %(prefix)s))
"""


@dataclass
class Input:
    """Objects whose events have consecutive numbers, and their expected rows."""

    world: World
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    events: dict[str, range] = field(default_factory=dict)
    rejected: dict[str, list[int]] = field(default_factory=dict)

    def add(self, turn: int) -> None:
        """Upload three new objects, one of them with a bad line, and new content of a fourth."""
        for name, team in ((f"{turn}.jsonl.gz", 1), (f"{turn}.jsonl", 2), ("replaced.jsonl", 1)):
            bad = ["bad"] if name.endswith(".gz") else []
            found = self._next()
            self._put(name, team, found, lines([*map(web_event, found), *bad]), [len(found) + 1] * len(bad))
        views = self._next()
        self._put(f"{turn}.log.gz", 3, views, "".join(f"{web_log_line(one)}\n" for one in views).encode(), [])

    def _next(self) -> range:
        first = next(self.numbers) * LINES
        return range(first, first + LINES)

    def _put(self, name: str, team: int, numbers: range, body: bytes, rejected: list[int]) -> None:
        key = self.world.put(name, body, team=team)
        self.events[key] = numbers
        self.rejected[key] = rejected


def moment_of(number: int) -> dt.datetime:
    seconds = number * SECONDS_BETWEEN_EVENTS % SECONDS_OF_ALL
    return dt.datetime.combine(DAYS[0], dt.time(), tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)


def web_event(number: int) -> dict[str, object]:
    properties = {"$pathname": f"/{number}", "$session_id": f"session-{number // 4}"}
    return event(number, timestamp=f"{moment_of(number):%Y-%m-%dT%H:%M:%SZ}", properties=properties)


def web_log_line(number: int) -> str:
    address = ".".join(map(str, (10, *(number // 5).to_bytes(3, "big"))))
    return log_line(f"/{number}", address=address, at=f"{moment_of(number):%d/%b/%Y:%H:%M:%S} +0000")


@dataclass
class Platform:
    """A web server that launches runs, its instance, and a node that may be killed."""

    webserver: Webserver
    instance: dg.DagsterInstance
    node: Node
    world: World
    chance: random.Random
    waited_for_retry: set[str] = field(default_factory=set)

    def launch(self, job: str, *, whole: bool = False) -> str:
        if job == "load_events_job":
            config = {"ops": {"events": {"config": {"prefix": "events/"}}}}
            keys = None if whole else ["events"]
            return self.webserver.launch(LOCATION, job, config=config, asset_keys=keys)
        tags = {
            "dagster/asset_partition_range_start": str(DAYS[0]),
            "dagster/asset_partition_range_end": str(DAYS[-1]),
        }
        return self.webserver.launch(LOCATION, job, tags=tags, asset_keys=None if whole else TABLES)

    def times(self, run_id: str, kind: dg.DagsterEventType) -> list[float]:
        return [entry.timestamp for entry in self.instance.all_logs(run_id, of_type=kind)]

    def seconds_of_step(self, run_id: str) -> float:
        """Return the duration of the single step of a run, from its first event to its last."""
        (begin,), (end,) = (
            self.times(run_id, kind) for kind in (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS)
        )
        return end - begin

    def status(self, run_id: str) -> dg.DagsterRunStatus:
        return wait_for_run(self.instance, run_id, RUN_SECONDS)

    def succeed(self, run_id: str) -> str:
        assert self.status(run_id) is dg.DagsterRunStatus.SUCCESS, [
            entry.user_message or entry.message for entry in self.instance.all_logs(run_id)
        ]
        return run_id

    def kill_worker(self, run_id: str, *, with_steps: bool) -> list[psutil.Process]:
        """Kill the worker, alone or with its steps as when a machine fails; return the processes of its steps."""
        steps: list[psutil.Process] = []
        # It may be ending at this moment.
        with contextlib.suppress(psutil.NoSuchProcess):
            worker = worker_of(self.instance, run_id)
            assert worker is not None
            steps = worker.children(recursive=True)
            worker.kill()
        for step in steps if with_steps else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                step.kill()
        return steps

    def hits(self, job: str, longest: float, *, kills_node: bool) -> bool:
        """Launch a run, kill a process at a random moment of its step, and re-execute it if it failed.

        Return False when the run had finished before the kill.
        """
        run_id = self.launch(job)
        kind = dg.DagsterEventType.STEP_START
        wait_for(lambda: self.times(run_id, kind) or None, RUN_SECONDS, f"the step of run {run_id} starts")
        time.sleep(self.chance.uniform(0, longest))
        if self.has_finished(run_id):
            return False
        steps: list[psutil.Process] = []
        if kills_node:
            self.node.kill_and_start()
            self._end_waiting(job, run_id)
        else:
            steps = self.kill_worker(run_id, with_steps=self.chance.random() < 1 / 2)
        # The run may survive a node that is back at once, because retryable statements are sent again.
        if self.status(run_id) is not dg.DagsterRunStatus.SUCCESS:
            self.succeed(self.webserver.reexecute_from_failure(run_id))
        # The steps of a worker that was killed alone go on, and must do no damage.
        psutil.wait_procs(steps, RUN_SECONDS)
        return True

    def has_finished(self, run_id: str) -> bool:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.is_finished

    def _end_waiting(self, job: str, run_id: str) -> None:
        """Kill a run whose step waits for a retry, except the first of its job, which may wait and retry."""

        def waits() -> bool | None:
            if self.times(run_id, dg.DagsterEventType.STEP_UP_FOR_RETRY):
                return True
            return False if self.has_finished(run_id) else None

        if wait_for(waits, RUN_SECONDS, f"run {run_id} finishes or waits"):
            if job in self.waited_for_retry:
                self.kill_worker(run_id, with_steps=True)
            self.waited_for_retry.add(job)

    def assert_each_event_is_there_once(self, given: Input) -> None:
        found = {row[0]: row[1:] for row in self.world.rows(EVENTS_STATEMENT)}
        assert found == {key: (len(one), len(one), one[0], one[-1]) for key, one in given.events.items()}
        assert sorted(self.world.rows(STATES_STATEMENT)) == sorted((key, 1, 0) for key in given.events)
        rejected = self.world.rows("SELECT object, line FROM events_rejected ORDER BY ALL")
        assert rejected == sorted((key, line) for key, found_ in given.rejected.items() for line in found_)

    def assert_web_tables_equal_the_events(self) -> None:
        for subject in SUBJECTS:
            found = compare_with_raw(self.world.cluster, subject, DAYS[0], DAYS[-1])
            assert found.compared > 1000
            assert found.different == 0, "\n".join(map(str, found.listed))

    def assert_nothing_is_left(self) -> None:
        assert self.world.rows(STAGING_STATEMENT, prefix=STAGING_PREFIX) == []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An instance without a queue: a run starts when it is launched."""
    # The name that Dagster's reference of dagster.yaml gives it; without it, runs wait for a daemon.
    coordinator = "run_coordinator:\n  module: dagster._core.run_coordinator\n  class: DefaultRunCoordinator\n"
    (tmp_path / "dagster.yaml").write_text(f"telemetry:\n  enabled: false\n{coordinator}")
    webserver.write_workspace(tmp_path, "definitions")
    return tmp_path


@pytest.fixture
def platform(
    home: Path, lifeline: Lifeline, s3_client: "S3Client", s3_endpoint: str, s3_bucket: str, postgres_port: int
) -> Iterator[Platform]:
    environment = {
        "OBJECT_STORAGE_ENDPOINT": s3_endpoint,
        "OBJECT_STORAGE_BUCKET": s3_bucket,
        "POSTGRES_PORT": str(postgres_port),
    }
    storage = ObjectStorage(
        s3_bucket,
        f"{s3_endpoint}/{s3_bucket}",
        CREDENTIALS.s3_access_key_id,
        SecretStr(CREDENTIALS.s3_secret_access_key),
    )
    postgres = Postgres("127.0.0.1", postgres_port, CREDENTIALS.postgres_user, SecretStr(""), "postgres")
    with (
        Node.running(home, lifeline) as node,
        node.connect() as cluster,
        webserver.serving(home, webserver.WEBSERVER, {**environment, "CLICKHOUSE_PORT": str(node.port)}) as server,
        dg.DagsterInstance.from_config(str(home)) as instance,
    ):
        apply_schema(cluster, clustered=False)
        world = World(cluster, postgres, s3_client, storage)
        # A second copy of an event stays visible. Not SYSTEM STOP MERGES, which a restart forgets.
        world.rows(
            "ALTER TABLE events MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1, "
            "max_bytes_to_merge_at_min_space_in_pool = 1"
        )
        yield Platform(server, instance, node, world, random.Random(7))  # noqa: S311 - moments of kills, not secrets


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_runs_that_are_reexecuted_load_each_event_once_and_give_equal_tables(
    platform: Platform,
) -> None:
    given = Input(platform.world)
    jobs = ("load_events_job", "web_analytics_daily_job")
    given.add(0)
    longest = {job: platform.seconds_of_step(platform.succeed(platform.launch(job))) for job in jobs}
    hits = 0
    for turn in range(1, ROUNDS + 1):
        given.add(turn)
        for job, kills_node in zip(jobs, (turn % 2 == 0, turn % 2 == 1), strict=True):
            hits += platform.hits(job, longest[job], kills_node=kills_node)
        platform.assert_each_event_is_there_once(given)
        platform.assert_web_tables_equal_the_events()
    assert hits > ROUNDS, "most runs had finished before anything was killed"

    for job in jobs:
        run_id = platform.succeed(platform.launch(job, whole=True))
        checks = platform.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
        assert checks
        assert all(one.dagster_event.asset_check_evaluation_data.passed for one in checks if one.dagster_event)
    # The next run drops the staging tables of an attempt that lost its node.
    platform.assert_nothing_is_left()
