"""Many clients, clients that disconnect, and more data than fits in memory."""

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Self
from uuid import uuid4

import pytest
from clickhouse_driver import Client

from dags.local.clickhouse.wire import encode_string
from dags.tests.local.clickhouse.nodes import RunningNode, running_node, wait_until
from dags.tests.local.clickhouse.raw import END_OF_DATA, PING, RawClient, block, query
from dags.tests.local.clickhouse.test_session import LONG_QUERY, is_running

MIB = 1 << 20
GONE_SECONDS = 10.0
CLIENTS = 4


@pytest.fixture(scope="module")
def own_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node without other clients, so that its threads and sockets can be counted."""
    with running_node(tmp_path_factory.mktemp("clients") / "node") as running:
        running.query("CREATE TABLE target (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
        yield running


def leave_before_hello(raw: RawClient, query_id: str) -> None:  # noqa: ARG001 - all have one signature
    raw.send(b"\x00\x04te")


def leave_after_hello(raw: RawClient, query_id: str) -> None:  # noqa: ARG001 - all have one signature
    raw.ping()


def leave_within_a_query_packet(raw: RawClient, query_id: str) -> None:
    raw.send(query("SELECT 1", query_id=query_id)[:-3])


def leave_before_external_tables(raw: RawClient, query_id: str) -> None:
    raw.send(query("SELECT 1", query_id=query_id))


def leave_within_a_block(raw: RawClient, query_id: str) -> None:
    raw.send_query("INSERT INTO target VALUES", query_id=query_id)
    raw.receive()
    raw.send(block([("a", "UInt64", bytes(8_000_000)), ("b", "String", b"")], 1_000_000))


def leave_between_blocks(raw: RawClient, query_id: str) -> None:
    raw.send_query("INSERT INTO target VALUES", query_id=query_id)
    raw.receive()
    raw.send(block([("a", "UInt64", bytes(8)), ("b", "String", encode_string("x"))], 1))


def leave_within_a_stream(raw: RawClient, query_id: str) -> None:
    raw.send_query("SELECT number, toString(number) FROM numbers(1000000000000)", query_id=query_id)
    for _ in range(5):
        raw.receive()


def leave_a_stream_unread(raw: RawClient, query_id: str) -> None:
    raw.send_query("SELECT repeat('x', 1000) FROM numbers(1000000000000)", query_id=query_id)


def leave_during_a_long_query(raw: RawClient, query_id: str) -> None:
    raw.send_query(LONG_QUERY, query_id=query_id)
    raw.receive()


def leave_during_a_long_query_with_more_on_the_way(raw: RawClient, query_id: str) -> None:
    raw.send_query(LONG_QUERY, query_id=query_id)
    raw.receive()
    raw.send(PING)


def leave_during_a_long_insert_from_a_select(raw: RawClient, query_id: str) -> None:
    raw.send_query(f"INSERT INTO FUNCTION null('a UInt64') {LONG_QUERY}", query_id=query_id)
    raw.receive()


LEAVING: list[Callable[[RawClient, str], None]] = [
    leave_before_hello,
    leave_after_hello,
    leave_within_a_query_packet,
    leave_before_external_tables,
    leave_within_a_block,
    leave_between_blocks,
    leave_within_a_stream,
    leave_a_stream_unread,
    leave_during_a_long_query,
    leave_during_a_long_query_with_more_on_the_way,
    leave_during_a_long_insert_from_a_select,
]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("leave", LEAVING)
def test_nothing_is_left_of_a_client_that_disconnects(
    own_node: RunningNode,
    leave: Callable[[RawClient, str], None],
    reset: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    query_id = str(uuid4())
    own_node.query("TRUNCATE TABLE target")
    with own_node.client() as witness:
        witness.execute("SELECT 1")
        wait_until("earlier clients are gone", lambda: own_node.sockets() == 1)
        with RawClient(own_node.port, greet=leave is not leave_before_hello) as raw:
            leave(raw, query_id)
            if reset:
                raw.vanish()
        wait_until("the query is gone", lambda: not is_running(own_node, query_id), GONE_SECONDS)
        wait_until("the socket is closed", lambda: own_node.sockets() == 1, GONE_SECONDS)
        assert witness.execute("SELECT count() FROM target") == [(0,)]


def test_threads_and_sockets_do_not_grow_with_past_connections(own_node: RunningNode) -> None:
    def visit() -> None:
        for leave in LEAVING[:6]:
            with RawClient(own_node.port, greet=leave is not leave_before_hello) as raw:
                leave(raw, str(uuid4()))
        own_node.query("SELECT sum(number) FROM numbers(1000)")

    visit()
    wait_until("the first clients are gone", lambda: own_node.sockets() == 0)
    threads, memory = own_node.threads(), own_node.resident_bytes()
    for _ in range(12):
        visit()
    wait_until("all clients are gone", lambda: own_node.sockets() == 0)
    wait_until("their threads are gone", lambda: own_node.threads() <= threads + 5)
    assert own_node.resident_bytes() < memory + 100 * MIB


def hammer(port: int, number: int, rounds: int) -> int:
    """Insert and read alternately; return the sum of the inserted values."""
    total = 0
    with Client("127.0.0.1", port=port, compression=number % 2 == 0) as client:
        for turn in range(rounds):
            values = [(number, turn * 100 + index) for index in range(100)]
            client.execute("INSERT INTO hammered VALUES", values)
            total += sum(value for _, value in values)
            [(mine,)] = client.execute("SELECT sum(value) FROM hammered WHERE client = %(number)s", {"number": number})
            assert mine == total, f"client {number} wrote {total} and reads {mine}"
            assert client.execute(f"SELECT {number}, number FROM numbers(3)") == [(number, row) for row in range(3)]  # noqa: S608 - names of the test
    return total


def test_several_processes_write_and_read_at_once(own_node: RunningNode) -> None:
    own_node.query("CREATE OR REPLACE TABLE hammered (client UInt8, value UInt64) ENGINE = MergeTree ORDER BY client")
    with multiprocessing.get_context("spawn").Pool(CLIENTS) as pool:
        totals = pool.starmap(hammer, [(own_node.port, number, 20) for number in range(CLIENTS)])
    rows = own_node.query("SELECT client, sum(value), count() FROM hammered GROUP BY client ORDER BY client")
    assert rows == [(number, total, 2000) for number, total in enumerate(totals)]


def test_many_connections_are_open_at_once(own_node: RunningNode) -> None:
    clients = [own_node.client() for _ in range(50)]
    try:
        for number, client in enumerate(clients):
            client.execute(f"CREATE TEMPORARY TABLE mine AS SELECT {number} AS a")
        assert [client.execute("SELECT a FROM mine") for client in clients] == [[(number,)] for number in range(50)]
    finally:
        for client in clients:
            client.disconnect()


class Peak:
    """The growth of a node's memory during a block, at its peak."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        self._before = node.resident_bytes()
        self._peak = self._before
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._peak = max(self._peak, self._node.resident_bytes())

    @property
    def growth(self) -> int:
        """In bytes."""
        return self._peak - self._before


def test_an_insert_of_a_million_rows_takes_bounded_memory(own_node: RunningNode) -> None:
    own_node.query("CREATE OR REPLACE TABLE million (a UInt64, b String) ENGINE = MergeTree ORDER BY a")
    with Peak(own_node) as peak, own_node.client(compression=True) as client:
        rows = ((number, f"text of row {number}") for number in range(1_000_000))
        assert client.execute("INSERT INTO million VALUES", rows, settings={"insert_block_size": 65_536}) == 1_000_000
    assert own_node.query("SELECT count(), uniqExact(b), sum(a) FROM million") == [
        (1_000_000, 1_000_000, 499_999_500_000)
    ]
    assert peak.growth < 300 * MIB


def insert_without_end(node: RunningNode, mebibytes: int) -> None:
    """Insert blocks into a Null table as fast as the socket accepts them."""
    data = block([("a", "UInt64", bytes(8 * 65_536)), ("b", "FixedString(16)", bytes(16 * 65_536))], 65_536)
    with RawClient(node.port) as raw:
        raw.send_query("INSERT INTO FUNCTION null('a UInt64, b FixedString(16)') VALUES")
        raw.receive()
        for _ in range(mebibytes * MIB // len(data)):
            raw.send(data)
        raw.send(END_OF_DATA)
        raw.receive_until_end()


def test_an_insert_larger_than_its_memory_bound_succeeds(own_node: RunningNode) -> None:
    with Peak(own_node) as peak:
        insert_without_end(own_node, 500)
    assert peak.growth < 300 * MIB


@pytest.mark.slow
def test_an_insert_of_many_gigabytes_takes_bounded_memory(own_node: RunningNode) -> None:
    with Peak(own_node) as peak:
        insert_without_end(own_node, 8_000)
    assert peak.growth < 300 * MIB


def test_one_huge_block_is_inserted(own_node: RunningNode) -> None:
    rows = 4_000_000
    own_node.query("CREATE OR REPLACE TABLE target_of_one (a UInt64) ENGINE = MergeTree ORDER BY a")
    with Peak(own_node) as peak, RawClient(own_node.port) as raw:
        raw.send_query("INSERT INTO target_of_one VALUES")
        raw.receive()
        raw.send(block([("a", "UInt64", bytes(8 * rows))], rows) + END_OF_DATA)
        raw.receive_until_end()
    assert own_node.query("SELECT count() FROM target_of_one") == [(rows,)]
    assert peak.growth < 400 * MIB


@pytest.mark.parametrize("rows", [5_000_000, pytest.param(100_000_000, marks=pytest.mark.slow)])
def test_a_stream_of_many_rows_takes_bounded_memory(own_node: RunningNode, rows: int) -> None:
    with Peak(own_node) as peak, RawClient(own_node.port) as raw:
        raw.send_query(f"SELECT number, number * 2 AS twice FROM numbers({rows})")  # noqa: S608 - names of the test
        assert raw.receive_until_end().rows == rows
    assert peak.growth < 300 * MIB


def test_a_slow_reader_does_not_make_the_server_buffer_the_result(own_node: RunningNode) -> None:
    with Peak(own_node) as peak:
        read = 0
        with own_node.client() as client:
            for (text,) in client.execute_iter("SELECT repeat('x', 400) FROM numbers(1000000000)"):
                read += len(text)
                if read > 100 * MIB:
                    break
    assert peak.growth < 300 * MIB
    wait_until("the stream has ended", lambda: own_node.sockets() == 0)


def test_small_queries_are_served_while_others_stream(own_node: RunningNode) -> None:
    with RawClient(own_node.port) as raw:
        raw.send_query("SELECT number FROM numbers(1000000000000)")
        raw.receive()
        with own_node.client() as client:
            deadline = monotonic() + 30
            assert all(client.execute("SELECT 1") == [(1,)] for _ in range(50))
            assert monotonic() < deadline


def test_data_survives_a_restart_and_a_stop_under_load(tmp_path: Path) -> None:
    with running_node(tmp_path / "node") as first:
        first.query("CREATE TABLE kept (a Int32) ENGINE = MergeTree ORDER BY a")
        first.query("INSERT INTO kept VALUES", [(1,), (2,)])
        with RawClient(first.port) as raw:
            raw.send_query(LONG_QUERY)
            raw.receive()
            assert first.terminate() == 0
    with running_node(tmp_path / "node") as second:
        assert second.query("SELECT sum(a) FROM kept") == [(3,)]
