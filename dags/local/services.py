"""One service of the stack: how to start it, probe its health, and stop it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dags.local import ports

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PROJECT = Path(__file__).parents[2]
START_TIMEOUT_SECONDS = 90
STOP_TIMEOUT_SECONDS = 30
PROBE_TIMEOUT_SECONDS = 5
LOG_TAIL_LINES = 15


class ServiceError(Exception):
    """A service did not start, or died. The message has its name and the end of its log."""


@dataclass(frozen=True)
class Credentials:
    """Names and keys that the services are created with and clients use."""

    clickhouse_user: str = "default"
    clickhouse_database: str = "default"
    s3_access_key_id: str = "local"
    s3_secret_access_key: str = "local-secret"  # noqa: S105 - the embedded S3 accepts any key
    s3_region: str = "us-east-1"
    s3_bucket: str = "analytics"
    postgres_user: str = "postgres"
    postgres_database: str = "analytics"


@dataclass(frozen=True)
class Service:
    """A service that can be started: it runs `module` with `arguments` and keeps its data in `directory`."""

    name: str
    kind: str
    port: int
    directory: Path
    module: str
    arguments: tuple[str, ...]
    # How to choose another port: `--s3-port or OBJECT_STORAGE_ENDPOINT`.
    port_remedy: str

    @property
    def address(self) -> str:
        """The address on which it listens."""
        return f"http://{ports.LOOPBACK}:{self.port}" if self.kind == "s3" else f"{ports.LOOPBACK}:{self.port}"


@dataclass(frozen=True)
class Lifeline:
    """A pipe whose writing end only this process holds: holders of the reading end notice when it dies."""

    reading: int
    writing: int

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator["Lifeline"]:
        """Yield a lifeline; at the end of the block every process that depends on it stops."""
        lifeline = cls(*os.pipe())
        try:
            yield lifeline
        finally:
            os.close(lifeline.reading)
            os.close(lifeline.writing)

    def spawn(
        self, arguments: list[str], *, output: int | None, environment: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        """Start `dags.local.lifeline` in a new session, so that Ctrl-C reaches only this process."""
        return subprocess.Popen(
            [sys.executable, "-m", "dags.local.lifeline", str(self.reading), *arguments],
            cwd=PROJECT,
            env=environment,
            # A command uses the terminal as if it had been started there; a service must not read from it.
            stdin=None if output is None else subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            pass_fds=(self.reading,),
            start_new_session=True,
        )


@dataclass(frozen=True)
class StartedService:
    """A service and its process."""

    service: Service
    process: "subprocess.Popen[bytes]"
    log: Path


def clickhouse_nodes(directory: Path, node_ports: tuple[int, ...]) -> list[Service]:
    """Return the nodes of an embedded ClickHouse cluster, one for each shard, on these ports."""
    addresses = ",".join(f"{ports.LOOPBACK}:{port}" for port in node_ports)
    nodes = []
    for shard, port in enumerate(node_ports, start=1):
        path = directory / "clickhouse" / f"node-{shard}"
        nodes.append(
            Service(
                name=f"clickhouse-{shard}",
                kind="clickhouse",
                port=port,
                directory=path,
                module="dags.local.clickhouse",
                arguments=(
                    *("--port", str(port), "--path", str(path)),
                    *("--cluster-nodes", addresses, "--shard", str(shard)),
                ),
                port_remedy="--clickhouse-port or CLICKHOUSE_PORT",
            )
        )
    return nodes


def s3(directory: Path, port: int, credentials: Credentials) -> Service:
    """Return the S3 server."""
    path = directory / "s3"
    return Service(
        name="s3",
        kind="s3",
        port=port,
        directory=path,
        module="dags.local.s3",
        arguments=(
            *("--port", str(port), "--path", str(path)),
            *("--bucket", credentials.s3_bucket, "--region", credentials.s3_region),
        ),
        port_remedy="--s3-port or OBJECT_STORAGE_ENDPOINT",
    )


def postgres(directory: Path, port: int, credentials: Credentials) -> Service:
    """Return the Postgres server, with the project's database and one for Dagster's storage."""
    path = directory / "postgres"
    return Service(
        name="postgres",
        kind="postgres",
        port=port,
        directory=path,
        module="dags.local.postgres",
        arguments=(
            *("serve", "--port", str(port), "--path", str(path), "--user", credentials.postgres_user),
            # The probe connects to the database that is created last.
            *("--database", "dagster", "--database", credentials.postgres_database),
        ),
        port_remedy="--postgres-port or POSTGRES_PORT",
    )


def start(service: Service, lifeline: Lifeline, logs: Path) -> StartedService:
    """Start a service; its output goes to a new log, and the previous log is kept as `*.previous.log`."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{service.name}.log"
    if log.exists():
        log.replace(logs / f"{service.name}.previous.log")
    with log.open("wb") as output:
        process = lifeline.spawn(
            ["module", service.module, *service.arguments],
            output=output.fileno(),
            environment={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    return StartedService(service, process, log)


def wait_until_healthy(
    started: StartedService,
    credentials: Credentials,
    *,
    timeout_seconds: float = START_TIMEOUT_SECONDS,
    on_wait: Callable[[float, str], None] = lambda _seconds, _problem: None,
) -> None:
    """Return once the service answers a request. Raises ServiceError when it dies, or does not answer in time.

    `on_wait` is called several times a second with the seconds waited so far and the current problem.
    """
    begin = time.monotonic()
    while True:
        if started.process.poll() is not None:
            raise ServiceError(describe_end(started))
        problem = probe(started.service.kind, started.service.port, credentials)
        if problem is None:
            return
        waited = time.monotonic() - begin
        if waited > timeout_seconds:
            raise ServiceError(
                f"{started.service.name} does not answer after {timeout_seconds:.0f} seconds ({problem}).\n"
                f"{tail(started.log)}"
            )
        on_wait(waited, problem)
        time.sleep(0.1)


def probe(kind: str, port: int, credentials: Credentials) -> str | None:
    """Send a request to a service; return None when it answers, otherwise the problem in one line."""
    try:
        # While a service starts, connections are usually refused, which clients report late.
        with contextlib.closing(ports.connect(port, PROBE_TIMEOUT_SECONDS)):
            pass
        PROBES[kind](port, credentials)
    except Exception as error:  # noqa: BLE001 - clients raise anything, and each of them means "not healthy"
        return f"{type(error).__name__}: {error}".strip().splitlines()[0]
    return None


def probe_clickhouse(port: int, credentials: Credentials) -> None:
    """Run `SELECT 1`; raise what the client raises."""
    from clickhouse_driver import Client

    client = Client(
        ports.LOOPBACK,
        port=port,
        user=credentials.clickhouse_user,
        connect_timeout=PROBE_TIMEOUT_SECONDS,
        send_receive_timeout=PROBE_TIMEOUT_SECONDS,
        sync_request_timeout=PROBE_TIMEOUT_SECONDS,
    )
    try:
        client.execute("SELECT 1")
    finally:
        client.disconnect()


def probe_s3(port: int, credentials: Credentials) -> None:
    """List the buckets; raise what the client raises."""
    client = s3_client(port, credentials, read_timeout_seconds=PROBE_TIMEOUT_SECONDS)
    try:
        client.list_buckets()
    finally:
        client.close()


def probe_postgres(port: int, credentials: Credentials) -> None:
    """Run `SELECT 1` in the project's database; raise what the client raises."""
    import psycopg2

    connection = psycopg2.connect(
        host=ports.LOOPBACK,
        port=port,
        user=credentials.postgres_user,
        dbname=credentials.postgres_database,
        connect_timeout=PROBE_TIMEOUT_SECONDS,
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    finally:
        connection.close()


PROBES: dict[str, Callable[[int, Credentials], None]] = {
    "clickhouse": probe_clickhouse,
    "s3": probe_s3,
    "postgres": probe_postgres,
}


def s3_client(port: int, credentials: Credentials, *, read_timeout_seconds: float = 60) -> "S3Client":
    """Return a client of the local S3, without retries."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=f"http://{ports.LOOPBACK}:{port}",
        region_name=credentials.s3_region,
        aws_access_key_id=credentials.s3_access_key_id,
        aws_secret_access_key=credentials.s3_secret_access_key,
        config=Config(
            connect_timeout=PROBE_TIMEOUT_SECONDS,
            read_timeout=read_timeout_seconds,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        ),
    )


def stop(started: StartedService, *, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> bool:
    """Send SIGTERM, then SIGKILL after the timeout; return whether SIGTERM was enough."""
    if started.process.poll() is None:
        started.process.send_signal(signal.SIGTERM)
    try:
        started.process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        kill_group(started.process.pid, signal.SIGKILL)
        started.process.wait(timeout_seconds)
        return False
    return True


def kill_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, which may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def describe_end(started: StartedService) -> str:
    """Return how a dead service ended, with the end of its log."""
    code = started.process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    return f"{started.service.name} (pid {started.process.pid}) {how}.\n{tail(started.log)}"


def tail(log: Path) -> str:
    """Return the last lines of a log, indented, with its path."""
    lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return "\n".join([f"The end of {log}:", *(f"  {line}" for line in lines or ["(empty)"])])
