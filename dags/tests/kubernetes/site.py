"""Dagster as on a cluster, in processes of this machine: web server, daemon, a code server, and pods for runs.

It uses the project's own limits, Postgres, and the loopback Kubernetes API.
"""

import base64
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
import yaml

from dags.local import ports
from dags.tests import webserver
from dags.tests.alerts.world import local_instance
from dags.tests.kubernetes.conftest import IMAGE
from dags.tests.kubernetes.permissions import environment_of
from dags.tests.kubernetes.server import KubernetesServer
from dags.tests.webserver import POLL_SECONDS, ROOT, START_SECONDS, STOP_SECONDS, Webserver, wait_for

# The names of the Dagster chart.
PASSWORD_SECRET, PASSWORD_KEY, PASSWORD_VARIABLE = (
    "dagster-postgresql-secret",
    "postgresql-password",
    "DAGSTER_PG_PASSWORD",
)
PASSWORD = "password-of-dagster"  # noqa: S105 - the local Postgres does not check it
ENVIRONMENT_SECRET, ENVIRONMENT_MAP = "analytics-platform-secrets", "analytics-platform-settings"
SECRET_NAMES = ("OBJECT_STORAGE_SECRET_ACCESS_KEY", "CLICKHOUSE_PASSWORD", "POSTGRES_PASSWORD")
LAUNCHER = {"module": "dags.common.resilient_kubernetes", "class": "ResilientK8sRunLauncher"}


@dataclass(frozen=True)
class Site:
    """The parts of a running platform that a test uses."""

    home: Path
    location: str
    server: Webserver
    instance: dg.DagsterInstance
    kubernetes: KubernetesServer
    environment: Mapping[str, str]

    def daemon(self) -> contextlib.AbstractContextManager[None]:
        """Run the daemon until the end of the block."""
        return webserver.daemon(self.home, self.environment)

    def launch(self, job: str, **how: Any) -> str:
        """Launch a run of a job of the location; return its id."""
        return self.server.launch(self.location, job, **how)

    def pod_of(self, run_id: str, component: str = "run_worker") -> str | None:
        """Return the name of the running pod of a run, or of its step in progress; None when no pod runs."""
        labels = {"dagster/run-id": run_id, "app.kubernetes.io/component": component}
        pods = self.kubernetes.cluster.find("pods", {"status.phase": "Running"}, labels)
        return pods[0]["metadata"]["name"] if pods else None

    def wait_for_pod(self, run_id: str, seconds: float, component: str = "run_worker") -> str:
        """Return the name of that pod as soon as its process runs."""
        return wait_for(lambda: self.pod_of(run_id, component), seconds, f"run {run_id} has a running {component}")

    def wait_for_status(self, run_id: str, status: dg.DagsterRunStatus, seconds: float) -> None:
        """Return as soon as a run has this status."""

        def reached() -> bool | None:
            run = self.instance.get_run_by_id(run_id)
            return (run is not None and run.status is status) or None

        wait_for(reached, seconds, f"run {run_id} is {status.value}; {self.kubernetes.cluster.refusals}")

    def events(self, run_id: str) -> str:
        """Return the messages of the events of a run."""
        return "\n".join(entry.message for entry in self.instance.all_logs(run_id))


def configuration(dsn: str, home: Path, monitoring: Mapping[str, Any]) -> dict[str, Any]:
    """Return the project's own instance with its limits, on Postgres and Kubernetes, with shorter intervals."""
    project = yaml.safe_load((ROOT / ".dagster_home" / "dagster.yaml").read_text())
    address = sa.make_url(dsn)
    database = {
        "username": address.username,
        "password": {"env": PASSWORD_VARIABLE},
        "hostname": address.host,
        "port": address.port,
        "db_name": address.database,
    }
    production = yaml.safe_load((ROOT / "deploy" / "dagster.yaml").read_text())["run_launcher"]["config"]
    launching = {
        **{key: production[key] for key in ("load_incluster_config", "service_account_name", "run_k8s_config")},
        "job_namespace": "dagster",
        "instance_config_map": "dagster-instance",
        "dagster_home": str(home),
        "postgres_password_secret": PASSWORD_SECRET,
        "image_pull_policy": "IfNotPresent",
        "env_config_maps": [ENVIRONMENT_MAP],
        "env_secrets": [ENVIRONMENT_SECRET],
        "resources": {
            "requests": {"cpu": "250m", "memory": "512Mi"},
            "limits": {"memory": "1Gi"},
        },
        "security_context": {
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    project["run_coordinator"]["config"] = {"dequeue_interval_seconds": 1}
    project["run_monitoring"] |= {"poll_interval_seconds": 2, **monitoring}
    return {
        **project,
        "storage": {"postgres": {"postgres_db": database}},
        "run_launcher": {**LAUNCHER, "config": launching},
    }


def create_environment(kubernetes: KubernetesServer, environment: Mapping[str, str]) -> None:
    """Create the Secrets and the ConfigMap of the environment of pods."""
    secrets = {name: value for name, value in environment.items() if name in SECRET_NAMES}
    settings = {name: value for name, value in environment.items() if name not in SECRET_NAMES}
    _add(kubernetes, "Secret", PASSWORD_SECRET, _encoded({PASSWORD_KEY: PASSWORD}))
    _add(kubernetes, "Secret", ENVIRONMENT_SECRET, _encoded(secrets))
    _add(kubernetes, "ConfigMap", ENVIRONMENT_MAP, settings)


def _add(kubernetes: KubernetesServer, kind: str, name: str, data: Mapping[str, str]) -> None:
    manifest = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": dict(data)}
    kubernetes.cluster.create(f"{kind.lower()}s", manifest)


def _encoded(data: Mapping[str, str]) -> dict[str, str]:
    return {name: base64.b64encode(value.encode()).decode() for name, value in data.items()}


@contextlib.contextmanager
def code_server(home: Path, location: str, target: Sequence[str], environment: Mapping[str, str]) -> Iterator[int]:
    """Yield the port of a code server that is started as the Dagster chart starts it."""
    port = ports.free_port()
    command = ["api", "grpc", "-h", ports.LOOPBACK, "-p", str(port), *target, "-d", str(ROOT)]
    log = home / "code_server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "dagster", *command, "--location-name", location, "--container-image", IMAGE],
            cwd=ROOT,
            env={**os.environ, "DEBUG": "1", "DAGSTER_HOME": str(home), **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while ports.is_free(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(POLL_SECONDS)
            yield port
        finally:
            process.terminate()
            process.wait(STOP_SECONDS)


@contextlib.contextmanager
def prepared(
    tmp_path: Path,
    dsn: str,
    kubernetes: KubernetesServer,
    location: str,
    target: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    **monitoring: Any,
) -> Iterator[Site]:
    """Yield a platform without its daemon, so that runs stay queued.

    `target` names the code of the location: `-m module` or `-f file`. `monitoring` changes `run_monitoring`.
    """
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / "dagster.yaml").write_text(yaml.safe_dump(configuration(dsn, home, monitoring)))
    shared = {"DEBUG": "1", **(environment or {})}
    create_environment(kubernetes, shared)
    own = {**shared, PASSWORD_VARIABLE: PASSWORD}
    port_of_api = kubernetes.cluster.port
    no_token = environment_of(None, tmp_path / "code-server-account", port_of_api)
    account = kubernetes.cluster.accounts["dagster"]
    with code_server(home, location, target, {**own, **no_token}) as port:
        server_entry = {"host": ports.LOOPBACK, "port": port, "location_name": location}
        (home / "workspace.yaml").write_text(yaml.safe_dump({"load_from": [{"grpc_server": server_entry}]}))
        starting_jobs = {**own, **environment_of(account, tmp_path / "account", port_of_api)}
        with (
            webserver.serving(home, webserver.WEBSERVER, starting_jobs) as server,
            local_instance(tmp_path / "looking", dsn) as instance,
        ):
            yield Site(home, location, server, instance, kubernetes, starting_jobs)


@contextlib.contextmanager
def running(*arguments: Any, **named: Any) -> Iterator[Site]:
    """Yield a platform with its daemon; the arguments are those of `prepared`."""
    with prepared(*arguments, **named) as made, made.daemon():
        yield made
