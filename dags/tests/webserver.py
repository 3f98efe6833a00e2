"""Dagster's webserver and daemon as processes on a temporary instance, and the GraphQL requests of the tests."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import psutil
import pytest
import requests

from dags.local import ports

ROOT = Path(__file__).parents[2]
START_SECONDS = 150
STOP_SECONDS = 60
POLL_SECONDS = 0.1
REPOSITORY = "__repository__"
Found = TypeVar("Found")

# The webserver alone, which launches runs at once, and the one with the daemon, which has the run queue.
WEBSERVER = ("dagster_webserver",)
DEVELOPMENT = ("dagster", "dev")

LAUNCH_BACKFILL = """
mutation($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
LAUNCH_RUN = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
LAUNCH_REEXECUTION = """
mutation($params: ReexecutionParams!) {
  launchRunReexecution(reexecutionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
REPOSITORIES = "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }"


def write_workspace(home: Path, *modules: str) -> None:
    """Write the workspace of these modules of `dags`, each a location named after its last part."""
    entries = "".join(
        f"  - python_module:\n      module_name: dags.{module}\n      location_name: {module.rsplit('.', 1)[-1]}\n"
        for module in modules
    )
    (home / "workspace.yaml").write_text(f"load_from:\n{entries}")


@dataclass(frozen=True)
class Webserver:
    """A running webserver."""

    address: str

    def query(self, query: str, **variables: object) -> Any:
        """Run a GraphQL query; return its only field."""
        response = requests.post(f"{self.address}/graphql", json={"query": query, "variables": variables}, timeout=60)
        result = response.json()
        assert "errors" not in result, result
        (field,) = result["data"].values()
        return field

    def backfill(self, asset_keys: Sequence[str], partitions: Sequence[str]) -> None:
        """Start a backfill of assets."""
        selection = [{"path": [key]} for key in asset_keys]
        params = {"partitionNames": list(partitions), "assetSelection": selection, "fromFailure": False}
        result = self.query(LAUNCH_BACKFILL, params=params)
        assert result["__typename"] == "LaunchBackfillSuccess", result

    def launch(
        self,
        location: str,
        job: str,
        *,
        config: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        asset_keys: Sequence[str] | None = None,
    ) -> str:
        """Launch a run of a job, or of some of its assets without their checks; return the run's id."""
        selector: dict[str, object] = {
            "repositoryLocationName": location,
            "repositoryName": REPOSITORY,
            "jobName": job,
        }
        if asset_keys is not None:
            selector["assetSelection"] = [{"path": [key]} for key in asset_keys]
            selector["assetCheckSelection"] = []
        params = {
            "selector": selector,
            "runConfigData": config or {},
            "mode": "default",
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]},
        }
        return self._run_id(self.query(LAUNCH_RUN, params=params))

    def reexecute_from_failure(self, run_id: str) -> str:
        """Re-execute a run from failure, as in the UI; return the new run's id."""
        params = {"parentRunId": run_id, "strategy": "FROM_FAILURE"}
        return self._run_id(self.query(LAUNCH_REEXECUTION, params=params))

    @staticmethod
    def _run_id(result: Any) -> str:
        assert result["__typename"] == "LaunchRunSuccess", result
        return str(result["run"]["runId"])


@contextlib.contextmanager
def serving(
    home: Path, command: Sequence[str], environment: Mapping[str, str], *, root: Path = ROOT
) -> Iterator[Webserver]:
    """Run `WEBSERVER` or `DEVELOPMENT` with the instance and the workspace of `home` until the end of the block.

    The code is the project at `root`.
    """
    port = ports.free_port()
    arguments = [sys.executable, "-m", *command, "-w", str(home / "workspace.yaml"), "-p", str(port)]
    log = home / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*arguments, "-h", ports.LOOPBACK],
            cwd=root,
            env={**os.environ, "DEBUG": "1", "DAGSTER_HOME": str(home), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _loaded(Webserver(f"http://{ports.LOOPBACK}:{port}"), process, log)
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


@contextlib.contextmanager
def daemon(home: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a daemon with the instance and the workspace of `home` until the end of the block."""
    with (home / "daemon.log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster._daemon", "run", "-w", str(home / "workspace.yaml")],
            cwd=ROOT,
            env={**os.environ, "DEBUG": "1", "DAGSTER_HOME": str(home), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


def _loaded(webserver: Webserver, process: "subprocess.Popen[bytes]", log: Path) -> Webserver:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(requests.ConnectionError):
            if webserver.query(REPOSITORIES).get("nodes"):
                return webserver
        time.sleep(POLL_SECONDS)
    pytest.fail(f"the webserver is not ready:\n{log.read_text()}")


def wait_for_run(instance: dg.DagsterInstance, run_id: str, seconds: float) -> dg.DagsterRunStatus:
    """Wait until a run has finished; return its status."""

    def status() -> dg.DagsterRunStatus | None:
        run = instance.get_run_by_id(run_id)
        return run.status if run is not None and run.is_finished else None

    return wait_for(status, seconds, f"run {run_id} has finished")


def worker_of(instance: dg.DagsterInstance, run_id: str) -> psutil.Process | None:
    """Return the process of a run, from the event log, or None before it has one."""
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        if entry.dagster_event is not None and "Started process for run" in (entry.dagster_event.message or ""):
            return psutil.Process(int(str(entry.dagster_event.engine_event_data.metadata["pid"].value)))
    return None


def wait_for(read: Callable[[], Found | None], seconds: float, what: str) -> Found:
    """Return the first result of `read` that is not None. Fail the test when that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while (found := read()) is None:
        assert time.monotonic() < deadline, f"timed out after {seconds:g} seconds waiting until {what}"
        time.sleep(POLL_SECONDS)
    return found
