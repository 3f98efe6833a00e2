"""Dagster's own daemon loads an object into `events` soon after it is uploaded."""

import shutil
from pathlib import Path

import dagster as dg
import pytest

from dags.events.jobs import BATCH_TAG
from dags.tests import webserver
from dags.tests.events.world import World, event, lines
from dags.tests.webserver import ROOT, START_SECONDS, wait_for, worker_of

# A tick every 30 seconds, the queue and a worker, and all of it twice where a worker is killed.
LOAD_SECONDS = 180


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A separate instance with the project's configuration."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    webserver.write_workspace(tmp_path, "locations.ingestion")
    return tmp_path


def numbers(world: World) -> list[int]:
    return [value.int - 1 for value in world.column("uuid")]


def wait_for_loads(world: World, instance: dg.DagsterInstance, count: int) -> None:
    def loads_are_finished() -> bool | None:
        runs = instance.get_runs()
        states = sorted(world.states().values())
        return True if states.count("loaded") == count and all(run.is_finished for run in runs) else None

    wait_for(loads_are_finished, LOAD_SECONDS, f"{count} objects are loaded")


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 3 * LOAD_SECONDS + 60)
def test_the_daemon_loads_new_objects_once_and_retries_a_killed_run(home: Path, world: World) -> None:
    (host,) = world.cluster.hosts
    environment = {
        "CLICKHOUSE_PORT": str(host.port),
        "CLICKHOUSE_DATABASE": world.cluster.database,
        "POSTGRES_PORT": str(world.postgres.port),
        "OBJECT_STORAGE_ENDPOINT": world.storage.bucket_url.removesuffix(f"/{world.storage.bucket}"),
        "OBJECT_STORAGE_BUCKET": world.storage.bucket,
    }
    first = world.put("first.jsonl.gz", lines([*map(event, range(200)), "bad"]))
    with (
        webserver.serving(home, webserver.DEVELOPMENT, environment),
        dg.DagsterInstance.from_config(str(home)) as instance,
    ):
        wait_for_loads(world, instance, 1)
        assert numbers(world) == list(range(200))

        second = world.put("second.jsonl", lines(list(map(event, range(200, 300)))), team=2)
        killed = wait_for(
            lambda: next((run.run_id for run in instance.get_runs() if not run.is_finished), None),
            LOAD_SECONDS,
            "the sensor requests a second run",
        )
        wait_for(lambda: worker_of(instance, killed), LOAD_SECONDS, "the run has a process").kill()
        wait_for_loads(world, instance, 2)

        # A tick between the two may have requested the same objects too, which loads nothing twice.
        runs = {run.run_id: run for run in instance.get_runs()}
        (again,) = [run for run in runs.values() if run.parent_run_id == killed]
        assert all(BATCH_TAG in run.tags for run in runs.values())
        assert runs[killed].status is dg.DagsterRunStatus.FAILURE
        assert again.status is dg.DagsterRunStatus.SUCCESS
    assert numbers(world) == list(range(300))
    assert world.rows("SELECT object, rows, rejected_rows, state FROM ingested_objects FINAL ORDER BY object") == [
        (first, 200, 1, "loaded"),
        (second, 100, 0, "loaded"),
    ]
    assert world.rows("SELECT object, line FROM events_rejected") == [(first, 201)]
