"""The connection pool of one ClickHouse host."""

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dags.common.clickhouse.errors import CallTimeoutError, one_line
from dags.common.clickhouse.hosts import Access, Host

if TYPE_CHECKING:
    from dags.common.clickhouse.session import DriverSession

logger = logging.getLogger(__name__)
# The driver logs a traceback for each host that it cannot reach; here it is one line, or the error of the call.
logging.getLogger("clickhouse_driver.connection").setLevel(logging.ERROR)

# For the connection, and again for the handshake on it.
CONNECT_TIMEOUT_SECONDS = 10.0
# For the answer to KILL QUERY … ASYNC, which does not wait for the query's end.
KILL_TIMEOUT_SECONDS = 10.0
# A silent socket is closed after this long; the deadline of a call, which is shorter, ends the call before.
MAX_CALL_SECONDS = 86_400.0
# Idle time, interval and probes after which the operating system reports a dead peer.
KEEPALIVE_SECONDS_AND_PROBES = (60, 15, 4)

KILL_STATEMENT = "KILL QUERY WHERE query_id = %(query_id)s ASYNC"


class ConnectionPool:
    """The connections to one host: at most `size` in use, idle ones kept, doubtful ones closed."""

    def __init__(self, host: Host, access: Access, size: int) -> None:
        self.host = host
        self._access = access
        self._slots = threading.BoundedSemaphore(size)
        self._idle: list[DriverSession] = []
        self._closed = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def session(self, settings: Mapping[str, Any], wait_seconds: float) -> Iterator["DriverSession"]:
        """Lend a session, which may not be connected yet. A session that the block has changed is closed, not kept."""
        if not self._slots.acquire(timeout=max(wait_seconds, 0)):
            raise CallTimeoutError(f"No connection to {self.host} became free.")
        try:
            session = self._idle_session() or self._new_session(MAX_CALL_SECONDS)
            session.call_settings = settings
            try:
                yield session
            except BaseException:
                session.disconnect()
                raise
            self._give_back(session)
        finally:
            self._slots.release()

    def kill(self, query_id: str, settings: Mapping[str, Any]) -> None:
        """Kill the query, on a new connection: all connections of the pool may hang."""
        from clickhouse_driver import errors

        try:
            session = self._new_session(KILL_TIMEOUT_SECONDS)
            try:
                session.call_settings = settings
                session.execute(KILL_STATEMENT, {"query_id": query_id})
            finally:
                session.disconnect()
        except (errors.Error, OSError, EOFError) as error:
            logger.warning("Query %s on %s was not killed and may still run: %s", query_id, self.host, one_line(error))

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.disconnect()

    def _idle_session(self) -> "DriverSession | None":
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _new_session(self, max_silence_seconds: float) -> "DriverSession":
        # The driver takes long to import, and most processes that import this module never connect.
        from dags.common.clickhouse.session import DriverSession

        return DriverSession(
            max_silence_seconds=max_silence_seconds,
            host=self.host.address,
            port=self.host.port,
            user=self._access.user,
            password=self._access.password.get_secret_value(),
            database=self._access.database,
            secure=self._access.secure,
            client_name="analytics-platform",
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            # During the handshake: a silent server must not hold a thread.
            send_receive_timeout=CONNECT_TIMEOUT_SECONDS,
            tcp_keepalive=KEEPALIVE_SECONDS_AND_PROBES,
            # A silent reconnect in the middle of a call would lose its temporary tables.
            disable_reconnect=True,
        )

    def _give_back(self, session: "DriverSession") -> None:
        connection = session.connection
        is_clean = (
            connection.connected
            and not connection.is_query_executing
            and not session.ended
            and connection.database == self._access.database
        )
        with self._lock:
            keep = is_clean and not self._closed
            if keep:
                self._idle.append(session)
        if not keep:
            session.disconnect()
