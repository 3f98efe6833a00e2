"""Two nodes as two shards: their macros and clusters, and queries of one node to the other."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from clickhouse_driver.errors import ServerException

from dags.tests.local.clickhouse.nodes import RunningNode, running_node

Nodes = tuple[RunningNode, RunningNode]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two shards of one cluster, each with 1000 rows of its own in `parts.numbers`."""
    path = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [opened.getsockname()[1] for opened in sockets]
        listed = ",".join(f"127.0.0.1:{port}" for port in ports)
        running = []
        for shard, (opened, port) in enumerate(zip(sockets, ports, strict=True), start=1):
            opened.close()
            options = ("--cluster-nodes", listed, "--shard", str(shard))
            running.append(stack.enter_context(running_node(path / f"node{shard}", *options, port=port)))
        for shard, node in enumerate(running, start=1):
            node.query("CREATE DATABASE parts")
            node.query(
                "CREATE TABLE parts.numbers (shard UInt8, value UInt64, word LowCardinality(String), "
                "list Array(Nullable(UInt8)))"
                " ENGINE = MergeTree ORDER BY value"
            )
            node.query(f"INSERT INTO parts.numbers SELECT {shard}, number, number % 3, [NULL, 1] FROM numbers(1000)")  # noqa: S608 - names of the test
        yield running[0], running[1]


def test_each_node_knows_the_cluster_and_its_own_shard(nodes: Nodes) -> None:
    for shard, node in enumerate(nodes, start=1):
        clusters = node.query(
            "SELECT cluster, shard_num, replica_num, host_address, port FROM system.clusters ORDER BY shard_num"
        )
        assert clusters == [
            ("local", number, 1, "127.0.0.1", other.port) for number, other in enumerate(nodes, start=1)
        ]
        macros = dict(node.query("SELECT macro, substitution FROM system.macros"))
        assert macros == {"cluster": "local", "shard": str(shard), "replica": f"node-{shard}"}
        assert node.query("SELECT getMacro('shard')") == [(str(shard),)]


def test_a_single_node_is_a_cluster_of_one(node: RunningNode) -> None:
    assert node.query("SELECT cluster, shard_num, port FROM system.clusters") == [("local", 1, node.port)]


def test_a_node_recognizes_itself_in_the_cluster(nodes: Nodes) -> None:
    # A query to its own shard need not use its own port.
    for node in nodes:
        assert sum(local for (local,) in node.query("SELECT is_local FROM system.clusters")) in (0, 1)


def remote(node: RunningNode, table: str = "numbers") -> str:
    return f"remote('127.0.0.1:{node.port}', parts.{table})"


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT shard, value FROM {} ORDER BY value LIMIT 2", [(2, 0), (2, 1)]),
        ("SELECT shard, value FROM {} WHERE value = 999", [(2, 999)]),
        ("SELECT word, list FROM {} WHERE value = 1", [("1", [None, 1])]),
        ("SELECT * FROM {} WHERE value > 1000", []),
        ("SELECT count() FROM {}", [(1000,)]),
        ("SELECT sum(value), max(shard) FROM {}", [(499500, 2)]),
        ("SELECT word, count() FROM {} GROUP BY word ORDER BY word", [("0", 334), ("1", 333), ("2", 333)]),
        ("SELECT DISTINCT word FROM {} ORDER BY word", [("0",), ("1",), ("2",)]),
        ("SELECT uniqExact(value), quantileExact(0.5)(value) FROM {}", [(1000, 500)]),
        ("SELECT count() FROM {} AS a JOIN parts.numbers AS b USING value", [(1000,)]),
        ("SELECT count() FROM parts.numbers WHERE value IN (SELECT value FROM {} WHERE value < 10)", [(10,)]),
        ("SELECT count() FROM {} WHERE value GLOBAL IN (SELECT value FROM parts.numbers WHERE value < 10)", [(10,)]),
    ],
)
@pytest.mark.parametrize("compression", [0, 1])
def test_the_engines_own_client_reads_from_another_node(
    nodes: Nodes, sql: str, expected: list[Any], compression: int
) -> None:
    settings = {"network_compression_method": "zstd" if compression else "lz4"}
    assert nodes[0].query(sql.format(remote(nodes[1])), settings=settings) == expected


def test_the_engines_own_client_reads_a_large_result_and_stops_early(nodes: Nodes) -> None:
    first, second = nodes
    second.query("CREATE OR REPLACE VIEW parts.many AS SELECT number, toString(number) AS text FROM numbers(3000000)")
    assert first.query(f"SELECT sum(length(text)), sum(number) FROM {remote(second, 'many')}") == [  # noqa: S608 - names of the test
        (19_888_890, 4_499_998_500_000)
    ]
    second.query("CREATE OR REPLACE VIEW parts.endless AS SELECT number FROM numbers(1000000000000)")
    assert len(first.query(f"SELECT number FROM {remote(second, 'endless')} LIMIT 5")) == 5  # noqa: S608 - names of the test
    assert second.query("SELECT 1") == [(1,)]


def test_the_engines_own_client_writes_to_another_node(nodes: Nodes) -> None:
    first, second = nodes
    second.query(
        "CREATE OR REPLACE TABLE parts.written (a UInt64, b LowCardinality(String)) ENGINE = MergeTree ORDER BY a"
    )
    first.query(f"INSERT INTO FUNCTION {remote(second, 'written')} SELECT number, number % 7 FROM numbers(100000)")  # noqa: S608 - names of the test
    first.query(f"INSERT INTO FUNCTION {remote(second, 'written')} VALUES", [(1, "x")])
    first.query(f"INSERT INTO FUNCTION {remote(second, 'written')} (b, a) VALUES", [("y", 2)])
    assert second.query("SELECT count(), uniqExact(b), sum(a) FROM parts.written") == [(100_002, 9, 4_999_950_003)]


def test_an_error_of_another_node_keeps_its_code(nodes: Nodes) -> None:
    first, second = nodes
    for sql, code in (
        (f"SELECT * FROM {remote(second, 'missing')}", 60),  # noqa: S608 - names of the test
        (f"SELECT throwIf(value = 5) FROM {remote(second)}", 395),  # noqa: S608 - names of the test
    ):
        with pytest.raises(ServerException) as caught:
            first.query(sql)
        assert caught.value.code == code


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count() FROM cluster('local', parts.numbers)",
        "SELECT word, sum(value) FROM cluster('local', parts.numbers) GROUP BY word",
        "SELECT uniqExact(value) FROM cluster('local', parts.numbers)",
        "SELECT shard, value FROM cluster('local', parts.numbers) ORDER BY value, shard LIMIT 3",
    ],
)
def test_queries_that_need_partial_results_of_shards_are_rejected(nodes: Nodes, sql: str) -> None:
    with pytest.raises(ServerException) as caught:
        nodes[0].query(sql)
    assert caught.value.code == 48
    assert "only complete results" in caught.value.message


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT count() FROM cluster('local', parts.numbers)", [(1000,), (1000,)]),
        ("SELECT shard, sum(value) FROM cluster('local', parts.numbers) GROUP BY shard", [(1, 499500), (2, 499500)]),
    ],
)
def test_each_shard_can_aggregate_its_own_rows(nodes: Nodes, sql: str, expected: list[Any]) -> None:
    assert sorted(nodes[0].query(sql, settings={"distributed_group_by_no_merge": 1})) == expected


def test_rows_of_all_shards_are_read_in_no_order(nodes: Nodes) -> None:
    rows = nodes[0].query("SELECT shard, value FROM cluster('local', parts.numbers) WHERE value < 2")
    assert sorted(rows) == [(1, 0), (1, 1), (2, 0), (2, 1)]


def test_a_distributed_table_spreads_inserted_rows(nodes: Nodes) -> None:
    for node in nodes:
        node.query("CREATE OR REPLACE TABLE parts.spread_local (a UInt64) ENGINE = MergeTree ORDER BY a")
        node.query(
            "CREATE OR REPLACE TABLE parts.spread AS parts.spread_local "
            "ENGINE = Distributed('local', 'parts', 'spread_local', a)"
        )
    rows = [(number,) for number in range(1000)]
    nodes[0].query("INSERT INTO parts.spread VALUES", rows, settings={"distributed_foreground_insert": 1})
    assert [node.query("SELECT count() FROM parts.spread_local") for node in nodes] == [[(500,)], [(500,)]]
    nodes[1].query(
        "INSERT INTO parts.spread SELECT number FROM numbers(1000)", settings={"distributed_foreground_insert": 1}
    )
    assert [node.query("SELECT count() FROM parts.spread_local") for node in nodes] == [[(1000,)], [(1000,)]]
