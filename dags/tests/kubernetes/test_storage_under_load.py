"""Dagster's storage on Postgres with many runs at once, and Postgres restarted among them.

What a restart may cost, as seen when it was tried many times over: a statement that is on its way then is not repeated
by Dagster, so a run that is being launched, that starts, or that writes an event may fail; connecting anew is tried for
some six seconds. `dagster/max_retries` repeats such runs, and a retry policy such steps, so both are on here. What a
step has done before its success was stored may be done again then: that is why every job here converges when run again.
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
# A run that lost its worker as it started is failed, and repeated, after this.
START_TIMEOUT_SECONDS = 60
# Of Postgres's own 100: web server, code server and daemon, and what a run needs, which opens and closes its own.
MOST_CONNECTIONS = 3 * LIMIT
SUCCESS = dg.DagsterRunStatus.SUCCESS


@dataclass
class Postgres:
    """A server of this test that may be restarted."""

    started: services.Started
    lifeline: services.Lifeline

    def dsn(self, database: str) -> str:
        """How to reach one of its databases."""
        return f"postgresql://{CREDENTIALS.postgres_user}@{ports.LOOPBACK}:{self.started.service.port}/{database}"

    def restart(self) -> None:
        """As for a change of its settings: it disconnects everybody and comes back."""
        services.stop(self.started)
        self.started = services.start(self.started.service, self.lifeline, self.started.log.parent)
        services.wait_until_healthy(self.started, CREDENTIALS)

    def connections(self) -> int:
        """How many there are to Dagster's database now."""
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
class Seen:
    """The most that was seen at once."""

    runs: int = 0
    connections: int = 0
    restarted: bool = False
    statuses: Counter[dg.DagsterRunStatus] = field(default_factory=Counter)


def queue(made: Site) -> list[str]:
    """Queues the runs; their ids in the order in which they are due: by priority, then as they came."""
    priorities = {
        made.launch("short_job", tags={"dagster/priority": str(priority)}): priority
        for priority in (number % PRIORITIES for number in range(RUNS))
    }
    return sorted(priorities, key=lambda run_id: -priorities[run_id])


def look(made: Site, postgres: Postgres, seen: Seen) -> bool | None:
    """Notes what goes on, and restarts Postgres once. True when all runs, and their repetitions, are over."""
    runs = made.instance.get_runs()
    seen.statuses = Counter(run.status for run in runs)
    seen.runs = max(seen.runs, sum(seen.statuses[status] for status in IN_PROGRESS))
    seen.connections = max(seen.connections, postgres.connections())
    if not seen.restarted and seen.statuses[SUCCESS] >= RESTART_AFTER:
        postgres.restart()
        seen.restarted = True
    return (len(roots(runs)) == RUNS and all(status is SUCCESS for status in roots(runs).values())) or None


def roots(runs: Sequence[dg.DagsterRun]) -> Mapping[str, dg.DagsterRunStatus]:
    """How each queued run stands: SUCCESS when it or a repetition of it is."""
    found: dict[str, dg.DagsterRunStatus] = {}
    for run in runs:
        root = run.tags.get(ROOT_RUN_ID_TAG, run.run_id)
        found[root] = SUCCESS if SUCCESS in (run.status, found.get(root)) else run.status
    return found


def starts(instance: dg.DagsterInstance) -> list[str]:
    """The ids of the runs in the order in which the queue let them go."""
    records = instance.fetch_run_status_changes(dg.DagsterEventType.RUN_STARTING, limit=10 * RUNS, ascending=True)
    return [record.event_log_entry.run_id for record in records.records]


def most_at_once(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> int:
    """How many runs were between their launch and their end at the same moment, by their events."""
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
def test_two_hundred_runs_keep_order_and_limit_and_all_succeed_once_though_postgres_is_restarted(
    tmp_path: Path, kubernetes: KubernetesServer, postgres: Postgres
) -> None:
    lines, seen = tmp_path / "lines", Seen()
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
            wait_for(lambda: look(made, postgres, seen), LOAD_SECONDS, "all runs have succeeded")
        runs = made.instance.get_runs()
        started = starts(made.instance)
        most = most_at_once(made.instance, [run.run_id for run in runs])
    assert seen.restarted
    assert {run.status for run in runs} <= OVER
    assert Counter(run.tags.get(ROOT_RUN_ID_TAG, run.run_id) for run in runs if run.status is SUCCESS) == Counter(due)
    assert [run_id for run_id in started if run_id in set(due)] == due
    assert seen.runs == LIMIT
    assert most <= LIMIT
    assert seen.connections <= MOST_CONNECTIONS
    # No attempt ran twice, and each success ran.
    attempts = lines.read_text().splitlines()
    assert len(attempts) == len(set(attempts))
    assert {run.run_id for run in runs if run.status is SUCCESS} <= {attempt.split()[0] for attempt in attempts}
    assert kubernetes.cluster.refusals == []
