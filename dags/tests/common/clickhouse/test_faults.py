"""No fault of the network leads to a wrong answer, a second effect, or a call that outlives its deadline."""

import random
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest
from clickhouse_driver import Client

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import CallTimeoutError
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Insert, Query
from dags.common.clickhouse.retry import RetryPolicy, is_transient
from dags.tests.common.clickhouse.faulty_proxy import DELAY, DROP, END, RESET_BOTH, Fault, FaultyProxy, random_faults

TIMEOUT_SECONDS = 1.5
# A busy machine may be late with a timer; a call that hangs is later than that.
LATE_SECONDS = 10.0
POLICY = RetryPolicy(attempts=6, first_wait_seconds=0.01, max_wait_seconds=0.05)
ROWS = 3000
TABLE = """
CREATE TABLE {name} (call UInt64, row UInt64) ENGINE = MergeTree ORDER BY (call, row)
SETTINGS non_replicated_deduplication_window = 10000
"""


@dataclass
class Calls:
    """The calls by kind with their futures, and the number of rows of each insert."""

    sizes: dict[int, int] = field(default_factory=dict)
    reads: "dict[int, Future[Any]]" = field(default_factory=dict)
    tokens: "dict[int, Future[Any]]" = field(default_factory=dict)
    plain: "dict[int, Future[Any]]" = field(default_factory=dict)


@pytest.fixture
def plain_client(clickhouse_cluster_ports: tuple[int, ...]) -> Iterator[Client]:
    with Client("127.0.0.1", port=clickhouse_cluster_ports[0]) as client:
        yield client


def make_calls(cluster: ClickhouseCluster, tables: tuple[str, str], count: int, seed: int) -> Calls:
    """Make reads, inserts with a token and inserts without, in random order, a few at a time."""
    choice = random.Random(seed)  # noqa: S311 - repeatable on purpose
    calls = Calls()
    waiting: set[Future[Any]] = set()
    for number in range(count):
        if len(waiting) >= 8:
            _, waiting = futures.wait(waiting, timeout=LATE_SECONDS, return_when=futures.FIRST_COMPLETED)
        calls.sizes[number] = choice.randrange(1, 200)
        rows = [(number, row) for row in range(calls.sizes[number])]
        kind = choice.choice(["reads", "reads", "tokens", "plain"])
        call: Any
        if kind == "reads":
            call = Query(
                "SELECT number * %(factor)s, toString(number) FROM numbers(%(rows)s)", {"factor": number, "rows": ROWS}
            )
        else:
            table = tables[0] if kind == "tokens" else tables[1]
            call = Insert(table, ["call", "row"], rows, f"call {number}" if kind == "tokens" else None)
        future = cluster.any_host(call, timeout_seconds=TIMEOUT_SECONDS)
        getattr(calls, kind)[number] = future
        waiting.add(future)
    return calls


def outcome_of(future: "Future[Any]") -> str:
    """Return `right` or how the call failed. A call that has not ended fails the test."""
    error = future.exception(timeout=LATE_SECONDS)
    if error is None:
        return "right"
    if isinstance(error, CallTimeoutError):
        return "late"
    assert is_transient(error), error
    return "lost"


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)], ids=["150 calls", "1,000 calls"])
def test_no_answer_is_wrong_no_call_takes_effect_twice_and_none_hangs(
    clickhouse_cluster_ports: tuple[int, ...], plain_client: Client, count: int
) -> None:
    name = uuid.uuid4().hex
    tables = f"tokens_{name}", f"plain_{name}"
    for table in tables:
        plain_client.execute(TABLE.format(name=table))
    # Two addresses of one node: a call that one loses, the other can run.
    proxies = [FaultyProxy(clickhouse_cluster_ports[0], random_faults(seed, 600_000, 0.3)) for seed in range(2)]
    hosts = [Host("127.0.0.1", proxy.port, replica=number) for number, proxy in enumerate(proxies, 1)]
    try:
        with ClickhouseCluster(hosts, Access(), policy=POLICY) as cluster:
            calls = make_calls(cluster, tables, count, seed=1)
            outcomes = {
                kind: {number: outcome_of(future) for number, future in getattr(calls, kind).items()}
                for kind in ("reads", "tokens", "plain")
            }
        for number, future in calls.reads.items():
            if outcomes["reads"][number] == "right":
                assert future.result() == [(row * number, str(row)) for row in range(ROWS)]
        for proxy in proxies:
            # Now the server notices that its clients are gone.
            proxy.close()
        for table, kind in zip(tables, ("tokens", "plain"), strict=True):
            stored = settled(plain_client, table)
            for number in getattr(calls, kind):
                size = calls.sizes[number]
                # A call that failed had its effect once, or it had none: never twice, never half.
                possible = {(size, size)} if outcomes[kind][number] == "right" else {(size, size), (0, 0)}
                assert stored.get(number, (0, 0)) in possible
        tally = Counter(outcome for of_kind in outcomes.values() for outcome in of_kind.values())
        assert sum(tally.values()) == count
        # The faults happened, and most calls succeeded all the same.
        seen = proxies[0].counts + proxies[1].counts
        assert set(seen) == {DROP, DELAY, RESET_BOTH, END}
        assert tally["right"] > count * 0.7
    finally:
        for proxy in proxies:
            proxy.close()
        for table in tables:
            plain_client.execute(f"DROP TABLE {table}")


@pytest.mark.parametrize("token", [None, "token of call {}"], ids=["without a token", "with a token"])
def test_wherever_the_connection_of_an_insert_ends_its_rows_are_there_once_or_not_at_all(
    clickhouse_cluster_ports: tuple[int, ...], plain_client: Client, token: str | None
) -> None:
    table = f"inserted_{uuid.uuid4().hex}"
    plain_client.execute(TABLE.format(name=table))

    def insert(number: int, faults: list[Fault]) -> tuple[bool, int]:
        proxy = FaultyProxy(clickhouse_cluster_ports[0], lambda count: list(faults) if count == 0 else [])
        call = Insert(table, ["call", "row"], [(number, row) for row in range(50)], token and token.format(number))
        with ClickhouseCluster([Host("127.0.0.1", proxy.port)], policy=POLICY) as cluster:
            is_right = cluster.any_host(call).exception(LATE_SECONDS) is None
        proxy.close()
        return is_right, proxy.passed_bytes()

    _, conversation = insert(0, [])
    right = [0]
    for number, byte in enumerate(range(0, conversation, conversation // 60), 1):
        if insert(number, [Fault(END, byte)])[0]:
            right.append(number)
    stored = settled(plain_client, table)
    plain_client.execute(f"DROP TABLE {table}")
    assert set(right) <= set(stored) <= set(range(number + 1))
    assert set(stored.values()) == {(50, 50)}
    # With a token every call could be retried; without it, only a call that had not started.
    assert len(right) > number if token else len(right) < number


def settled(client: Client, table: str) -> dict[int, tuple[int, int]]:
    """Return rows and distinct rows of each call, once no insert into the table is in progress."""
    deadline = time.monotonic() + LATE_SECONDS
    running = "SELECT count() FROM system.processes WHERE position(query, %(table)s) > 0 AND query LIKE 'INSERT%%'"
    while client.execute(running, {"table": table}) != [(0,)]:
        assert time.monotonic() < deadline, f"an insert into {table} does not end"
        time.sleep(0.05)
    rows = client.execute(f"SELECT call, count(), uniqExact(row) FROM {table} GROUP BY call")  # noqa: S608 - a name made here
    return {call: (count, different) for call, count, different in rows}


def test_a_query_is_killed_by_its_id_at_its_deadline_although_the_server_did_not_notice(
    clickhouse_cluster_ports: tuple[int, ...], plain_client: Client
) -> None:
    proxy = FaultyProxy(clickhouse_cluster_ports[0])
    query_id = uuid.uuid4().hex
    running = "SELECT count() FROM system.processes WHERE query_id = %(id)s"
    with ClickhouseCluster([Host("127.0.0.1", proxy.port)], policy=POLICY) as cluster:
        future = cluster.any_host(
            lambda client: client.execute(
                "SELECT sleepEachRow(1) FROM numbers(600) SETTINGS max_block_size = 1", query_id=query_id
            ),
            timeout_seconds=2,
        )
        deadline = time.monotonic() + LATE_SECONDS
        while plain_client.execute(running, {"id": query_id}) != [(1,)]:
            assert time.monotonic() < deadline, "the query does not start"
        # From now on the server does not notice that its client is gone.
        proxy.drop_open_connections()
        with pytest.raises(CallTimeoutError):
            future.result(LATE_SECONDS)
        while plain_client.execute(running, {"id": query_id}) != [(0,)]:
            assert time.monotonic() < deadline + 2 * LATE_SECONDS, "the server still runs the query"
    proxy.close()


def test_a_server_without_a_handshake_holds_no_call_beyond_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        host = Host("127.0.0.1", silent.getsockname()[1])
        with ClickhouseCluster([host], policy=POLICY, connections_per_host=1) as cluster:
            # The second call gets the thread of the first, so the thread does not hang either.
            for _ in range(2):
                with pytest.raises(CallTimeoutError):
                    cluster.any_host(Query("SELECT 1"), timeout_seconds=0.3).result(LATE_SECONDS)


def test_a_host_that_hangs_takes_no_thread_from_the_others(clickhouse_cluster_ports: tuple[int, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        hanging = Host("127.0.0.1", silent.getsockname()[1])
        healthy = Host("127.0.0.1", clickhouse_cluster_ports[1], shard=2)
        with ClickhouseCluster([hanging, healthy]) as cluster:
            blocked = [cluster.only(hanging).any_host(Query("SELECT 1"), timeout_seconds=30) for _ in range(20)]
            assert cluster.only(healthy).any_host(Query("SELECT 1"), timeout_seconds=20).result() == [(1,)]
            assert not any(future.done() for future in blocked)
