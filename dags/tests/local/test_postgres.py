"""The local Postgres server as a process."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg2
import pytest

from dags.local import ports, services
from dags.tests.conftest import CREDENTIALS
from dags.tests.local.conftest import processes_of, wait_until


def query(dsn: str, statement: str) -> object:
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    assert row is not None
    return row[0]


def test_it_speaks_utf_8_and_utc_and_has_both_databases(postgres_dsn: str) -> None:
    assert query(postgres_dsn, "SHOW server_encoding") == "UTF8"
    assert query(postgres_dsn, "SHOW timezone") == "UTC"
    assert query(postgres_dsn, "SELECT lower('ÄÖÜ')") == "äöü"
    assert query(postgres_dsn, "SELECT count(*) FROM pg_database WHERE datname IN ('analytics', 'dagster')") == 2


def test_it_listens_on_loopback_only(postgres_dsn: str, postgres_port: int) -> None:
    assert query(postgres_dsn, "SHOW listen_addresses") == ports.LOOPBACK
    assert query(postgres_dsn, "SHOW unix_socket_directories") == ""
    listening = {
        connection.laddr
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (postgres_port,)
    }
    assert listening == {(ports.LOOPBACK, postgres_port)}


def test_its_processes_do_not_run_as_root(postgres_dsn: str) -> None:
    with contextlib.closing(psycopg2.connect(postgres_dsn)) as connection:
        assert psutil.Process(connection.info.backend_pid).uids().effective != 0


def test_a_second_user_and_database_are_created_on_an_existing_cluster(
    tmp_path: Path, lifeline: services.Lifeline
) -> None:
    port = ports.free_port()
    for credentials in (CREDENTIALS, services.Credentials(postgres_user="ann", postgres_database="Ann's data")):
        started = services.start(services.postgres(tmp_path, port, credentials), lifeline, tmp_path / "logs")
        try:
            # The health probe connects as that user to that database.
            services.wait_until_healthy(started, credentials)
        finally:
            assert services.stop(started)


def test_a_killed_initialization_starts_again(tmp_path: Path, lifeline: services.Lifeline) -> None:
    service = services.postgres(tmp_path, ports.free_port(), CREDENTIALS)
    started = services.start(service, lifeline, tmp_path / "logs")
    wait_until(lambda: any(service.directory.glob("unfinished-*/PG_VERSION")), "initdb runs")
    started.process.kill()
    started.process.wait(30)
    started = services.start(service, lifeline, tmp_path / "logs")
    try:
        services.wait_until_healthy(started, CREDENTIALS)
    finally:
        services.stop(started)


def test_a_directory_in_use_is_rejected(tmp_path: Path, lifeline: services.Lifeline) -> None:
    service = services.postgres(tmp_path, ports.free_port(), CREDENTIALS)
    started = services.start(service, lifeline, tmp_path / "logs")
    services.wait_until_healthy(started, CREDENTIALS)
    other = services.start(
        services.postgres(tmp_path, ports.free_port(), CREDENTIALS), lifeline, tmp_path / "other-logs"
    )
    assert other.process.wait(60) == 1
    assert "is in use by another Postgres process" in other.log.read_text()
    assert services.stop(started)


def test_the_server_stops_when_its_parent_is_killed(tmp_path: Path, lifeline: services.Lifeline) -> None:
    service = services.postgres(tmp_path, ports.free_port(), CREDENTIALS)
    started = services.start(service, lifeline, tmp_path / "logs")
    services.wait_until_healthy(started, CREDENTIALS)
    started.process.kill()
    started.process.wait(30)
    wait_until(lambda: not processes_of(tmp_path), "Postgres has ended")


def test_a_crash_of_the_server_ends_the_service_with_an_error(tmp_path: Path, lifeline: services.Lifeline) -> None:
    service = services.postgres(tmp_path, ports.free_port(), CREDENTIALS)
    started = services.start(service, lifeline, tmp_path / "logs")
    wait_until(lambda: f"ready {service.port}" in started.log.read_text(), "it is ready")
    server = int((service.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(server, signal.SIGQUIT)
    assert started.process.wait(30) == 1
    assert "Postgres exited with code" in started.log.read_text()


def test_data_of_another_version_is_rejected_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("14\n")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "dags.local.postgres", "serve"),
            *("--port", str(ports.free_port()), "--path", str(tmp_path)),
        ],
        cwd=services.PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert "was created by PostgreSQL 14" in result.stderr
    assert "python -m dags.local wipe" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stop_during_initialization_leaves_no_shared_memory(
    tmp_path: Path, lifeline: services.Lifeline, number: signal.Signals
) -> None:
    before = set(Path("/dev/shm").glob("PostgreSQL.*"))  # noqa: S108 - only read
    service = services.postgres(tmp_path, ports.free_port(), CREDENTIALS)
    started = services.start(service, lifeline, tmp_path / "logs")
    wait_until(lambda: any(service.directory.glob("unfinished-*/base")), "initdb runs")
    started.process.send_signal(number)
    started.process.wait(30)
    wait_until(lambda: not processes_of(tmp_path), "initdb has ended")
    wait_until(lambda: set(Path("/dev/shm").glob("PostgreSQL.*")) <= before, "no new shared memory is left")  # noqa: S108
