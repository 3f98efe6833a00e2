"""The alert engine's own tables: where they are, how they are made, and how a transaction on them is held.

Belongs here: what all tables share. Not here: the tables, which stand in the module that reads and writes them and hang
on `metadata`.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa

from dags.alerts import dagster_private
from dags.alerts.tables import LATEST_VERSION, MIGRATIONS, SCHEMA, Migration, metadata, schema_version

# Postgres knows the lock that serialises transactions by this number: "alerts" in ASCII.
LOCK_NUMBER = 0x616C65727473
BUSY_TIMEOUT_SECONDS = 20


class StoreVersionError(Exception):
    """The store was written by newer code than this."""


def address_of(instance: dg.DagsterInstance) -> str | Path:
    """Where the store of an instance is: in its own Postgres database, or in a file beside its own."""
    return dagster_private.storage_url(instance) or Path(instance.root_directory) / "alerts.sqlite"


def open_store(url: str | Path) -> sa.Engine:
    """The store at a SQLAlchemy URL of Postgres, or in a SQLite file; made or brought to the latest version if need be.

    Raises StoreVersionError when newer code has written it, and sqlalchemy.exc.OperationalError when it cannot be
    reached. The caller disposes of it.
    """
    engine = connect(url)
    migrate(engine)
    return engine


def connect(url: str | Path) -> sa.Engine:
    """The store as it is, for those who only look: nothing is made, and it may have no tables or older ones.

    A SQLite file comes to be when it is first used, so look for it before.
    """
    address = sa.make_url(f"sqlite:///{url}" if isinstance(url, Path) else url)
    if address.get_backend_name() == "sqlite":
        engine = sa.create_engine(address, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
        _prepare_sqlite(engine)
    else:
        # The one driver of Postgres that the project installs; SQLAlchemy's own choice changes with its version.
        address = address.set(drivername="postgresql+psycopg2")
        # Whoever holds the lock for longer has died or hangs: the tick fails, and says so.
        milliseconds = BUSY_TIMEOUT_SECONDS * 1000
        options = f"-c lock_timeout={milliseconds} -c idle_in_transaction_session_timeout={milliseconds}"
        engine = sa.create_engine(
            address, connect_args={"connect_timeout": BUSY_TIMEOUT_SECONDS, "options": options}
        ).execution_options(schema_translate_map={None: SCHEMA})
    return engine


@contextlib.contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that writes: committed at the end, rolled back after an error. They run one after another."""
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_NUMBER)))
        yield connection


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that only reads, and waits for nobody."""
    with engine.connect() as connection, connection.begin():
        yield connection


def migrate(
    engine: sa.Engine, migrations: Mapping[int, Migration] = MIGRATIONS, latest_version: int = LATEST_VERSION
) -> None:
    """Makes the tables, or leads those that are there to the latest version. Each step is one transaction.

    Raises StoreVersionError when the store is newer than `latest_version`.
    """
    with reading(engine) as connection:
        if version_of(connection) == latest_version:
            return
    while True:
        with transaction(engine) as connection:
            # Asked under the lock: another process may be doing the same.
            version = version_of(connection)
            if version is None:
                _make(connection, latest_version)
            elif version == latest_version:
                return
            elif version > latest_version:
                raise StoreVersionError(
                    f"The alert store is at version {version}, and this code knows versions up to {latest_version}. "
                    "Run the newer code, or restore the store of before."
                )
            else:
                migrations[version + 1](connection)
                connection.execute(sa.update(schema_version).values(version=version + 1))


def version_of(connection: sa.Connection) -> int | None:
    """The version of the store's tables, None when there are none yet."""
    schema = SCHEMA if connection.dialect.name == "postgresql" else None
    if not sa.inspect(connection).has_table(schema_version.name, schema=schema):
        return None
    version: int = connection.execute(sa.select(schema_version.c.version)).scalar_one()
    return version


def _make(connection: sa.Connection, version: int) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.schema.CreateSchema(SCHEMA, if_not_exists=True))
    metadata.create_all(connection)
    connection.execute(sa.insert(schema_version).values(version=version))


def _prepare_sqlite(engine: sa.Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        # The driver would begin transactions by rules of its own; `begun` does it.
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")

    @sa.event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # A transaction that read first and writes later could fail on a newer write of another.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
