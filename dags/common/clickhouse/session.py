"""The clickhouse-driver client that a cluster lends to its calls: its queries can be killed from another connection."""

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any

from clickhouse_driver import Client, errors
from clickhouse_driver.connection import Connection

from dags.common.clickhouse.errors import CallTimeoutError


class _Connection(Connection):  # type: ignore[misc] # clickhouse_driver has no types
    """A connection that gives every query an id, so that another connection can kill it."""

    query_id: str | None = None
    # How long the server may be silent after the handshake.
    max_silence_seconds: float

    def connect(self) -> None:
        super().connect()
        self.socket.settimeout(self.max_silence_seconds)

    def force_connect(self) -> None:
        """Connect before a query, without the driver's ping, because each call begins with one."""
        self.check_query_execution()
        if not self.connected:
            self.connect()

    def send_query(self, query: str, query_id: str | None = None, params: Mapping[str, Any] | None = None) -> None:
        self.query_id = query_id or str(uuid.uuid4())
        super().send_query(query, query_id=self.query_id, params=params)


class DriverSession(Client):  # type: ignore[misc] # clickhouse_driver has no types
    """A client that adds the call's settings to every query and takes no more queries once the call has ended."""

    call_settings: Mapping[str, Any]
    ended: bool = False

    def __init__(self, *, max_silence_seconds: float, **options: Any) -> None:
        super().__init__(**options)
        # Replaces the connection that the client has just made, which is not connected yet.
        self.connection = _Connection(**options)
        self.connection.max_silence_seconds = max_silence_seconds

    def establish_connection(self, settings: Mapping[str, Any] | None) -> None:
        """Connect before a query. Raises CallTimeoutError once the call has ended."""
        if self.ended:
            raise CallTimeoutError("The deadline of this call has passed: its client takes no more queries.")
        super().establish_connection({**self.call_settings, **(settings or {})})

    def connect(self) -> None:
        """Connect, unless the session is connected and the server answers."""
        if self.connection.connected:
            with contextlib.suppress(errors.Error, OSError):
                if self.connection.ping():
                    return
            self.disconnect()
        self.connection.connect()
        if self.ended:
            raise CallTimeoutError("The deadline of this call has passed.")

    def end(self) -> str | None:
        """Wake the thread that waits for the server. Return the id of the query that the server still runs."""
        self.ended = True
        running = self.connection.query_id if self.connection.is_query_executing else None
        socket = self.connection.socket
        if socket is not None:
            # The socket may be closed already: then no thread waits on it.
            with contextlib.suppress(OSError):
                socket.shutdown(2)
        return running
