import concurrent.futures
import json
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clickhouse_driver import Client, errors
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.discovery import cluster_from_settings, connect
from dags.common.clickhouse.errors import (
    CallTimeoutError,
    ClusterClosedError,
    ClusterError,
    UnknownClusterError,
    UnknownShardError,
)
from dags.common.clickhouse.hosts import UNKNOWN_ROLE, Access, Host
from dags.common.clickhouse.pool import MAX_CALL_SECONDS
from dags.common.clickhouse.query import Insert, Query
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.clickhouse.retry import RetryPolicy
from dags.common.settings import Settings
from dags.local.ports import free_port
from dags.tests.common.clickhouse.conftest import BreakableProxy
from dags.tests.local.clickhouse.nodes import running_node

QUICK = RetryPolicy(attempts=3, first_wait_seconds=0.01, max_wait_seconds=0.02)
WAIT_SECONDS = 30.0
ENDLESS = "SELECT sleepEachRow(1) FROM numbers(600) SETTINGS max_block_size = 1"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS:g} seconds: {what}"
        time.sleep(0.02)


@pytest.fixture
def cluster(clickhouse_port: int) -> Iterator[ClickhouseCluster]:
    """Two hosts that are one server under two names."""
    hosts = [Host("127.0.0.1", clickhouse_port), Host("localhost", clickhouse_port, shard=2)]
    with ClickhouseCluster(hosts, policy=QUICK) as value:
        yield value


# Discovery


def test_hosts_are_those_of_the_named_cluster(clickhouse_cluster_ports: tuple[int, ...]) -> None:
    first, second = clickhouse_cluster_ports
    with connect(Access(), "127.0.0.1", second, "local") as cluster:
        assert cluster.hosts == (Host("127.0.0.1", first, 1, 1), Host("127.0.0.1", second, 2, 1))
        assert cluster.name == "local"
        shards = cluster.map_all_hosts(Query("SELECT getMacro('shard')")).result()
    assert {host.port: rows for host, rows in shards.items()} == {first: [("1",)], second: [("2",)]}


def test_without_a_cluster_name_the_one_host_is_used(clickhouse_port: int) -> None:
    settings = Settings(clickhouse_port=clickhouse_port, clickhouse_cluster=None, debug=False)
    with cluster_from_settings(settings) as cluster:
        assert cluster.hosts == (Host("127.0.0.1", clickhouse_port),)
        assert cluster.name is None


def test_an_unknown_cluster_is_named_together_with_the_known_ones(clickhouse_cluster_ports: tuple[int, ...]) -> None:
    with pytest.raises(UnknownClusterError, match=r"knows no cluster 'elsewhere', only: .*local.*CLICKHOUSE_CLUSTER"):
        connect(Access(), "127.0.0.1", clickhouse_cluster_ports[0], "elsewhere")


def test_a_cluster_without_hosts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one host"):
        ClickhouseCluster([])


def test_roles_come_from_the_macro_and_a_host_without_it_has_data(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    nodes = "--cluster-nodes", ",".join(f"127.0.0.1:{port}" for port in ports)
    with (
        running_node(tmp_path / "one", *nodes, "--role", "ingestion", port=ports[0]),
        running_node(tmp_path / "two", *nodes, "--shard", "2", port=ports[1]) as second,
    ):
        with connect(Access(), "127.0.0.1", ports[0], "local") as cluster:
            assert [host.role for host in cluster.hosts] == ["ingestion", "data"]
            assert cluster.shards == [2]
        second.kill()
        with connect(Access(), "127.0.0.1", ports[0], "local") as cluster:
            assert [host.role for host in cluster.hosts] == ["ingestion", UNKNOWN_ROLE]
            # A host that may have rows is not left out of queries of every shard.
            assert cluster.shards == [2]


# Shards


@pytest.fixture
def shards(clickhouse_cluster_ports: tuple[int, ...]) -> Iterator[ClickhouseCluster]:
    """Two shards; the first has a second address in place of a replica, and there is a host without rows."""
    first, second = clickhouse_cluster_ports
    hosts = [
        Host("127.0.0.1", first, 1, 1),
        Host("localhost", first, 1, 2),
        Host("127.0.0.1", second, 2, 1),
        Host("localhost", second, 3, 1, role="ingestion"),
    ]
    with ClickhouseCluster(hosts, policy=QUICK) as value:
        yield value


SHARD = Query("SELECT getMacro('shard')")


def test_one_host_of_each_shard_is_called_and_replicas_take_turns(shards: ClickhouseCluster) -> None:
    assert shards.shards == [1, 2]
    assert shards.replicas_of(1) == shards.hosts[:2]
    results = [shards.map_one_host_per_shard(SHARD).result() for _ in range(4)]
    assert all({host.shard: rows for host, rows in one.items()} == {1: [("1",)], 2: [("2",)]} for one in results)
    assert {host for one in results for host in one} == set(shards.hosts[:3])


def test_each_shard_gets_its_own_function(shards: ClickhouseCluster) -> None:
    results = shards.map_any_host_in_shards({2: Query("SELECT 'second'"), 1: Query("SELECT 'first'")}).result()
    assert {host.shard: rows for host, rows in results.items()} == {1: [("first",)], 2: [("second",)]}
    assert list(shards.map_any_host_in_shards({2: SHARD}).result()) == [shards.hosts[2]]
    assert shards.map_any_host_in_shards({}).result() == {}


def test_an_unknown_shard_is_named_before_anything_is_called(shards: ClickhouseCluster) -> None:
    called: list[object] = []
    with pytest.raises(UnknownShardError, match="no shard 4, only: 1, 2"):
        shards.map_any_host_in_shards({1: called.append, 4: called.append})
    with pytest.raises(UnknownShardError, match="no shard 3"):
        shards.replicas_of(3)
    assert called == []


def test_a_write_runs_on_every_host_unless_the_table_is_replicated(shards: ClickhouseCluster) -> None:
    class Replicated(ClickhouseCluster):
        def is_replicated(self, table: str) -> bool:
            return table == "replicated"

    with Replicated(shards.hosts, policy=QUICK) as cluster:
        assert set(cluster.map_write_hosts("plain", SHARD).result()) == set(cluster.hosts)
        results = [cluster.map_write_hosts("replicated", SHARD).result() for _ in cluster.hosts]
    assert all(len(result) == 1 for result in results)
    assert {host for result in results for host in result} == set(shards.hosts)


def test_a_replica_that_is_gone_is_skipped_also_for_a_call_that_may_not_be_repeated(
    clickhouse_cluster_ports: tuple[int, ...],
) -> None:
    hosts = [Host("127.0.0.1", free_port(), 1, 1), Host("127.0.0.1", clickhouse_cluster_ports[0], 1, 2)]
    with ClickhouseCluster(hosts, policy=QUICK) as cluster:
        for _ in range(2):
            called: list[int] = []
            result = cluster.map_one_host_per_shard(lambda client, seen=called: seen.append(client.connection.port))  # type: ignore[misc]
            # The result is listed under the host that ran the call.
            assert result.result() == {hosts[1]: None}
            assert called == [hosts[1].port]


def test_a_call_that_breaks_continues_on_the_other_replica_and_another_connection_if_it_is_retryable(
    clickhouse_cluster_ports: tuple[int, ...],
) -> None:
    proxy = BreakableProxy(clickhouse_cluster_ports[0])
    hosts = [Host("127.0.0.1", proxy.port, 1, 1), Host("127.0.0.1", clickhouse_cluster_ports[0], 1, 2)]
    seen: list[int] = []

    def breaks_on_the_first(client: Client) -> object:
        seen.append(client.connection.port)
        if client.connection.port == proxy.port:
            proxy.break_connections()
        return client.execute("SELECT 1")

    with ClickhouseCluster(hosts, policy=QUICK) as cluster:
        assert cluster.map_one_host_per_shard(breaks_on_the_first, retryable=True).result() == {hosts[1]: [(1,)]}
        assert seen == [host.port for host in hosts]
        assert cluster.map_one_host_per_shard(SHARD).result() == {hosts[1]: [("1",)]}
        with pytest.raises(ClusterError, match=f"- {hosts[0]}: "):
            cluster.map_one_host_per_shard(breaks_on_the_first).result()
    proxy.close()


def test_when_no_replica_of_a_shard_answers_the_other_shards_answer_and_the_error_names_the_host(
    clickhouse_cluster_ports: tuple[int, ...],
) -> None:
    hosts = [Host("127.0.0.1", clickhouse_cluster_ports[0], 1), *(Host("127.0.0.1", free_port(), 2, n) for n in (1, 2))]
    with ClickhouseCluster(hosts, policy=QUICK) as cluster:
        futures = cluster.map_one_host_per_shard(SHARD)
        with pytest.raises(ClusterError, match="failed on 1 of 2 ClickHouse hosts") as caught:
            futures.result()
        assert [host.shard for host in caught.value.errors] == [2]
        assert futures[hosts[0]].result() == [("1",)]
        # The notes of the error name the replicas that were tried.
        text = "".join(traceback.format_exception(caught.value.__cause__))
        assert all(str(host) in text for host in hosts[1:])


def test_a_deadline_is_for_each_shard_with_all_its_replicas(shards: ClickhouseCluster) -> None:
    with pytest.raises(ClusterError) as caught:
        shards.map_one_host_per_shard(Query(ENDLESS), timeout_seconds=0.5).result()
    assert {host.shard for host in caught.value.errors} == {1, 2}
    assert all(isinstance(error, CallTimeoutError) for error in caught.value.errors.values())


def test_calls_can_be_limited_to_some_hosts(shards: ClickhouseCluster) -> None:
    some = shards.among(shards.hosts[1:3])
    assert set(some.map_all_hosts(SHARD).result()) == set(shards.hosts[1:3])
    assert some.map_one_host_per_shard(SHARD).result().keys() == set(shards.hosts[1:3])
    with pytest.raises(ValueError, match="not among the hosts"):
        some.only(shards.hosts[0])
    with pytest.raises(ValueError, match="at least one host"):
        shards.among([])


# Calls and their errors


def test_calls_return_real_futures(cluster: ClickhouseCluster) -> None:
    future = cluster.any_host(Query("SELECT 1"))
    assert isinstance(future, concurrent.futures.Future)
    done, _ = concurrent.futures.wait([future], timeout=WAIT_SECONDS)
    assert done == {future}


def test_hosts_take_turns(cluster: ClickhouseCluster) -> None:
    seen = {cluster.any_host(lambda client: client.connection.host).result() for _ in range(4)}
    assert seen == {"127.0.0.1", "localhost"}


def test_all_errors_are_reported_with_their_hosts(cluster: ClickhouseCluster) -> None:
    with pytest.raises(ClusterError) as caught:
        cluster.map_all_hosts(Query("SELECT no_such_column")).result()
    assert set(caught.value.errors) == set(cluster.hosts)
    for host, error in caught.value.errors.items():
        assert isinstance(error, errors.ServerException)
        assert error.code == 47
        assert f"- {host}: ServerException: Code: 47." in str(caught.value)
    assert "failed on 2 of 2 ClickHouse hosts" in str(caught.value)
    assert caught.value.__cause__ is caught.value.errors[cluster.hosts[0]]


def test_a_host_that_succeeds_is_not_among_the_errors(cluster: ClickhouseCluster) -> None:
    def fails_on_one(client: Client) -> int:
        if client.connection.host == "localhost":
            raise LookupError("this host lacks it")
        return 1

    futures = cluster.map_all_hosts(fails_on_one)
    with pytest.raises(ClusterError, match="failed on 1 of 2") as caught:
        futures.result()
    assert [host.address for host in caught.value.errors] == ["localhost"]
    results, failures = futures.results_and_failures()
    assert results == {cluster.hosts[0]: 1}
    assert list(failures) == [cluster.hosts[1]]


def test_the_error_of_a_call_keeps_its_type_and_names_the_host(cluster: ClickhouseCluster) -> None:
    with pytest.raises(errors.ServerException) as caught:
        cluster.any_host(Query("SELECT no_such_column")).result()
    assert caught.value.code == 47
    assert "On ClickHouse host" in "".join(traceback.format_exception(caught.value))


# Retries


def test_an_unreachable_host_is_skipped_even_for_a_call_that_may_not_be_repeated(clickhouse_port: int) -> None:
    hosts = [Host("127.0.0.1", free_port()), Host("127.0.0.1", clickhouse_port)]
    with ClickhouseCluster(hosts, policy=QUICK) as cluster:
        calls: list[int] = []
        for _ in range(4):
            cluster.any_host(lambda client: calls.append(client.connection.port), retryable=False).result()
    assert calls == [clickhouse_port] * 4


def test_when_no_host_can_be_reached_the_error_names_each() -> None:
    hosts = [Host("127.0.0.1", free_port()), Host("127.0.0.1", free_port())]
    with ClickhouseCluster(hosts, policy=QUICK) as cluster, pytest.raises(errors.NetworkError) as caught:
        cluster.any_host(Query("SELECT 1")).result()
    text = "".join(traceback.format_exception(caught.value))
    assert all(str(host) in text for host in hosts)
    assert "attempt 3" in text


def test_a_read_is_retried_after_its_connection_broke(breakable_proxy: BreakableProxy) -> None:
    attempts = []

    def broken_once(client: Client) -> object:
        attempts.append(client)
        if len(attempts) == 1:
            breakable_proxy.break_connections()
        return client.execute("SELECT 1")

    with ClickhouseCluster([Host("127.0.0.1", breakable_proxy.port)], policy=QUICK) as cluster:
        assert cluster.any_host(broken_once, retryable=True).result() == [(1,)]
    assert len(attempts) == 2
    assert attempts[0] is not attempts[1]


def test_a_call_that_has_started_is_not_retried_unless_it_is_retryable(cluster: ClickhouseCluster) -> None:
    calls = []

    def fails(_: Client) -> None:
        calls.append(1)
        raise ConnectionResetError("the answer was lost")

    with pytest.raises(ConnectionResetError):
        cluster.any_host(fails).result()
    assert len(calls) == 1
    with pytest.raises(ConnectionResetError):
        cluster.any_host(fails, retryable=True).result()
    assert len(calls) == 1 + QUICK.attempts


def test_a_permanent_error_is_not_retried(cluster: ClickhouseCluster) -> None:
    calls = []

    def wrong(client: Client) -> None:
        calls.append(1)
        client.execute("SELECT no_such_column")

    with pytest.raises(errors.ServerException):
        cluster.any_host(wrong, retryable=True).result()
    assert len(calls) == 1


def test_an_insert_waits_out_too_many_parts(clickhouse_port: int, clickhouse_database: str) -> None:
    access = Access(database=clickhouse_database)
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], access, policy=QUICK) as cluster:
        settings = "parts_to_throw_insert = 2, parts_to_delay_insert = 1000, non_replicated_deduplication_window = 10"
        create = f"CREATE TABLE t (a UInt8) ENGINE = MergeTree ORDER BY a SETTINGS {settings}"
        for statement in (create, "SYSTEM STOP MERGES t"):
            cluster.any_host(Query(statement)).result()
        for value in range(2):
            cluster.any_host(Insert("t", ["a"], [(value,)], f"token {value}")).result()
        attempts = []
        insert = Insert("t", ["a"], [(9,)], "token 9")

        def merged_before_the_second_attempt(client: Client) -> int:
            attempts.append(1)
            if len(attempts) == 2:
                client.execute("TRUNCATE TABLE t")
            return insert(client)

        assert cluster.any_host(merged_before_the_second_attempt, retryable=True).result() == 1
        assert len(attempts) == 2


# Deadlines


def test_a_call_ends_at_its_deadline_and_so_does_its_query(cluster: ClickhouseCluster) -> None:
    query_id = uuid.uuid4().hex
    future = cluster.any_host(lambda client: client.execute(ENDLESS, query_id=query_id), timeout_seconds=1)
    with pytest.raises(CallTimeoutError, match=r"did not end within 1 seconds.*system\.processes"):
        future.result(WAIT_SECONDS)
    running = Query("SELECT count() FROM system.processes WHERE query_id = %(id)s", {"id": query_id})
    wait_until(lambda: cluster.any_host(running).result() == [(0,)], "the server still runs the query")


def test_a_call_that_hangs_without_a_query_ends_at_its_deadline_too(cluster: ClickhouseCluster) -> None:
    forever = threading.Event()
    future = cluster.any_host(lambda _: forever.wait(WAIT_SECONDS), timeout_seconds=0.2)
    with pytest.raises(CallTimeoutError):
        future.result(WAIT_SECONDS)
    forever.set()


def test_after_its_deadline_a_call_can_send_no_query(cluster: ClickhouseCluster) -> None:
    outcome: list[object] = []

    def stubborn(client: Client) -> None:
        for statement in (ENDLESS, "SELECT 1"):
            try:
                outcome.append(client.execute(statement))
            except Exception as error:  # noqa: BLE001 - it ignores every error on purpose
                outcome.append(error)

    with pytest.raises(CallTimeoutError):
        cluster.any_host(stubborn, timeout_seconds=0.5).result(WAIT_SECONDS)
    wait_until(lambda: len(outcome) == 2, "the function has not come back")
    assert isinstance(outcome[1], CallTimeoutError)


def test_a_deadline_covers_the_waits_between_attempts() -> None:
    slow = RetryPolicy(attempts=100, first_wait_seconds=WAIT_SECONDS * 2, max_wait_seconds=WAIT_SECONDS * 2)
    with ClickhouseCluster([Host("127.0.0.1", free_port())], policy=slow) as cluster:
        future = cluster.any_host(Query("SELECT 1"), timeout_seconds=0.3)
        with pytest.raises(CallTimeoutError):
            future.result(WAIT_SECONDS)


def test_the_deadline_of_a_whole_map_ends_every_call(cluster: ClickhouseCluster) -> None:
    futures = cluster.map_all_hosts(Query(ENDLESS))
    with pytest.raises(ClusterError) as caught:
        futures.result(timeout_seconds=0.5)
    assert all(isinstance(error, CallTimeoutError) for error in caught.value.errors.values())
    assert set(caught.value.errors) == set(cluster.hosts)


def test_a_map_that_is_in_time_is_not_affected_by_its_deadline(cluster: ClickhouseCluster) -> None:
    assert list(cluster.map_all_hosts(Query("SELECT 1")).result(WAIT_SECONDS).values()) == [[(1,)], [(1,)]]


@pytest.mark.parametrize("seconds", [0, -1, 1e9])
def test_an_impossible_deadline_is_refused(cluster: ClickhouseCluster, seconds: float) -> None:
    with pytest.raises(ValueError, match="give more than 0 and at most 86400"):
        cluster.any_host(Query("SELECT 1"), timeout_seconds=seconds)


def test_closing_kills_the_queries_in_progress(clickhouse_port: int) -> None:
    query_id = uuid.uuid4().hex
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)]) as watching:
        running = Query("SELECT count() FROM system.processes WHERE query_id = %(id)s", {"id": query_id})
        cluster = ClickhouseCluster([Host("127.0.0.1", clickhouse_port)])
        cluster.any_host(lambda client: client.execute(ENDLESS, query_id=query_id))
        wait_until(lambda: watching.any_host(running).result() == [(1,)], "the query has not started")
        cluster.close()
        wait_until(lambda: watching.any_host(running).result() == [(0,)], "the server still runs the query")


def test_a_server_may_be_silent_until_the_deadline_also_on_the_connection_after_an_error(clickhouse_port: int) -> None:
    def fails_and_continues(client: Client) -> tuple[float, float]:
        first = client.connection.socket.gettimeout()
        with pytest.raises(errors.ServerException):
            client.execute("SELECT no_such_column")
        client.execute("SELECT 1")
        return first, client.connection.socket.gettimeout()

    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)]) as cluster:
        assert cluster.any_host(fails_and_continues).result() == (MAX_CALL_SECONDS, MAX_CALL_SECONDS)


# Connections


def test_connections_are_reused_and_limited(breakable_proxy: BreakableProxy) -> None:
    host = Host("127.0.0.1", breakable_proxy.port)
    with ClickhouseCluster([host], connections_per_host=2) as cluster:
        futures = [cluster.any_host(Query("SELECT sleep(0.05)")) for _ in range(8)]
        assert [future.result() for future in futures] == [[(0,)]] * 8
    assert breakable_proxy.connections <= 2


def test_an_idle_connection_that_broke_is_replaced(breakable_proxy: BreakableProxy) -> None:
    with ClickhouseCluster([Host("127.0.0.1", breakable_proxy.port)], policy=QUICK) as cluster:
        cluster.any_host(Query("SELECT 1")).result()
        breakable_proxy.break_connections()
        calls: list[object] = []
        cluster.any_host(lambda client: calls.append(client.execute("SELECT 2"))).result()
        assert calls == [[(2,)]]


def test_a_changed_database_does_not_reach_the_next_call(clickhouse_port: int) -> None:
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)]) as cluster:
        cluster.any_host(Query("USE system")).result()
        assert cluster.any_host(Query("SELECT currentDatabase()")).result() == [("default",)]


def test_an_unread_result_does_not_reach_the_next_call(clickhouse_port: int) -> None:
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)]) as cluster:
        cluster.any_host(lambda client: client.execute_iter("SELECT * FROM numbers(1000000)")).result()
        assert cluster.any_host(Query("SELECT 1")).result() == [(1,)]


def test_calls_on_one_host_run_at_the_same_time(clickhouse_port: int) -> None:
    together = threading.Barrier(3)
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], connections_per_host=3) as cluster:
        futures = [cluster.any_host(lambda _: together.wait(WAIT_SECONDS)) for _ in range(3)]
        assert sorted(future.result() for future in futures) == [0, 1, 2]


# Tags


def test_every_query_of_a_tagged_cluster_is_found_by_its_tags(cluster: ClickhouseCluster) -> None:
    run_id = uuid.uuid4().hex
    tagged = cluster.tagged(QueryTags(run_id=run_id, job="some_job", step="some_step", owner="team-clickhouse"))
    tagged.any_host(Query("SELECT 'seen'", settings={"max_threads": 1})).result()
    tagged.map_all_hosts(Query("SELECT 'seen'")).result()
    cluster.any_host(Query("SELECT 'not tagged'")).result()
    cluster.any_host(Query("SYSTEM FLUSH LOGS", retryable=True)).result()
    rows = cluster.any_host(
        Query(
            "SELECT query, log_comment FROM system.query_log "
            "WHERE type = 'QueryFinish' AND JSONExtractString(log_comment, 'run_id') = %(run_id)s",
            {"run_id": run_id},
        )
    ).result()
    assert [query for query, _ in rows] == ["SELECT 'seen'"] * 3
    assert json.loads(rows[0][1]) == {
        "job": "some_job",
        "owner": "team-clickhouse",
        "run_id": run_id,
        "step": "some_step",
    }


def test_tags_do_not_stay_on_a_shared_connection(clickhouse_port: int) -> None:
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], connections_per_host=1) as cluster:
        comment = Query("SELECT getSetting('log_comment')")
        assert cluster.tagged(QueryTags(run_id="r")).any_host(comment).result() == [('{"run_id": "r"}',)]
        assert cluster.any_host(comment).result() == [("",)]


# Closing


def test_closing_ends_the_calls_in_progress_and_refuses_new_ones(clickhouse_port: int) -> None:
    cluster = ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], connections_per_host=1)
    tagged = cluster.tagged(QueryTags(run_id="r"))
    running, waiting = tagged.any_host(Query(ENDLESS)), cluster.any_host(Query("SELECT 1"))
    cluster.close()
    for future in (running, waiting):
        with pytest.raises(ClusterClosedError):
            future.result(WAIT_SECONDS)
    with pytest.raises(ClusterClosedError):
        tagged.any_host(Query("SELECT 1"))


def test_a_waiting_call_can_be_cancelled(clickhouse_port: int) -> None:
    release = threading.Event()
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], connections_per_host=1) as cluster:
        first = cluster.any_host(lambda _: release.wait(WAIT_SECONDS))
        second = cluster.any_host(Query("SELECT 1"))
        assert second.cancel()
        release.set()
        assert first.result() is True
        assert cluster.any_host(Query("SELECT 2")).result() == [(2,)]


# Secrets


def test_the_password_is_in_no_error_and_no_text(clickhouse_port: int, caplog: pytest.LogCaptureFixture) -> None:
    password = "hunter2-secret"  # noqa: S105 - a test value
    access = Access(user="nobody", password=SecretStr(password))
    texts = [repr(access)]
    for port in (clickhouse_port, free_port()):
        with ClickhouseCluster([Host("127.0.0.1", port)], access, policy=QUICK) as cluster:
            texts.append(repr(cluster))
            with pytest.raises(ClusterError) as caught:
                cluster.map_all_hosts(Query("SELECT 1")).result()
            texts.append("".join(traceback.format_exception(caught.value)))
    assert "516" in texts[2]
    assert "210" in texts[4]
    assert password not in "".join(texts) + caplog.text
