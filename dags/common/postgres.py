"""The Postgres client that pipelines share. The Dagster resource that makes one is in `resources.py`."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import SecretStr

from dags.common.settings import Settings

if TYPE_CHECKING:
    import psycopg2.extensions

CONNECT_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Postgres:
    """The address of a Postgres database and how to sign in. Opens a connection for each use."""

    host: str
    port: int
    user: str
    password: SecretStr
    database: str

    @contextlib.contextmanager
    def connection(self) -> "Iterator[psycopg2.extensions.connection]":
        """Yield one connection with one transaction: committed at the end, rolled back after an error, then closed.

        Raises psycopg2.OperationalError when the server cannot be reached, and psycopg2.errors.QueryCanceled when a
        statement takes longer than STATEMENT_TIMEOUT_SECONDS.
        """
        import psycopg2

        connection = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password.get_secret_value(),
            dbname=self.database,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name="analytics-platform",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_SECONDS * 1000}",
        )
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def make_postgres(settings: Settings) -> Postgres:
    """Return the database that the settings name, without connecting."""
    return Postgres(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=settings.postgres_user,
        password=settings.postgres_password,
        database=settings.postgres_database,
    )
