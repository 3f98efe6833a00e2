"""At most one run computes web tables at a time, with the limits of the project's own instance and a real daemon."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest
import requests

from dags.local import ports
from dags.tests.web_preaggregated.events import DAY, Event, Numbers, Web, at

ROOT = Path(__file__).parents[3]
START_SECONDS = 150
BACKFILL_SECONDS = 600
LOOK_SECONDS = 0.1
IN_PROGRESS = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
OVER = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
DAILY_KEYS = ["web_analytics_stats_table_daily", "web_analytics_bounces_daily"]

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
SELECTOR = {"repositoryLocationName": "web_analytics", "repositoryName": "__repository__"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An instance of its own with the project's configuration."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    (tmp_path / "workspace.yaml").write_text(
        "load_from:\n  - python_module:\n      module_name: dags.locations.web_analytics\n"
        "      location_name: web_analytics\n"
    )
    return tmp_path


@pytest.fixture
def webserver(home: Path, clickhouse_port: int, clickhouse_database: str, web: Web) -> Iterator[str]:
    """Address of `dagster dev`: a web server, a daemon and a code server; each run takes one day."""
    assert web.cluster.database == clickhouse_database
    port = ports.free_port()
    environment = {
        **os.environ,
        "DEBUG": "1",
        "DAGSTER_HOME": str(home),
        "CLICKHOUSE_PORT": str(clickhouse_port),
        "CLICKHOUSE_DATABASE": clickhouse_database,
        "DAGSTER_WEB_PREAGGREGATED_MAX_PARTITIONS_PER_RUN": "1",
    }
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(home / "workspace.yaml"), "-p", str(port)]
    log = home / "dev.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_loaded(f"http://{ports.LOOPBACK}:{port}", process, log)
            yield f"http://{ports.LOOPBACK}:{port}"
        finally:
            process.terminate()
            process.wait(60)


def wait_until_loaded(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            answer = graphql(address, "{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }", {})
        except requests.ConnectionError:
            answer = {}
        if answer.get("repositoriesOrError", {}).get("nodes"):
            return
        time.sleep(1)
    pytest.fail(f"the web server is not ready:\n{log.read_text()}")


def graphql(address: str, query: str, variables: dict[str, object]) -> dict[str, dict[str, object]]:
    response = requests.post(f"{address}/graphql", json={"query": query, "variables": variables}, timeout=60)
    answer = response.json()
    assert "errors" not in answer, answer
    data: dict[str, dict[str, object]] = answer["data"]
    return data


def start_backfill(address: str, days: Sequence[str]) -> None:
    params = {
        "partitionNames": list(days),
        "assetSelection": [{"path": [key]} for key in DAILY_KEYS],
        "fromFailure": False,
    }
    answer = graphql(address, LAUNCH_BACKFILL, {"params": params})["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer


def start_hourly_job(address: str) -> None:
    selector = {**SELECTOR, "jobName": "web_pre_aggregate_current_day_hourly_job"}
    answer = graphql(address, LAUNCH_RUN, {"params": {"selector": selector, "runConfigData": {}, "mode": "default"}})
    assert answer["launchRun"]["__typename"] == "LaunchRunSuccess", answer


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + BACKFILL_SECONDS + 60)
def test_a_backfill_of_five_days_and_a_job_beside_it_run_one_at_a_time(home: Path, webserver: str, web: Web) -> None:
    days = [(DAY.replace(day=DAY.day + n)).isoformat() for n in range(5)]
    web.add(*(Event(at("10:00:00", day=n), f"session {n}") for n in range(5)))
    start_backfill(webserver, days)
    start_hourly_job(webserver)

    most_at_once, waited = 0, False
    statuses: dict[str, dg.DagsterRunStatus] = {}
    deadline = time.monotonic() + BACKFILL_SECONDS
    with dg.DagsterInstance.from_config(str(home)) as instance:
        while time.monotonic() < deadline:
            runs = instance.get_runs()
            statuses = {run.run_id: run.status for run in runs}
            most_at_once = max(most_at_once, sum(status in IN_PROGRESS for status in statuses.values()))
            waited = waited or dg.DagsterRunStatus.QUEUED in statuses.values()
            if len(runs) == 6 and set(statuses.values()) <= OVER:
                break
            time.sleep(LOOK_SECONDS)
        jobs = sorted(run.job_name for run in instance.get_runs())
        # What one look sees may be too late: the events tell from when to when each run was in progress.
        spans = sorted(
            (stats.start_time, stats.end_time)
            for stats in (instance.get_run_stats(run_id) for run_id in statuses)
            if stats.start_time is not None and stats.end_time is not None
        )
    assert list(statuses.values()) == [dg.DagsterRunStatus.SUCCESS] * 6, statuses
    assert jobs == ["__ASSET_JOB"] * 5 + ["web_pre_aggregate_current_day_hourly_job"]
    assert waited, "no run was ever queued: the test proves nothing"
    assert most_at_once == 1
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(spans)), spans
    assert [web.totals(DAY.replace(day=DAY.day + n)) for n in range(5)] == [Numbers(1, 1, 1, 1, 0)] * 5
