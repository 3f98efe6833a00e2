"""Dagster's storage on Postgres under many concurrent runs, with a restart of Postgres among them.

Dagster reconnects for about six seconds, but does not repeat a statement that was in progress. So a restart can fail a
run that is being launched, is starting, or is writing an event. `dagster/max_retries` retries such runs and a retry
policy such steps; both are set here. A step whose success was not stored runs again, so every job must converge.
"""

import contextlib
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import psycopg2
import pytest
from dagster._core.storage.tags import ROOT_RUN_ID_TAG

from dags.local import ports, services
from dags.tests.conftest import CREDENTIALS
from dags.tests.kubernetes import site
from dags.tests.kubernetes.server import KubernetesServer
from dags.tests.kubernetes.short_location import FILE_VARIABLE
from dags.tests.kubernetes.site import Site
from dags.tests.run_watch import IN_PROGRESS, OVER
from dags.tests.webserver import START_SECONDS, wait_for

RUNS, LIMIT, PRIORITIES = 200, 10, 3
RESTART_AFTER = RUNS // 2
LOAD_SECONDS = 1500
# After this, a run that lost its worker while it started fails and is retried.
START_TIMEOUT_SECONDS = 60
# Of the 100 that Postgres allows. Runs open and close their own, beside web server, code server and daemon.
MAX_CONNECTIONS = 3 * LIMIT
SUCCESS = dg.DagsterRunStatus.SUCCESS


@dataclass
class Postgres:
    """A server that the test restarts."""

    started: services.StartedService
    lifeline: services.Lifeline

    def dsn(self, database: str) -> str:
        """Return the address of a database."""
        return f"postgresql://{CREDENTIALS.postgres_user}@{ports.LOOPBACK}:{self.started.service.port}/{database}"

    def restart(self) -> None:
        """Restart, which disconnects all clients."""
        services.stop(self.started)
        self.started = services.start(self.started.service, self.lifeline, self.started.log.parent)
        services.wait_until_healthy(self.started, CREDENTIALS)

    def connections(self) -> int:
        """Return the number of connections to Dagster's database."""
        with (
            contextlib.closing(psycopg2.connect(self.dsn(CREDENTIALS.postgres_database))) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'dagster'")
            return int(cursor.fetchall()[0][0])


@pytest.fixture
def postgres(tmp_path: Path, lifeline: services.Lifeline) -> Iterator[Postgres]:
    service = services.postgres(tmp_path, ports.free_port(), CREDENTIALS)
    made = Postgres(services.start(service, lifeline, tmp_path / "logs"), lifeline)
    try:
        services.wait_until_healthy(made.started, CREDENTIALS)
        yield made
    finally:
        services.stop(made.started)


@dataclass
class Peak:
    """The highest numbers seen at once."""

    runs: int = 0
    connections: int = 0
    restarted: bool = False
    statuses: Counter[dg.DagsterRunStatus] = field(default_factory=Counter)


def queue(made: Site) -> list[str]:
    """Queue the runs; return their ids in the expected order: by priority, then first in, first out."""
    priorities = {
        made.launch("short_job", tags={"dagster/priority": str(priority)}): priority
        for priority in (number % PRIORITIES for number in range(RUNS))
    }
    return sorted(priorities, key=lambda run_id: -priorities[run_id])


def observe(made: Site, postgres: Postgres, peak: Peak) -> bool | None:
    """Record the peak, and restart Postgres once. Return True when every queued run has succeeded, retries included."""
    runs = made.instance.get_runs()
    peak.statuses = Counter(run.status for run in runs)
    peak.runs = max(peak.runs, sum(peak.statuses[status] for status in IN_PROGRESS))
    peak.connections = max(peak.connections, postgres.connections())
    if not peak.restarted and peak.statuses[SUCCESS] >= RESTART_AFTER:
        postgres.restart()
        peak.restarted = True
    return (len(roots(runs)) == RUNS and all(status is SUCCESS for status in roots(runs).values())) or None


def roots(runs: Sequence[dg.DagsterRun]) -> Mapping[str, dg.DagsterRunStatus]:
    """Return the status of each queued run: SUCCESS when the run or a retry of it succeeded."""
    found: dict[str, dg.DagsterRunStatus] = {}
    for run in runs:
        root = run.tags.get(ROOT_RUN_ID_TAG, run.run_id)
        found[root] = SUCCESS if SUCCESS in (run.status, found.get(root)) else run.status
    return found


def starts(instance: dg.DagsterInstance) -> list[str]:
    """Return the ids of the runs in the order in which they left the queue."""
    records = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_STARTING, limit=10 * RUNS, ascending=True)
    return [record.event_log_entry.run_id for record in records.records]


def most_at_once(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> int:
    """Return the highest number of runs between launch and end at the same time, by their events."""
    spans = sorted(
        (stats.launch_time, stats.end_time)
        for stats in map(instance.get_run_stats, run_ids)
        if stats.launch_time is not None and stats.end_time is not None
    )
    most, ends = 0, list[float]()
    for launched, ended in spans:
        while ends and ends[0] <= launched:
            heapq.heappop(ends)
        heapq.heappush(ends, ended)
        most = max(most, len(ends))
    return most


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + LOAD_SECONDS + 120)
def test_two_hundred_runs_keep_order_and_limit_and_succeed_once_despite_a_restart_of_postgres(
    tmp_path: Path, kubernetes: KubernetesServer, postgres: Postgres
) -> None:
    lines, peak = tmp_path / "lines", Peak()
    with site.prepared(
        tmp_path,
        postgres.dsn("dagster"),
        kubernetes,
        "short",
        ["-m", "dags.tests.kubernetes.short_location"],
        environment={FILE_VARIABLE: str(lines)},
        start_timeout_seconds=START_TIMEOUT_SECONDS,
    ) as made:
        due = queue(made)
        assert Counter(run.status for run in made.instance.get_runs()) == {dg.DagsterRunStatus.QUEUED: RUNS}
        with made.daemon():
            wait_for(lambda: observe(made, postgres, peak), LOAD_SECONDS, "all runs have succeeded")
        runs = made.instance.get_runs()
        started = starts(made.instance)
        most = most_at_once(made.instance, [run.run_id for run in runs])
    assert peak.restarted
    assert {run.status for run in runs} <= OVER
    assert Counter(run.tags.get(ROOT_RUN_ID_TAG, run.run_id) for run in runs if run.status is SUCCESS) == Counter(due)
    assert [run_id for run_id in started if run_id in set(due)] == due
    assert peak.runs == LIMIT
    assert most <= LIMIT
    assert peak.connections <= MAX_CONNECTIONS
    # No attempt ran twice, and each success ran.
    attempts = lines.read_text().splitlines()
    assert len(attempts) == len(set(attempts))
    assert {run.run_id for run in runs if run.status is SUCCESS} <= {attempt.split()[0] for attempt in attempts}
    assert kubernetes.cluster.refusals == []
