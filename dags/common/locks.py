"""Locks that hold across processes and machines, kept by Postgres: they end with the process that holds them."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags.common.resources import Postgres

if TYPE_CHECKING:
    import psycopg2.extensions

# A holder whose machine has vanished is noticed after about this long: idle time, interval and probes.
KEEPALIVE_SECONDS_AND_PROBES = (30, 10, 3)


class LockTimeoutError(Exception):
    """Somebody else held the lock for longer than this one waited."""


class LockLostError(Exception):
    """The connection that holds the lock is gone, so somebody else may hold it now."""


@dataclass(frozen=True)
class Lock:
    """A lock that is held."""

    name: str
    _connection: "psycopg2.extensions.connection"

    def assert_held(self) -> None:
        """Raises LockLostError when the lock may be somebody else's by now. May be called on any thread."""
        import psycopg2

        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except psycopg2.Error as error:
            raise LockLostError(f"The lock '{self.name}' was lost: {error}") from error


def lock_number(name: str) -> int:
    """What Postgres knows the lock by: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


@contextlib.contextmanager
def exclusive(postgres: Postgres, name: str, wait_seconds: float) -> Iterator[Lock]:
    """Holds the lock of that name until the end of the block. At most one holder at any time.

    Raises LockTimeoutError after `wait_seconds`, and psycopg2.OperationalError when Postgres cannot be reached.
    """
    import psycopg2

    try:
        with postgres.connection() as connection:
            _acquire(connection, name, wait_seconds)
            yield Lock(name, connection)
    except psycopg2.InterfaceError as error:
        # The end of a transaction on a connection that is gone; why it is gone was said before.
        if isinstance(error.__context__, LockLostError):
            raise error.__context__ from None
        raise


def _acquire(connection: "psycopg2.extensions.connection", name: str, wait_seconds: float) -> None:
    import psycopg2.errors

    idle, interval, probes = KEEPALIVE_SECONDS_AND_PROBES
    milliseconds = max(int(wait_seconds * 1000), 1)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SET LOCAL tcp_keepalives_idle = {idle}; SET LOCAL tcp_keepalives_interval = {interval};"
            f"SET LOCAL tcp_keepalives_count = {probes}; SET LOCAL idle_in_transaction_session_timeout = 0;"
            f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {milliseconds}"
        )
        try:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (lock_number(name),))
        except psycopg2.errors.LockNotAvailable as error:
            raise LockTimeoutError(
                f"The lock '{name}' was held by somebody else for {wait_seconds:g} seconds. Its holder is in "
                "pg_locks, locktype advisory: look at what it does, and try again."
            ) from error
