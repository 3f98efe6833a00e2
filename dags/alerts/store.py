"""The alert store: its address, how it is opened and brought to the latest version, and its transactions."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa

from dags.alerts.tables import LATEST_VERSION, MIGRATIONS, SCHEMA, Migration, metadata, schema_version
from dags.common.event_log.private import storage_url

# The number of the Postgres lock that serializes transactions: "alerts" in ASCII.
LOCK_NUMBER = 0x616C65727473
BUSY_TIMEOUT_SECONDS = 20


class StoreVersionError(Exception):
    """The store was written by a newer release."""


def address_of(instance: dg.DagsterInstance) -> str | Path:
    """Return where the store of an instance is: in its Postgres database, or in a file beside its own files."""
    return storage_url(instance) or Path(instance.root_directory) / "alerts.sqlite"


def open_store(url: str | Path) -> sa.Engine:
    """Open the store at a Postgres URL or in a SQLite file. Create it, or bring it to the latest version, if necessary.

    Raises StoreVersionError when a newer release wrote it, and sqlalchemy.exc.OperationalError when it cannot be
    reached. The caller disposes of it.
    """
    engine = connect(url)
    migrate(engine)
    return engine


def connect(url: str | Path) -> sa.Engine:
    """Open the store as it is, for reading: nothing is created, and it may have no tables or those of another version.

    SQLite creates a missing file on first use, so the caller checks for it before.
    """
    address = sa.make_url(f"sqlite:///{url}" if isinstance(url, Path) else url)
    if address.get_backend_name() == "sqlite":
        engine = sa.create_engine(address, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
        _prepare_sqlite(engine)
    else:
        # The only Postgres driver that the project installs; SQLAlchemy's default changes with its version.
        address = address.set(drivername="postgresql+psycopg2")
        # A process that holds the lock for longer is dead or hangs: the tick fails with that error.
        milliseconds = BUSY_TIMEOUT_SECONDS * 1000
        options = f"-c lock_timeout={milliseconds} -c idle_in_transaction_session_timeout={milliseconds}"
        engine = sa.create_engine(
            address, connect_args={"connect_timeout": BUSY_TIMEOUT_SECONDS, "options": options}
        ).execution_options(schema_translate_map={None: SCHEMA})
    return engine


@contextlib.contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Hold a transaction that writes: committed at the end, rolled back after an error. They run one after another."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_NUMBER)))
        yield connection


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Hold a transaction that only reads, and waits for no other."""
    with engine.connect() as connection, connection.begin():
        yield connection


def migrate(
    engine: sa.Engine, migrations: Mapping[int, Migration] = MIGRATIONS, latest_version: int = LATEST_VERSION
) -> None:
    """Create the tables, or bring existing ones to the latest version. Each version is one transaction.

    Raises StoreVersionError when the store is newer than `latest_version`.
    """
    with reading(engine) as connection:
        if version_of(connection) == latest_version:
            return
    while True:
        with transaction(engine) as connection:
            # Read under the lock: another process may be migrating too.
            version = version_of(connection)
            if version is None:
                _create(connection, latest_version)
            elif version == latest_version:
                return
            elif version > latest_version:
                raise StoreVersionError(
                    f"The alert store is at version {version}, and this code knows versions up to {latest_version}. "
                    "Run the newer release, or restore the store from before it."
                )
            else:
                migrations[version + 1](connection)
                connection.execute(sa.update(schema_version).values(version=version + 1))


def version_of(connection: sa.Connection) -> int | None:
    """Return the version of the store's tables, None when there are none yet."""
    schema = SCHEMA if connection.dialect.name == "postgresql" else None
    if not sa.inspect(connection).has_table(schema_version.name, schema=schema):
        return None
    version: int = connection.execute(sa.select(schema_version.c.version)).scalar_one()
    return version


def _create(connection: sa.Connection, version: int) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
    metadata.create_all(connection)
    connection.execute(sa.insert(schema_version).values(version=version))


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        # Otherwise the driver begins transactions by its own rules; `begun` does it.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # A transaction that reads first and writes later fails when another has written in between.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
