"""A client of clickhouse-driver that a cluster lends to its calls: its queries can be killed, and it ends in time.

Imported when a connection is first made. When one is made, kept or closed is in `cluster.py`.
"""

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any

from clickhouse_driver import Client, errors
from clickhouse_driver.connection import Connection

from dags.common.clickhouse.cluster import LONGEST_CALL_SECONDS, CallTimeoutError


class _Connection(Connection):  # type: ignore[misc] # clickhouse_driver has no types
    """A connection that gives every query an id, so that another connection can kill it."""

    query_id: str | None = None
    # How long the server may be silent, once it has greeted.
    silence_seconds = LONGEST_CALL_SECONDS

    def connect(self) -> None:
        super().connect()
        self.socket.settimeout(self.silence_seconds)

    def force_connect(self) -> None:
        """Before every query: without the driver's ping, because each call begins with one."""
        self.check_query_execution()
        if not self.connected:
            self.connect()

    def send_query(self, query: str, query_id: str | None = None, params: Mapping[str, Any] | None = None) -> None:
        self.query_id = query_id or str(uuid.uuid4())
        super().send_query(query, query_id=self.query_id, params=params)


class DriverSession(Client):  # type: ignore[misc] # clickhouse_driver has no types
    """A client that adds a call's settings to every query, and that ends for good when the call's time is up."""

    call_settings: Mapping[str, Any]
    ended: bool = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # In place of the one that the client has just made, which is not connected yet.
        self.connection = _Connection(**options)

    def establish_connection(self, settings: Mapping[str, Any] | None) -> None:
        """Before every query. Raises CallTimeoutError once the call has ended."""
        if self.ended:
            raise CallTimeoutError("The deadline of this call has passed: its client takes no more queries.")
        super().establish_connection({**self.call_settings, **(settings or {})})

    def connect(self) -> None:
        """Connects, unless it is connected and the server answers."""
        if self.connection.connected:
            with contextlib.suppress(errors.Error, OSError):
                if self.connection.ping():
                    return
            self.disconnect()
        self.connection.connect()
        if self.ended:
            raise CallTimeoutError("The deadline of this call has passed.")

    def end(self) -> str | None:
        """Wakes the thread that waits for the server. Returns the id of the query that the server still runs."""
        self.ended = True
        running = self.connection.query_id if self.connection.is_query_executing else None
        socket = self.connection.socket
        if socket is not None:
            # It may be closed already: then there is nobody to wake.
            with contextlib.suppress(OSError):
                socket.shutdown(2)
        return running
