"""To invalid bytes the server responds with an exception or closes the connection, and still serves other clients."""

import random
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import pack

import pytest

from dags.local.clickhouse.wire import compressed_frames, encode_string
from dags.tests.local.clickhouse.nodes import RunningNode, running_node, wait_until
from dags.tests.local.clickhouse.raw import CANCEL, END_OF_DATA, PING, RawClient, block, hello, query, varint

MIB = 1 << 20
ANSWER_SECONDS = 30
SEED = 20_260_131


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node of these tests only, because they may crash it."""
    with running_node(tmp_path_factory.mktemp("fuzz") / "node") as running:
        running.query(
            f"CREATE TABLE fuzzed ({', '.join(f'{name} {kind}' for name, kind, _ in COLUMNS)}) ENGINE = Memory"
        )
        yield running


def uint64(*values: int) -> bytes:
    return pack(f"<{len(values)}Q", *values)


# Three rows of each type; those with inner lengths are the risky ones.
COLUMNS = [
    ("number", "UInt64", uint64(1, 2, 3)),
    ("text", "String", encode_string("a") + encode_string("bc") + encode_string("")),
    ("fixed", "FixedString(2)", b"aabbcc"),
    (
        "word",
        "LowCardinality(String)",
        uint64(1, 1 << 9, 2) + encode_string("") + encode_string("w") + uint64(3) + b"\1\0\1",
    ),
    ("list", "Array(Nullable(UInt8))", uint64(1, 1, 3) + b"\0\1\0" + b"\7\0\7"),
    ("pairs", "Map(String, Int8)", uint64(0, 1, 2) + encode_string("k") * 2 + b"\1\2"),
    ("kind", "Enum8('a' = 1, 'b' = 2)", b"\1\2\1"),
    ("pair", "Tuple(a Int8, b Array(String))", b"\1\2\3" + uint64(0, 0, 1) + encode_string("z")),
    ("at", "DateTime64(3, 'UTC')", uint64(1, 2, 3)),
    ("money", "Decimal(38, 2)", uint64(1, 0, 2, 0, 3, 0)),
]


def conversation(text: str, *data: bytes, compression: str | None = None) -> bytes:
    """Return everything that a client sends to run one query."""
    end = block([], 0, compression=compression)
    return (
        hello()
        + query(text, query_id="fuzz", settings={"max_execution_time": "5"}, compression=bool(compression))
        + end
        + b"".join(data)
    )


ONE_BLOCK = block(COLUMNS, 3)
CONVERSATIONS = [
    conversation("SELECT number, toString(number) FROM numbers(10)"),
    conversation("SELECT 1", compression="lz4"),
    conversation("INSERT INTO fuzzed VALUES", ONE_BLOCK, ONE_BLOCK, END_OF_DATA),
    *(
        conversation(
            "INSERT INTO fuzzed VALUES",
            block(COLUMNS, 3, compression=method),
            block([], 0, compression=method),
            compression=method,
        )
        for method in ("lz4", "zstd")
    ),
    hello() + query("SELECT * FROM given") + ONE_BLOCK[:1] + encode_string("given") + ONE_BLOCK[2:] + END_OF_DATA,
    hello() + PING + CANCEL + query("SET max_threads = 1") + END_OF_DATA + PING,
]


def random_bytes(generator: random.Random, _: bytes) -> bytes:
    return generator.randbytes(generator.randrange(1, 2000))


def truncate(generator: random.Random, data: bytes) -> bytes:
    return data[: generator.randrange(len(data))]


def flip_bits(generator: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 1, 2, 5, 20))):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def insert_large_number(generator: random.Random, data: bytes) -> bytes:
    position = generator.randrange(len(data))
    number = generator.choice((varint(2**63), varint(2**32), uint64(2**63), b"\xff" * 12, varint(10**6)))
    return data[:position] + number + data[position + generator.randrange(9) :]


def repeat_a_piece(generator: random.Random, data: bytes) -> bytes:
    start = generator.randrange(len(data))
    piece = data[start : start + generator.randrange(1, 60)]
    return data[:start] + piece * generator.randrange(2, 50) + data[start:]


def splice(generator: random.Random, data: bytes) -> bytes:
    other = generator.choice(CONVERSATIONS)
    return data[: generator.randrange(len(data))] + other[generator.randrange(len(other)) :]


MUTATIONS: list[Callable[[random.Random, bytes], bytes]] = [
    random_bytes,
    truncate,
    flip_bits,
    flip_bits,
    insert_large_number,
    repeat_a_piece,
    splice,
]


@dataclass
class Answer:
    """All that the server said before it closed the connection."""

    data: bytes


def say(node: RunningNode, data: bytes, *, leave: bool = True) -> Answer:
    """Send `data` and read until the server closes. Fails when it does neither answer nor close."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", node.port), timeout=ANSWER_SECONDS) as connection:
        try:
            connection.sendall(data)
            if leave:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
        except TimeoutError:
            raise AssertionError(f"no end of the connection within {ANSWER_SECONDS} seconds") from None
        except ConnectionError:
            # A server that has heard enough closes while we still speak.
            pass
    assert node.process.poll() is None, f"the server died of {data!r}"
    return Answer(bytes(received))


def assert_healthy(node: RunningNode, base: int) -> None:
    assert node.query("SELECT 1") == [(1,)]
    assert node.resident_bytes() < base + 500 * MIB
    wait_until("the connections are closed", lambda: node.sockets() == 0)


def test_the_conversations_are_valid_before_they_are_changed(target: RunningNode) -> None:
    target.query("TRUNCATE TABLE fuzzed")
    for data in CONVERSATIONS:
        answer = say(target, data).data
        assert b"Exception" not in answer, answer
    assert target.query("SELECT count() FROM fuzzed") == [(12,)]


def fuzz(node: RunningNode, start: int, count: int) -> None:
    base = node.resident_bytes()
    for case in range(start, start + count):
        generator = random.Random(SEED + case)  # noqa: S311 - reproducible
        data = generator.choice(MUTATIONS)(generator, generator.choice(CONVERSATIONS))
        try:
            say(node, data)
        except AssertionError as error:
            raise AssertionError(f"case {case}: {error}") from error
        if case % 100 == 0:
            node.query("TRUNCATE TABLE fuzzed")
    assert_healthy(node, base)


@pytest.mark.parametrize("start", range(0, 500, 100))
def test_changed_conversations_do_no_harm(target: RunningNode, start: int) -> None:
    fuzz(target, start, 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("start", range(500, 20_500, 2_000))
def test_very_many_changed_conversations_do_no_harm(target: RunningNode, start: int) -> None:
    fuzz(target, start, 2_000)


ABSURD = {
    "an HTTP request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an HTTP post": b"POST /?query=SELECT%201 HTTP/1.1\r\n\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "an ancient client": hello(revision=54_000),
    "a query before the hello": query("SELECT 1") + END_OF_DATA,
    "two hellos": hello() + hello(),
    "data before a query": hello() + ONE_BLOCK,
    "an unknown packet": hello() + varint(77),
    "a name of 2^63 bytes": b"\x00" + varint(2**63) + b"x" * 100,
    "a query of 2^63 bytes": hello() + query("")[:-1] + varint(2**63),
    "a query id of 2^40 bytes": hello() + varint(1) + varint(2**40) + b"x" * 100,
    "endless settings": hello()
    + query("SELECT 1", settings={f"s{number}": "" for number in range(100_001)})
    + END_OF_DATA,
    "2^63 columns": hello() + query("SELECT 1") + b"\x02\x00\x00" + varint(2**63) + varint(1),
    "a huge type": hello()
    + query("SELECT 1")
    + b"\x02\x00\x00\x01\x01"
    + encode_string("a")
    + encode_string("Array(" * 100_000),
    "unknown block info": hello() + query("SELECT 1") + b"\x02\x00\x05\x00",
    "a wrong checksum": hello()
    + query("SELECT 1", compression=True)
    + b"\x02\x00"
    + b"\xff" * 16
    + b"".join(compressed_frames(b"abc", "lz4"))[16:],
    "an unknown compression": hello()
    + query("SELECT 1", compression=True)
    + b"\x02\x00"
    + bytes(16)
    + b"\x11"
    + pack("<II", 20, 20)
    + bytes(50),
    "a frame of 4 GiB": hello()
    + query("SELECT 1", compression=True)
    + b"\x02\x00"
    + bytes(16)
    + b"\x82"
    + pack("<II", 2**32 - 1, 2**32 - 1),
}


@pytest.mark.parametrize("name", ABSURD)
def test_invalid_packets_are_answered_with_an_exception(target: RunningNode, name: str) -> None:
    base = target.resident_bytes()
    answer = say(target, ABSURD[name])
    assert b"DB::Exception" in answer.data
    assert_healthy(target, base)


@pytest.mark.parametrize("stage", [0, 1, 3, 7, 2**62])
def test_an_unsupported_query_stage_is_rejected(target: RunningNode, stage: int) -> None:
    with RawClient(target.port) as raw:
        raw.send(query("SELECT 1", stage=stage) + END_OF_DATA)
        assert raw.expect_exception().code == 48


# Blocks with right outer and wrong inner lengths: their end is found, and the engine must report the error.
LYING: dict[str, tuple[str, bytes, int]] = {
    "offsets that go back": ("Array(UInt8)", uint64(5, 1, 3) + bytes(3), 3),
    "an enormous offset before the last": ("Array(UInt8)", uint64(2**62, 2**63, 3) + bytes(3), 3),
    "offsets of strings that go back": ("Array(String)", uint64(900, 0, 1) + b"\x01a", 3),
    "offsets of a map that go back": ("Map(String, UInt8)", uint64(7, 0, 1) + b"\x01a\x01", 3),
    "offsets of nested arrays that go back": ("Array(Array(UInt8))", uint64(2, 0, 2) + uint64(9, 1) + b"\x01", 3),
    "indexes beyond the dictionary": (
        "LowCardinality(String)",
        uint64(1, 1 << 9, 1) + encode_string("a") + uint64(3) + b"\xff\x7f\x05",
        3,
    ),
    "fewer indexes than rows": (
        "LowCardinality(String)",
        uint64(1, 1 << 9, 1) + encode_string("a") + uint64(1) + b"\0",
        3,
    ),
    "more indexes than rows": (
        "LowCardinality(String)",
        uint64(1, 1 << 9, 1) + encode_string("a") + uint64(9) + bytes(9),
        3,
    ),
    "no dictionary at all": ("LowCardinality(String)", uint64(1, 1 << 9, 0) + uint64(3) + bytes(3), 3),
    "a wrong version of the dictionary": (
        "LowCardinality(String)",
        uint64(9, 1 << 9, 1) + b"\1a" + uint64(3) + bytes(3),
        3,
    ),
    "a value outside the enum": ("Enum8('a' = 1)", b"\x07\x08\x09", 3),
    "a flag that is no flag": ("Nullable(UInt8)", b"\x07\xff\x00" + bytes(3), 3),
    "text that is no text": ("String", b"\x02\xff\xfe\x01\x00\x00", 3),
    "a date out of range": ("Date32", pack("<3i", -(2**31), 2**31 - 1, 0), 3),
    "a time out of range": ("DateTime64(9)", uint64(2**63, 2**63 - 1, 0), 3),
    "a type that the table has not": ("Array(Array(String))", uint64(0, 0, 0), 3),
    "a malformed document": ("JSON", uint64(1) + b"\x01\x61" + b"\x00" * 3, 3),
    "a document with an unknown version": ("JSON", uint64(77) + bytes(30), 3),
}
WITHOUT_END = {"a malformed document", "a document with an unknown version"}


@pytest.mark.parametrize("engine", ["Memory", "MergeTree ORDER BY tuple()"])
@pytest.mark.parametrize("name", LYING)
def test_blocks_with_wrong_inner_lengths_do_no_harm(target: RunningNode, name: str, engine: str) -> None:
    column_type, data, rows = LYING[name]
    own_type = "UInt8" if name == "a type that the table has not" else column_type
    target.query(f"CREATE OR REPLACE TABLE lied_to (value {own_type}) ENGINE = {engine}")
    base = target.resident_bytes()
    say(target, conversation("INSERT INTO lied_to VALUES", block([("value", column_type, data)], rows), END_OF_DATA))
    # What was inserted can be read, or reading it is an error.
    say(target, conversation("SELECT value, toString(value), hex(toString(value)) FROM lied_to ORDER BY 2"))
    say(target, conversation("SELECT * FROM lied_to", compression="lz4"))
    say(target, conversation("OPTIMIZE TABLE lied_to FINAL"))
    assert_healthy(target, base)


@pytest.mark.parametrize("rows", [10**9, 10**12, 2**40, 2**62, 2**63, 2**64 - 1])
@pytest.mark.parametrize(
    "column_type",
    [
        "UInt64",
        "String",
        "Array(UInt8)",
        "FixedString(1000000)",
        "LowCardinality(String)",
        "Nothing",
        "Nullable(UInt8)",
    ],
)
def test_announced_rows_that_never_arrive_take_no_memory(target: RunningNode, column_type: str, rows: int) -> None:
    base = target.resident_bytes()
    promise = block([("value", column_type, uint64(1, 1 << 9, 2**40))], rows)
    say(target, conversation("INSERT INTO FUNCTION null('value String') VALUES", promise))
    assert_healthy(target, base)
