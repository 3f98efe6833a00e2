import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from dags.local import ports

ROOT = Path(__file__).resolve().parents[3]
LOCATIONS_QUERY = """
{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }
"""

RUNS_QUERY = "{ runsOrError { ... on Runs { results { jobName status } } } }"


def test_a_busy_port_of_the_ui_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [sys.executable, "-m", "dags.local.dev", "up", "--port", str(port)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 1
    assert f"Port {port}, needed by Dagster's UI, is used by" in result.stderr
    assert "DAGSTER_PORT=3001 make dev" in result.stderr
    assert list(tmp_path.iterdir()) == []


def ask(port: int, query: str) -> Any:
    """Return the data of a GraphQL response of Dagster's UI, or None while it does not respond."""
    with contextlib.suppress(requests.ConnectionError):
        answer = requests.post(f"http://{ports.LOOPBACK}:{port}/graphql", json={"query": query}, timeout=30)
        return answer.json()["data"]
    return None


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run what `make dev` runs on free ports and an empty directory; yield the process and the port of the UI."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    clickhouse, s3, postgres, web = (ports.free_port() for _ in range(4))
    stack = [sys.executable, "-m", "dags.local", "up", "--directory", str(tmp_path / "local")]
    options = [f"--clickhouse-port={clickhouse}", f"--s3-port={s3}", f"--postgres-port={postgres}"]
    serve = [sys.executable, "-m", "dags.local.dev", "serve", "--port", str(web)]
    process = subprocess.Popen(
        [*stack, *options, "--", *serve],
        cwd=ROOT,
        env={**os.environ, "DEBUG": "1", "DAGSTER_HOME": str(tmp_path)},
        start_new_session=True,
    )
    yield process, web
    if process.poll() is None:
        process.kill()
        process.wait(30)


@pytest.mark.slow
def test_dev_serves_every_location_with_the_sample_loaded_and_leaves_no_process_behind(
    platform: tuple[subprocess.Popen[bytes], int],
) -> None:
    process, port = platform
    deadline = time.monotonic() + 120
    while (data := ask(port, LOCATIONS_QUERY)) is None:
        assert process.poll() is None, f"it ended with code {process.returncode}"
        assert time.monotonic() < deadline, "the web interface does not answer"
        time.sleep(0.2)
    entries = {
        one["name"]: one["locationOrLoadError"]["__typename"] for one in data["workspaceOrError"]["locationEntries"]
    }
    names = {path.stem for path in (ROOT / "dags" / "locations").glob("*.py")} - {"__init__"}
    assert entries == dict.fromkeys(names, "RepositoryLocation")

    runs = ask(port, RUNS_QUERY)["runsOrError"]["results"]
    assert {"jobName": "load_events_job", "status": "SUCCESS"} in runs

    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    process.wait(90)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
