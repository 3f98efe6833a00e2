"""The example that starts runs from outside, with a real web server behind a proxy that requires a token."""

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import dagster as dg
import pytest
import requests

from dags.local import ports
from dags.tests.deploy import chart
from dags.tests.webserver import WEBSERVER, serving, write_workspace

TOKEN = "a-token-of-the-identity-provider"  # noqa: S105 - a test value
PROGRAM = chart.DEPLOY / "examples" / "start_run.py"
JOB = ("shared", "run_retention_job")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def load_program() -> ModuleType:
    """Return the example as a module, since it is not part of a package."""
    spec = importlib.util.spec_from_file_location("start_run", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


example = load_program()


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[str]:
    """Yield the address of a proxy that redirects without a token, rejects an unknown one, and forwards otherwise."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            given = self.headers.get("Authorization", "")
            if given == "Bearer ":
                self.send_response(302)
                self.send_header("Location", "/oauth2/sign_in")
                self.end_headers()
                return
            if given != f"Bearer {TOKEN}":
                self.send_response(401)
                self.end_headers()
                return
            answer = requests.post(
                f"{upstream}{self.path}", data=body, headers={"Content-Type": "application/json"}, timeout=60
            )
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer((ports.LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{ports.LOOPBACK}:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an instance whose runs stay queued, because no daemon runs."""
    path = tmp_path_factory.mktemp("home")
    (path / "dagster.yaml").write_text(
        "telemetry: { enabled: false }\nrun_coordinator: { module: dagster, class: QueuedRunCoordinator }\n"
    )
    write_workspace(path, "locations.shared")
    return path


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    with serving(home, WEBSERVER, {}) as webserver, proxy(webserver.address) as address:
        yield address


@pytest.fixture
def instance(home: Path, url: str) -> Iterator[dg.DagsterInstance]:
    assert url
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


def runs_of(instance: dg.DagsterInstance, key: str) -> list[dg.DagsterRun]:
    return list(instance.get_runs(dg.RunsFilter(tags={example.KEY_TAG: key})))


def test_the_same_key_starts_one_run_with_its_config(url: str, instance: dg.DagsterInstance) -> None:
    config = {"ops": {"delete_old_runs": {"config": {"keep_days": 60}}}}
    first = example.start_run(url, TOKEN, *JOB, "once", config)
    second = example.start_run(url, TOKEN, *JOB, "once", config)
    (run,) = runs_of(instance, "once")
    assert first["runId"] == second["runId"] == run.run_id
    assert run.run_config == config
    assert example.start_run(url, TOKEN, *JOB, "another")["runId"] != run.run_id


def test_concurrent_starts_with_one_key_leave_one_run(url: str, instance: dg.DagsterInstance) -> None:
    with ThreadPoolExecutor(8) as pool:
        starts = [pool.submit(lambda: example.start_run(url, TOKEN, *JOB, "at-once")) for _ in range(8)]
        found = {start.result()["runId"] for start in starts}
    assert len(found) == 1
    left = [run for run in runs_of(instance, "at-once") if run.status is dg.DagsterRunStatus.QUEUED]
    assert [run.run_id for run in left] == list(found)


@pytest.mark.parametrize(
    ("job", "config", "reason"),
    [
        (("shared", "no_such_job"), {}, "PipelineNotFoundError.*no_such_job"),
        (JOB, {"ops": {"delete_old_runs": {"config": {"keep_dais": 60}}}}, "RunConfigValidationInvalid.*keep_dais"),
    ],
)
def test_a_refusal_of_dagster_is_an_error_with_the_reason(
    url: str, job: tuple[str, str], config: dict[str, object], reason: str
) -> None:
    with pytest.raises(example.StartError, match=reason):
        example.start_run(url, TOKEN, *job, "refused", config)


def test_no_run_starts_without_a_known_token(url: str, instance: dg.DagsterInstance) -> None:
    with pytest.raises(requests.HTTPError, match="401"):
        example.start_run(url, "unknown", *JOB, "unknown-token")
    with pytest.raises(example.StartError, match="login page"):
        example.start_run(url, "", *JOB, "no-token")
    assert runs_of(instance, "unknown-token") == runs_of(instance, "no-token") == []


def test_the_command_prints_the_run_id_and_names_a_missing_variable(url: str, instance: dg.DagsterInstance) -> None:
    def run(**environment: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(PROGRAM), "--location", JOB[0], "--job", JOB[1], "--key", "by-command"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DAGSTER_")}
        return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=False, timeout=60)

    done = run(DAGSTER_URL=url, DAGSTER_TOKEN=TOKEN)
    (started,) = runs_of(instance, "by-command")
    assert (done.returncode, done.stdout.strip()) == (0, started.run_id)
    missing = run(DAGSTER_URL=url)
    assert missing.returncode == 2
    assert "DAGSTER_TOKEN" in missing.stderr
