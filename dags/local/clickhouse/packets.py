"""Packets of ClickHouse's native protocol, for every revision up to `REVISION`, as a server reads and writes them.

Layout: https://clickhouse.com/docs/resources/develop-contribute/native-protocol/protocol
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from clickhouse_driver import defines
from clickhouse_driver.protocol import ServerPacketTypes
from clickhouse_driver.varint import make_varint

from dags.local.clickhouse.wire import ProtocolError, WireReader, encode_string

# Below 54454 a column has no flag of custom serialization, so the engine's output is a valid block body.
REVISION = 54453
# Older clients send settings in a binary form that depends on each setting's type.
MIN_REVISION = defines.DBMS_MIN_REVISION_WITH_SETTINGS_SERIALIZED_AS_STRINGS

# The interface of the initial client of a distributed query; other interfaces have no further fields.
INTERFACE_TCP, INTERFACE_HTTP = 1, 2
SETTING_IS_IMPORTANT = 0x1
# A packet that clickhouse-driver lacks: a value that the initiator of a distributed query has computed.
SCALAR = 7
# Settings, tables or columns in one packet; real packets have a few hundred.
MAX_ITEMS = 100_000

# The block info "no overflows, no bucket", which precedes every block body.
BLOCK_PREFIX = b"\x01\x00\x02\xff\xff\xff\xff\x00"
DATA = bytes(make_varint(ServerPacketTypes.DATA)) + b"\x00"
PONG = bytes(make_varint(ServerPacketTypes.PONG))
PROGRESS_VALUES = ("read_rows", "read_bytes", "total_rows_to_read", "written_rows", "written_bytes")
END_OF_STREAM = bytes(make_varint(ServerPacketTypes.END_OF_STREAM))


@dataclass(frozen=True)
class ClientHello:
    """The first packet of a client."""

    name: str
    revision: int
    database: str
    user: str
    password: str


@dataclass(frozen=True)
class QueryPacket:
    """A query of a client; `stage` 2 requests the complete result."""

    query_id: str
    settings: dict[str, tuple[str, int]]
    stage: int
    compression: bool
    text: str


def read_hello(reader: WireReader) -> ClientHello:
    """Read a client's first packet. Raises ProtocolError for anything else, such as an HTTP request."""
    packet = reader.varint()
    if packet in (ord("G"), ord("P")):
        raise ProtocolError("this port uses ClickHouse's native protocol, not HTTP", code=101)
    if packet != 0:
        raise ProtocolError(f"expected Hello, got packet {packet}")
    name = reader.string()
    reader.varint()
    reader.varint()
    revision = reader.varint()
    hello = ClientHello(name, revision, reader.string(), reader.string(), reader.string())
    if revision < MIN_REVISION:
        raise ProtocolError(
            f"client revision {revision} is older than {MIN_REVISION}, the oldest supported one", code=20
        )
    return hello


def write_hello(version: tuple[int, int, int], timezone: str, display_name: str) -> bytes:
    """Return the server's Hello; all of its fields are older than `MIN_REVISION`."""
    major, minor, patch = version
    parts = [make_varint(ServerPacketTypes.HELLO), encode_string("ClickHouse")]
    parts += [make_varint(major), make_varint(minor), make_varint(REVISION)]
    parts += [encode_string(timezone), encode_string(display_name), make_varint(patch)]
    return b"".join(parts)


def read_query(reader: WireReader, revision: int) -> QueryPacket:
    """Read a Query packet after its type."""
    query_id = reader.string()
    _skip_client_info(reader, revision)
    settings: dict[str, tuple[str, int]] = {}
    while name := reader.string():
        if len(settings) >= MAX_ITEMS:
            raise ProtocolError(f"more than {MAX_ITEMS} settings in one query")
        flags = reader.varint()
        settings[name] = (reader.string(), flags)
    if revision >= defines.DBMS_MIN_REVISION_WITH_INTERSERVER_SECRET:
        reader.string()
    stage = reader.varint()
    compression = bool(reader.varint())
    return QueryPacket(query_id, settings, stage, compression, reader.string())


def _skip_client_info(reader: WireReader, revision: int) -> None:  # noqa: C901 - a layout, field by field
    query_kind = reader.read_one()
    if query_kind == 0:
        return
    for _ in range(3):
        reader.string()  # initial user, query id, address
    if revision >= defines.DBMS_MIN_PROTOCOL_VERSION_WITH_INITIAL_QUERY_START_TIME:
        reader.uint64()
    interface = reader.read_one()
    if interface == INTERFACE_HTTP:
        reader.read_one()  # method
    if interface in (INTERFACE_TCP, INTERFACE_HTTP):
        for _ in range(3):
            reader.string()  # TCP: system user, host name, client name; HTTP: user agent, forwarded for, referer
    versions = 3 if interface == INTERFACE_TCP else 0
    for _ in range(versions):
        reader.varint()
    reader.string()  # quota key
    if revision >= defines.DBMS_MIN_PROTOCOL_VERSION_WITH_DISTRIBUTED_DEPTH:
        reader.varint()
    if versions:
        reader.varint()  # patch
    if revision >= defines.DBMS_MIN_REVISION_WITH_OPENTELEMETRY and reader.read_one():
        reader.read(24)  # trace id and span id
        reader.string()
        reader.read_one()
    if revision >= defines.DBMS_MIN_REVISION_WITH_PARALLEL_REPLICAS:
        for _ in range(3):
            reader.varint()


def read_block_info(reader: WireReader) -> None:
    """Read the numbered fields before a block's body, which a server does not use."""
    while field := reader.varint():
        if field == 1:
            reader.read_one()
        elif field == 2:
            reader.int32()
        else:
            raise ProtocolError(f"unknown field {field} of block info")


def read_tables_status_request(reader: WireReader) -> list[tuple[str, str]]:
    """Read the (database, table) pairs whose replication delay a client requests."""
    count = reader.varint()
    if count > MAX_ITEMS:
        raise ProtocolError(f"more than {MAX_ITEMS} tables in one status request")
    return [(reader.string(), reader.string()) for _ in range(count)]


def write_tables_status(tables: list[tuple[str, str]]) -> bytes:
    """Return the response to a status request: no table is replicated, so none has a delay."""
    parts = [make_varint(ServerPacketTypes.TABLES_STATUS_RESPONSE), make_varint(len(tables))]
    for database, table in tables:
        parts += [encode_string(database), encode_string(table), b"\x00"]
    return b"".join(parts)


def write_exception(code: int, message: str) -> bytes:
    """Return an Exception packet with one of ClickHouse's error codes."""
    return b"".join(
        (
            make_varint(ServerPacketTypes.EXCEPTION),
            Struct("<i").pack(code),
            encode_string("DB::Exception"),
            encode_string(f"DB::Exception: {message}"),
            encode_string(""),  # stack trace
            b"\x00",  # no nested exception
        )
    )


def write_progress(increments: Sequence[int]) -> bytes:
    """Return a Progress packet with an increment for each of `PROGRESS_VALUES`."""
    return bytes(make_varint(ServerPacketTypes.PROGRESS)) + b"".join(make_varint(value) for value in increments)


def write_profile_info(rows: int, blocks: int, size: int) -> bytes:
    """Return a ProfileInfo packet of a finished SELECT, without rows before LIMIT, which the engine does not report."""
    counts = b"".join(make_varint(value) for value in (rows, blocks, size))
    return bytes(make_varint(ServerPacketTypes.PROFILE_INFO)) + counts + b"\x00\x00\x00"


def write_header_block(columns: list[tuple[str, str]]) -> bytes:
    """Return the body of a block without rows: only names and types."""
    parts = [make_varint(len(columns)), make_varint(0)]
    for name, column_type in columns:
        parts += [encode_string(name), encode_string(column_type)]
    return b"".join(parts)
