"""Whatever process is killed after whichever step, the next run ends with the result of one complete run."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.schema import apply_schema
from dags.common.deletion_requests import (
    RequestKind,
    RequestState,
    apply_migrations,
    list_requests,
    stale_days,
)
from dags.person_overrides.jobs import squash_person_overrides
from dags.tests.local.clickhouse.nodes import RunningNode, running_node
from dags.tests.resources import clickhouse_resource, postgres_resource
from dags.tests.rewriting import Event, Override, World, at, hosts_of, person, postgres_of
from dags.web_preaggregated.aggregate import pre_aggregate
from dags.web_preaggregated.raw import SUBJECTS, compare_with_raw

ROOT = Path(__file__).parents[3]
DATABASE = "default"
# More than any job has; the test stops when the worker ends before.
MAX_STEPS = 40
BULK_EVENTS = 300_000
BULK_TEAM = 99

BULK_STATEMENT = """
INSERT INTO events (uuid, event, team_id, distinct_id, person_id, session_id, timestamp, properties)
SELECT generateUUIDv4(), '$pageview', %(team)s, concat('bulk ', toString(number %% 1000)),
    toUUID('00000000-0000-0000-0000-000000000001'), toString(intDiv(number, 4)),
    toDateTime64('2026-03-30 00:00:00', 6, 'UTC') + number %% 300000, repeat('properties ', 20)
FROM numbers(%(events)s)
"""
WRONG_PERSONS_STATEMENT = """
SELECT countIf(person_id != if(toUInt32(substring(distinct_id, 6)) < 500, toUUID(%(new)s), toUUID(%(old)s)))
FROM events WHERE team_id = %(team)s
"""


@dataclass
class Nodes:
    """Two nodes with data of their own, which a test may kill and restart."""

    directory: Path
    running: list[RunningNode]
    stack: contextlib.ExitStack

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.running]

    def restart(self, number: int) -> None:
        port = self.running[number].port
        self.running[number] = self.stack.enter_context(running_node(self.directory / str(number), port=port))


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(running_node(tmp_path / str(number))) for number in range(2)]
        yield Nodes(tmp_path, running, stack)


@contextlib.contextmanager
def world_of(nodes: Nodes, dsn: str) -> Iterator[World]:
    postgres = postgres_of(dsn)
    apply_migrations(postgres)
    with ClickhouseCluster(hosts_of(nodes.ports), Access(database=DATABASE)) as cluster:
        apply_schema(cluster, clustered=False)
        yield World(cluster, postgres)


@contextlib.contextmanager
def worker(job: str, nodes: Nodes, dsn: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a job, which waits after its first step. It is killed at the end of the block unless it has ended."""
    command = [sys.executable, "-m", "dags.tests.rewrite_worker", job, dsn, DATABASE, *map(str, nodes.ports)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "The lock is held.\n"
            yield process
        finally:
            process.kill()


def take_step(process: "subprocess.Popen[str]") -> str:
    """Let it take one more step; return the line that it prints, which is empty when it has ended."""
    release(process)
    return next_line(process)


def release(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def next_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def run_to(process: "subprocess.Popen[str]", steps: int) -> bool:
    """Let it take so many steps; return whether it is still in progress."""
    return all(take_step(process) for _ in range(steps))


def fill(world: World, round_: int) -> tuple[Event, ...]:
    """Insert events over two months, with overrides and tombstones in chains; return the events."""
    events = tuple(
        Event(person(number), f"{round_} {visitor}", timestamp=at(hours), session_id=f"{round_} {visitor}")
        for number, visitor in ((1, "chained"), (2, "buried"), (3, "single"), (4, "without override"))
        for hours in (0, 1, 60)
    )
    world.add(events)
    rows = [
        Override(person(11), f"{round_} chained", version=1, _timestamp=at(1)),
        Override(person(12), f"{round_} chained", version=2, _timestamp=at(2)),
        Override(person(13), f"{round_} buried", version=1, _timestamp=at(1)),
        Override(person(13), f"{round_} buried", version=2, is_deleted=1, _timestamp=at(2)),
        Override(person(14), f"{round_} single", version=1, _timestamp=at(1)),
    ]
    for row in rows:
        world.override([row])
    return events


def assert_squashed(world: World, round_: int, events: tuple[Event, ...]) -> None:
    wanted = {f"{round_} chained": person(12), f"{round_} single": person(14)}
    persons = world.persons()
    assert {event.uuid: persons[event.uuid] for event in events} == {
        event.uuid: wanted.get(event.distinct_id, event.person_id) for event in events
    }
    assert world.overrides() == set()
    assert world.run_tables() == []


def assert_web_tables_equal_the_events(world: World) -> None:
    for host in world.cluster.hosts:
        for subject in SUBJECTS:
            found = compare_with_raw(world.cluster.only(host), subject, at(0).date(), at(72).date())
            assert found.different == 0, "\n".join(map(str, found.listed))


def assert_deleted(world: World, events: tuple[Event, ...]) -> None:
    """Assert that events of persons 1 and 3 up to an hour after the start are deleted, with evidence."""
    deleted = {event.uuid for event in events if event.person_id in (person(1), person(3)) and event.timestamp <= at(1)}
    kept = world.persons()
    assert {event.uuid for event in events if event.uuid not in kept} == deleted
    for request in list_requests(world.postgres):
        assert request.state is RequestState.DONE
        assert request.evidence is not None
        assert request.evidence["rows_after"]["events"] == 0
    assert stale_days(world.postgres) == []
    assert_web_tables_equal_the_events(world)
    assert world.run_tables() == []


def prepare_deletes(world: World, round_: int) -> tuple[Event, ...]:
    events = fill(world, round_)
    world.cluster.map_all_hosts(Query("TRUNCATE TABLE person_distinct_id_overrides SYNC", retryable=True)).result()
    days = [at(24 * day).date() for day in range(4)]
    pre_aggregate(world.cluster, days, run_id="before")
    for number in (1, 3):
        world.request(RequestKind.PERSON, 1, [str(person(number))], at(1))
    return events


def kill_after(job: str, step: int, nodes: Nodes, dsn: str) -> bool:
    """Kill the worker of the job after that step; return whether it was still in progress."""
    with worker(job, nodes, dsn) as process:
        in_progress = run_to(process, step)
        process.kill()
        process.wait()
    return in_progress


@pytest.mark.parametrize("job", ["squash", "delete"])
def test_the_next_run_completes_the_work_of_a_worker_that_was_killed(job: str, nodes: Nodes, postgres_dsn: str) -> None:
    with world_of(nodes, postgres_dsn) as world:
        events = fill(world, 0) if job == "squash" else prepare_deletes(world, 0)
        assert kill_after(job, 5, nodes, postgres_dsn)
        assert world.run_tables() != []
        if job == "squash":
            world.squash()
            assert_squashed(world, 0, events)
        else:
            world.delete()
            assert_deleted(world, events)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("job", ["squash", "delete"])
def test_a_worker_may_be_killed_after_any_step(job: str, nodes: Nodes, postgres_dsn: str) -> None:
    killed = 0
    with world_of(nodes, postgres_dsn) as world:
        for step in range(MAX_STEPS):
            events = fill(world, step) if job == "squash" else prepare_deletes(world, step)
            killed += kill_after(job, step, nodes, postgres_dsn)
            if job == "squash":
                world.squash()
                assert_squashed(world, step, events)
            else:
                world.delete()
                assert_deleted(world, events)
            if killed <= step:
                break
    assert killed > 8, "the job has more steps than that"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("job", ["squash", "delete"])
def test_a_node_may_be_killed_after_any_step(job: str, nodes: Nodes, postgres_dsn: str) -> None:
    """The node restarts while the worker continues or has failed; the next run completes the work."""
    killed = 0
    with world_of(nodes, postgres_dsn) as world:
        world.cluster.map_all_hosts(Query(BULK_STATEMENT, {"team": BULK_TEAM, "events": BULK_EVENTS})).result()
        for step in range(MAX_STEPS):
            events = fill(world, step) if job == "squash" else prepare_deletes(world, step)
            if job == "squash":
                bulk = [
                    Override(person(step), f"bulk {number}", BULK_TEAM, version=step, _timestamp=at(1))
                    for number in range(500)
                ]
                world.override(bulk)
            with worker(job, nodes, postgres_dsn) as process:
                in_progress = run_to(process, step)
                nodes.running[step % 2].kill()
                if in_progress:
                    release(process)
                nodes.restart(step % 2)
                while in_progress and next_line(process):
                    release(process)
                process.kill()
                process.wait()
            killed += in_progress
            if job == "squash":
                world.squash()
                assert_squashed(world, step, events)
                parameters = {"team": BULK_TEAM, "new": str(person(step)), "old": str(person(0))}
                assert world.everywhere(WRONG_PERSONS_STATEMENT, parameters) == [(0,), (0,)]
            else:
                world.delete()
                assert_deleted(world, events)
            if not in_progress:
                break
    assert killed > 8, "the job has more steps than that"


def test_a_second_job_is_refused_with_the_name_of_the_job_that_holds_the_lock(nodes: Nodes, postgres_dsn: str) -> None:
    with world_of(nodes, postgres_dsn) as world:
        events = fill(world, 0)
        config = {"ops": {"squash_overrides": {"config": {"dry_run": False, "lock_wait_seconds": 1, "cutoff_days": 0}}}}
        resources = {"clickhouse": clickhouse_resource(world.cluster), "postgres": postgres_resource(world.postgres)}
        with worker("delete", nodes, postgres_dsn) as process, dg.DagsterInstance.ephemeral() as instance:
            refused = squash_person_overrides.execute_in_process(
                config, instance=instance, resources=resources, raise_on_error=False
            )
            assert not refused.success
            (failure,) = refused.filter_events(lambda event: event.is_step_failure)
            assert failure.step_failure_data.user_failure_data is not None
            description = str(failure.step_failure_data.user_failure_data.description)
            assert "Only one run at a time" in description
            assert "worker of delete" in description
            while take_step(process):
                pass
            assert process.wait() == 0
        with dg.DagsterInstance.ephemeral() as instance:
            assert squash_person_overrides.execute_in_process(config, instance=instance, resources=resources).success
        assert_squashed(world, 0, events)
