"""Fixtures of real services: each test process starts those it uses, on free ports and in a temporary directory.

As with `python -m dags.local up`, the services stop when the test process ends, however it ends. Services are shared by
the tests of a process; each test gets a new database and a new bucket.
"""

import contextlib
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dags.local import ports, services

if TYPE_CHECKING:
    from clickhouse_driver import Client
    from types_boto3_s3 import S3Client

# A shell script starts its background processes with this signal ignored, and children inherit that: `dagster dev`
# stops its children with the signal, and would wait for them forever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CREDENTIALS = services.Credentials()
# Another process may take a free port before our service does.
START_ATTEMPTS = 3


@pytest.fixture(scope="session")
def session_directory() -> Iterator[Path]:
    """A directory for the services of this test process, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="dagster-tests-") as path:
        yield Path(path)


@pytest.fixture(scope="session")
def lifeline() -> Iterator[services.Lifeline]:
    """The lifeline of this test process, whose services stop when the process ends."""
    with services.Lifeline.opened() as opened:
        yield opened


@contextlib.contextmanager
def running(
    lifeline: services.Lifeline, directory: Path, count: int, build: Callable[[tuple[int, ...]], list[services.Service]]
) -> Iterator[tuple[int, ...]]:
    """Run services on free ports until the end of the block; yield the ports."""
    started: list[services.StartedService] = []
    try:
        for attempt in range(1, START_ATTEMPTS + 1):
            chosen = tuple(ports.free_port() for _ in range(count))
            started = [services.start(service, lifeline, directory / "logs") for service in build(chosen)]
            try:
                for service in started:
                    services.wait_until_healthy(service, CREDENTIALS)
                break
            except services.ServiceError:
                for service in started:
                    services.stop(service)
                if attempt == START_ATTEMPTS:
                    raise
        yield chosen
    finally:
        for service in started:
            services.stop(service)


@pytest.fixture(scope="session")
def clickhouse_port(session_directory: Path, lifeline: services.Lifeline) -> Iterator[int]:
    """Port of a ClickHouse node that is a cluster of one."""
    directory = session_directory / "single"
    with running(lifeline, directory, 1, lambda chosen: services.clickhouse_nodes(directory, chosen)) as (port,):
        yield port


@pytest.fixture(scope="session")
def clickhouse_cluster_ports(session_directory: Path, lifeline: services.Lifeline) -> Iterator[tuple[int, ...]]:
    """Ports of two ClickHouse nodes, the two shards of the cluster `local`."""
    directory = session_directory / "cluster"
    with running(lifeline, directory, 2, lambda chosen: services.clickhouse_nodes(directory, chosen)) as chosen:
        yield chosen


@pytest.fixture
def clickhouse_database(clickhouse_port: int) -> Iterator[str]:
    """Name of an empty database, dropped after the test."""
    from clickhouse_driver import Client

    name = f"test_{uuid.uuid4().hex}"
    with Client(ports.LOOPBACK, port=clickhouse_port) as client:
        client.execute(f"CREATE DATABASE {name}")
    yield name
    # A new connection: the test may have broken or closed any other.
    with Client(ports.LOOPBACK, port=clickhouse_port) as client:
        client.execute(f"DROP DATABASE IF EXISTS {name} SYNC")


@pytest.fixture
def clickhouse_client(clickhouse_port: int, clickhouse_database: str) -> Iterator["Client"]:
    """A client whose current database is the empty database of the test."""
    from clickhouse_driver import Client

    with Client(ports.LOOPBACK, port=clickhouse_port, database=clickhouse_database) as client:
        yield client


@pytest.fixture(scope="session")
def s3_port(session_directory: Path, lifeline: services.Lifeline) -> Iterator[int]:
    """Port of an S3 server with the project's bucket."""
    with running(
        lifeline, session_directory, 1, lambda chosen: [services.s3(session_directory, chosen[0], CREDENTIALS)]
    ) as (port,):
        yield port


@pytest.fixture(scope="session")
def s3_endpoint(s3_port: int) -> str:
    """Address of an S3 server with the project's bucket."""
    return f"http://{ports.LOOPBACK}:{s3_port}"


@pytest.fixture(scope="session")
def s3_client(s3_port: int) -> Iterator["S3Client"]:
    """A client of that S3 server."""
    client = services.s3_client(s3_port, CREDENTIALS)
    yield client
    client.close()


@pytest.fixture
def s3_bucket(s3_client: "S3Client") -> str:
    """Name of an empty bucket."""
    name = f"test-{uuid.uuid4().hex}"
    s3_client.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def postgres_port(session_directory: Path, lifeline: services.Lifeline) -> Iterator[int]:
    """Port of a Postgres server."""
    with running(
        lifeline, session_directory, 1, lambda chosen: [services.postgres(session_directory, chosen[0], CREDENTIALS)]
    ) as (port,):
        yield port


@pytest.fixture
def postgres_dsn(postgres_port: int) -> Iterator[str]:
    """Connection string of an empty database, dropped after the test."""
    with _database(postgres_port) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def dagster_template(postgres_port: int, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a database with Dagster's tables, created once because that takes seconds."""
    from dags.tests.alerts.world import local_instance

    name = f"template_{uuid.uuid4().hex}"
    _execute_on_server(postgres_port, f"CREATE DATABASE {name}")
    with local_instance(tmp_path_factory.mktemp("template"), _dsn(postgres_port, name)):
        return name


@pytest.fixture
def dagster_dsn(postgres_port: int, dagster_template: str) -> Iterator[str]:
    """Connection string of a database with Dagster's tables and no runs, dropped after the test."""
    with _database(postgres_port, f" TEMPLATE {dagster_template}") as dsn:
        yield dsn


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A directory in memory where the system has one: SQLite waits for the disk at each of many commits."""
    memory = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
    with tempfile.TemporaryDirectory(prefix="dagster-", dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


@contextlib.contextmanager
def _database(port: int, how: str = "") -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    _execute_on_server(port, f"CREATE DATABASE {name}{how}")
    yield _dsn(port, name)
    _execute_on_server(port, f"DROP DATABASE {name} WITH (FORCE)")


def _dsn(port: int, name: str) -> str:
    return f"postgresql://{CREDENTIALS.postgres_user}@{ports.LOOPBACK}:{port}/{name}"


def _execute_on_server(port: int, statement: str) -> None:
    import psycopg2

    with contextlib.closing(psycopg2.connect(_dsn(port, "postgres"))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
