"""A client of the native protocol that sends exactly the bytes that a test chooses, including invalid ones."""

import socket
from collections.abc import Sequence
from struct import pack
from types import TracebackType
from typing import NamedTuple, Self

from clickhouse_driver import defines
from clickhouse_driver.protocol import ClientPacketTypes, ServerPacketTypes
from clickhouse_driver.varint import make_varint

from dags.local.clickhouse.columns import skip_columns
from dags.local.clickhouse.packets import REVISION, read_block_info
from dags.local.clickhouse.wire import WireReader, compressed_frames, encode_string, frames_of

TIMEOUT_SECONDS = 60


class ServerError(Exception):
    """An Exception packet."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Received(NamedTuple):
    """The result of a query."""

    rows: int
    blocks: int
    progress_rows: int


def varint(value: int) -> bytes:
    """Return `value` as an unsigned variable-length integer."""
    return bytes(make_varint(value))


def string_column(*values: str) -> bytes:
    """Return the data of a String column."""
    return b"".join(encode_string(value) for value in values)


def hello(database: str = "", user: str = "default", revision: int = REVISION) -> bytes:
    """Return a Hello packet."""
    return b"".join(
        (
            varint(ClientPacketTypes.HELLO),
            encode_string("test"),
            varint(1),
            varint(1),
            varint(revision),
            encode_string(database),
            encode_string(user),
            encode_string(""),
        )
    )


def query(
    text: str, *, query_id: str = "", settings: dict[str, str] | None = None, compression: bool = False, stage: int = 2
) -> bytes:
    """Return a Query packet; external tables, or the empty block that ends them, must follow."""
    client_info = b"".join(
        (
            b"\x01",  # an initial query
            encode_string("") * 2,
            encode_string("0.0.0.0:0"),
            bytes(8),  # start time
            b"\x01",  # over TCP
            encode_string("") * 3,
            varint(1) * 2 + varint(REVISION),
            encode_string(""),  # quota key
            varint(0) * 2,  # distributed depth, patch
            b"\x00",  # no tracing
            varint(0) * 3,  # parallel replicas
        )
    )
    listed = b"".join(encode_string(name) + b"\x00" + encode_string(value) for name, value in (settings or {}).items())
    return b"".join(
        (
            varint(ClientPacketTypes.QUERY),
            encode_string(query_id),
            client_info,
            listed + encode_string(""),
            encode_string(""),  # no secret
            varint(stage) + varint(compression),
            encode_string(text),
        )
    )


def block(columns: Sequence[tuple[str, str, bytes]], rows: int, *, compression: str | None = None) -> bytes:
    """Return a Data packet with columns given as (name, type, data)."""
    body = b"\x01\x00\x02\xff\xff\xff\xff\x00" + varint(len(columns)) + varint(rows)
    body += b"".join(encode_string(name) + encode_string(kind) + data for name, kind, data in columns)
    content = b"".join(compressed_frames(body, compression)) if compression else body
    return varint(ClientPacketTypes.DATA) + encode_string("") + content


CANCEL = varint(ClientPacketTypes.CANCEL)
PING = varint(ClientPacketTypes.PING)
END_OF_DATA = block([], 0)


class RawClient:
    """A connection, on which Hello has been exchanged if `greet`."""

    def __init__(self, port: int, *, database: str = "", greet: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = WireReader(lambda: self.socket.recv(1 << 20))
        self.compression = False
        if greet:
            self.send(hello(database))
            self.receive_hello()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def vanish(self) -> None:
        """Close the connection with a reset, as a killed process does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes unchanged."""
        self.socket.sendall(data)

    def send_query(self, text: str, *, query_id: str = "", settings: dict[str, str] | None = None) -> None:
        """Send a query without external tables."""
        self.send(query(text, query_id=query_id, settings=settings) + END_OF_DATA)

    def receive_hello(self) -> None:
        """Read the server's Hello. Raises ServerError for an exception."""
        self._expect(ServerPacketTypes.HELLO)
        self.reader.string()
        for _ in range(3):
            self.reader.varint()
        self.reader.string()
        self.reader.string()
        self.reader.varint()

    def receive(self) -> tuple[int, int]:
        """Read one packet; return its type and, for data and progress, its number of rows. Raises ServerError."""
        packet = self.reader.varint()
        if packet == ServerPacketTypes.EXCEPTION:
            raise self._error()
        if packet == ServerPacketTypes.DATA:
            self.reader.string()
            content = WireReader(frames_of(self.reader)) if self.compression else self.reader
            read_block_info(content)
            columns, rows = content.varint(), content.varint()
            skip_columns(content, columns, rows)
            return packet, rows
        if packet == ServerPacketTypes.PROGRESS:
            return packet, next(iter([self.reader.varint() for _ in range(5)]))
        if packet == ServerPacketTypes.PROFILE_INFO:
            for _ in range(3):
                self.reader.varint()
            self.reader.read(3)
        elif packet not in (ServerPacketTypes.END_OF_STREAM, ServerPacketTypes.PONG):
            raise AssertionError(f"unexpected packet {packet}")
        return packet, 0

    def receive_until_end(self) -> Received:
        """Read packets up to the end of the stream. Raises ServerError for an exception."""
        rows = blocks = progress_rows = 0
        while True:
            packet, count = self.receive()
            if packet == ServerPacketTypes.DATA:
                rows, blocks = rows + count, blocks + bool(count)
            elif packet == ServerPacketTypes.PROGRESS:
                progress_rows += count
            elif packet == ServerPacketTypes.END_OF_STREAM:
                return Received(rows, blocks, progress_rows)

    def expect_exception(self) -> ServerError:
        """Read packets up to an exception and return it."""
        try:
            received = self.receive_until_end()
        except ServerError as error:
            return error
        raise AssertionError(f"no exception, but {received}")

    def ping(self) -> None:
        """Send a Ping and wait for the Pong."""
        self.send(PING)
        self._expect(ServerPacketTypes.PONG)

    def _expect(self, wanted: int) -> None:
        packet = self.reader.varint()
        if packet == ServerPacketTypes.EXCEPTION:
            raise self._error()
        assert packet == wanted, f"expected packet {wanted}, got {packet}"

    def _error(self) -> ServerError:
        code = self.reader.int32()
        self.reader.string()
        error = ServerError(code, self.reader.string())
        self.reader.string()
        self.reader.read_one()
        return error


assert REVISION >= defines.DBMS_MIN_REVISION_WITH_PARALLEL_REPLICAS
