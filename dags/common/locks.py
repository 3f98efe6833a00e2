"""Locks across processes and machines, kept by Postgres: a lock ends with the process that holds it.

The `application_name` of the holder's connection in pg_stat_activity says who holds it, and until when at the latest.
"""

import contextlib
import datetime as dt
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags.common.postgres import Postgres

if TYPE_CHECKING:
    import psycopg2.extensions

# Idle time, interval and probes after which Postgres ends the connection of a holder whose machine is gone.
KEEPALIVE_SECONDS_AND_PROBES = (30, 10, 3)
# Postgres cuts an application_name to this length.
MAX_APPLICATION_NAME_BYTES = 63

HOLDERS_STATEMENT = """
SELECT activity.application_name, activity.pid, coalesce(host(activity.client_addr), 'this machine'),
    activity.xact_start AT TIME ZONE 'UTC'
FROM pg_locks AS locks JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
WHERE locks.locktype = 'advisory' AND locks.granted AND locks.objsubid = 1
    AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (locks.classid::bigint << 32) | locks.objid::bigint = %s
"""


class LockTimeoutError(Exception):
    """Another process held the lock for the whole wait. The message says which, and since when."""


class LockLostError(Exception):
    """The connection that held the lock is gone, so another process may hold it now."""


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds."""

    name: str
    _connection: "psycopg2.extensions.connection"

    def assert_held(self) -> None:
        """Raise LockLostError when another process may hold the lock by now. May be called on any thread."""
        import psycopg2

        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except psycopg2.Error as error:
            raise LockLostError(f"The lock '{self.name}' was lost: {error}") from error


def lock_number(name: str) -> int:
    """Return the key of the lock in Postgres: 64 bits, signed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


@contextlib.contextmanager
def exclusive(
    postgres: Postgres,
    name: str,
    wait_seconds: float,
    *,
    holder: str = "analytics-platform",
    hold_seconds: float | None = None,
    shared: bool = False,
) -> Iterator[Lock]:
    """Hold the lock of that name until the end of the block. It has at most one holder, or several with `shared`.

    `holder`, a job and its run, is named in the error of other processes that wait for the lock. After `hold_seconds`,
    if given, Postgres (17 or newer) releases the lock, and `assert_held` raises. Raises LockTimeoutError after
    `wait_seconds`, and psycopg2.OperationalError when Postgres cannot be reached.
    """
    import psycopg2.errors

    try:
        with postgres.connection() as connection:
            try:
                _acquire(connection, name, wait_seconds, shared=shared)
            except psycopg2.errors.LockNotAvailable as error:
                raise LockTimeoutError(
                    f"The lock '{name}' was held by another process for {wait_seconds:g} seconds: "
                    f"{_holders(postgres, name)}. Try again when that process has finished."
                ) from error
            _name_connection(connection, holder, hold_seconds)
            yield Lock(name, connection)
    except psycopg2.InterfaceError as error:
        # Ending the transaction fails on a lost connection; the error before this one says why it was lost.
        if isinstance(error.__context__, LockLostError):
            raise error.__context__ from None
        raise


def _acquire(connection: "psycopg2.extensions.connection", name: str, wait_seconds: float, *, shared: bool) -> None:
    idle, interval, probes = KEEPALIVE_SECONDS_AND_PROBES
    milliseconds = max(int(wait_seconds * 1000), 1)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SET LOCAL tcp_keepalives_idle = {idle}; SET LOCAL tcp_keepalives_interval = {interval};"
            f"SET LOCAL tcp_keepalives_count = {probes}; SET LOCAL idle_in_transaction_session_timeout = 0;"
            f"SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = {milliseconds}"
        )
        function = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
        cursor.execute(f"SELECT {function}(%s)", (lock_number(name),))


def _name_connection(connection: "psycopg2.extensions.connection", holder: str, hold_seconds: float | None) -> None:
    until = ""
    with connection.cursor() as cursor:
        if hold_seconds is not None:
            cursor.execute("SET LOCAL transaction_timeout = %s", (max(int(hold_seconds * 1000), 1),))
            cursor.execute("SELECT clock_timestamp() AT TIME ZONE 'UTC'")
            ((now,),) = cursor.fetchall()
            until = f" until {now + dt.timedelta(seconds=hold_seconds):%Y-%m-%dT%H:%M:%SZ}"
        # Postgres would write other characters as four or more each.
        kept = holder.encode("ascii", "replace").decode()[: MAX_APPLICATION_NAME_BYTES - len(until)]
        cursor.execute("SET LOCAL application_name = %s", (kept + until,))


def _holders(postgres: Postgres, name: str) -> str:
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(HOLDERS_STATEMENT, (lock_number(name),))
        found = [
            f"'{holder}' (Postgres process {pid}, from {address}), which requested it at {begun:%Y-%m-%dT%H:%M:%SZ}"
            for holder, pid, address, begun in cursor.fetchall()
        ]
    return ", ".join(found) or "it has just been released"
