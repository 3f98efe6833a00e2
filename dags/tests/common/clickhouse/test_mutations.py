import datetime as dt
import itertools
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import ClusterError, UnknownShardError
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.mutation_progress import (
    Enqueued,
    MutationFailingError,
    MutationKilledError,
    MutationNotFoundError,
    MutationState,
    MutationTimeoutError,
    Progress,
    _gone,
    is_transient_failure,
    wait,
)
from dags.common.clickhouse.mutations import (
    Capacity,
    CapacityError,
    ClockSkewError,
    Mutation,
    delete,
    enqueue,
    enqueue_on_all_hosts,
    floor_time,
    update,
)
from dags.common.clickhouse.query import Insert, Query, Rows
from dags.common.clickhouse.retry import RetryPolicy
from dags.tests.common.clickhouse.conftest import BreakableProxy
from dags.tests.common.clickhouse.faulty_proxy import END, Fault, FaultyProxy
from dags.tests.local.clickhouse.nodes import running_node

QUICK = RetryPolicy(attempts=3, first_wait_seconds=0.01, max_wait_seconds=0.02)
WAIT_SECONDS = 60.0
LONG_AGO = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
CREATE = """
CREATE TABLE t (k UInt64, v String, big String, month UInt32) ENGINE = MergeTree PARTITION BY month ORDER BY k
SETTINGS min_bytes_for_wide_part = 0, min_rows_for_wide_part = 0, enable_block_number_column = 1,
    enable_block_offset_column = 1
"""
ROWS = [(k, "x", "", 202601 + k % 2) for k in range(100)]
SET_Y = Mutation("t", [update({"v": "'y'"}, "k < 10")])


@pytest.fixture
def cluster(clickhouse_cluster_ports: tuple[int, ...]) -> Iterator[ClickhouseCluster]:
    """Two shards with a table `t` each; the first one has a second address, as if it were a replica."""
    first, second = clickhouse_cluster_ports
    database = f"test_{uuid.uuid4().hex}"
    hosts = [Host("127.0.0.1", first, 1, 1), Host("localhost", first, 1, 2), Host("127.0.0.1", second, 2, 1)]
    nodes = [hosts[0], hosts[2]]
    with ClickhouseCluster(hosts, policy=QUICK) as bare:
        for node in nodes:
            bare.only(node).any_host(Query(f"CREATE DATABASE {database}")).result()
        with ClickhouseCluster(hosts, Access(database=database), policy=QUICK) as value:
            on_each_node(value, Query(CREATE))
            on_each_node(value, Insert("t", ["k", "v", "big", "month"], ROWS))
            yield value
        for node in nodes:
            bare.only(node).any_host(Query(f"DROP DATABASE {database} SYNC")).result()


def on_each_node(cluster: ClickhouseCluster, call: Any) -> list[Any]:
    return list(cluster.map_one_host_per_shard(call).result().values())


def rows_of(cluster: ClickhouseCluster, statement: str) -> list[Rows]:
    return on_each_node(cluster, Query(statement))


def mutation_ids(cluster: ClickhouseCluster) -> list[list[str]]:
    listed = rows_of(
        cluster, "SELECT DISTINCT mutation_id FROM system.mutations WHERE database = currentDatabase() ORDER BY 1"
    )
    return [[id_ for (id_,) in rows] for rows in listed]


def on_shards(mutation: Mutation) -> dict[int, Mutation]:
    return {1: mutation, 2: mutation}


def kill(cluster: ClickhouseCluster, enqueued: Enqueued) -> None:
    statement = "KILL MUTATION WHERE database = currentDatabase() AND table = %(table)s AND mutation_id = %(id)s"
    for mutation in enqueued.mutations:
        query = Query(statement, {"table": mutation.table, "id": mutation.id})
        cluster.among(mutation.hosts).any_host(query).result()


def wait_for(cluster: ClickhouseCluster, enqueued: Enqueued) -> None:
    wait(cluster, enqueued, deadline_seconds=WAIT_SECONDS)


@pytest.fixture
def stopped(cluster: ClickhouseCluster) -> Iterator[Callable[[], None]]:
    """Stop all rewriting until the function that this returns is called."""
    on_each_node(cluster, Query("SYSTEM STOP MERGES t"))

    def start() -> None:
        on_each_node(cluster, Query("SYSTEM START MERGES t"))

    yield start
    on_each_node(cluster, Query("DROP TABLE IF EXISTS t SYNC"))


# Running


def test_several_commands_are_done_in_the_partitions_named_and_nowhere_else(cluster: ClickhouseCluster) -> None:
    commands = [
        update({"v": "concat(v, %(suffix)s)"}, "k < %(n)s OR k = 99", {"suffix": "it's\\ 100%\n", "n": 4}),
        delete("k IN %(ks)s", {"ks": (20, 30, 31)}),
    ]
    enqueued = enqueue(cluster, on_shards(Mutation("t", commands, ["202601"])), not_before=LONG_AGO)
    wait_for(cluster, enqueued)
    for rows in rows_of(cluster, "SELECT k, v FROM t ORDER BY k"):
        # Odd keys are in the other partition.
        assert dict(rows) == {k: "xit's\\ 100%\n" if k in {0, 2} else "x" for k in range(100) if k not in {20, 30}}


def test_a_mutation_of_several_partitions_is_one_mutation(cluster: ClickhouseCluster) -> None:
    mutation = Mutation("t", [update({"v": "'y'"}, "k < 4"), delete("k = 5")], ["202601", "202602"])
    wait_for(cluster, enqueue(cluster, on_shards(mutation), not_before=LONG_AGO))
    assert [len(ids) for ids in mutation_ids(cluster)] == [1, 1]
    assert rows_of(cluster, "SELECT countIf(v = 'y'), count() FROM t") == [[(4, 99)]] * 2


def test_shards_may_have_different_mutations_and_a_shard_without_one_is_left_alone(cluster: ClickhouseCluster) -> None:
    wait_for(cluster, enqueue(cluster, {2: SET_Y}, not_before=LONG_AGO))
    assert rows_of(cluster, "SELECT countIf(v = 'y') FROM t") == [[(0,)], [(10,)]]


def test_a_table_that_every_host_has_is_rewritten_on_every_host(cluster: ClickhouseCluster) -> None:
    wait_for(cluster, enqueue_on_all_hosts(cluster, SET_Y, not_before=LONG_AGO))
    assert rows_of(cluster, "SELECT countIf(v = 'y') FROM t") == [[(10,)], [(10,)]]
    assert [len(ids) for ids in mutation_ids(cluster)] == [1, 1]


def test_nothing_to_do_enqueues_nothing(cluster: ClickhouseCluster) -> None:
    enqueued = enqueue(cluster, {}, not_before=LONG_AGO)
    assert enqueued.mutations == ()
    wait_for(cluster, enqueued)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mutation("t", []), "at least one command"),
        (lambda: Mutation("t", [delete("1")], []), "None means all"),
        (lambda: Mutation("t", [delete("1")], ["2026' OR 1"]), "not a partition_id"),
        (lambda: Mutation("t; DROP", [delete("1")]), "'t; DROP' is not an identifier"),
        (lambda: update({}, "1"), "at least one column"),
        (lambda: update({"a b": "1"}, "1"), "'a b' is not an identifier"),
    ],
)
def test_a_malformed_mutation_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Adopting


def test_an_identical_mutation_of_this_run_is_adopted_on_both_addresses_of_a_server(cluster: ClickhouseCluster) -> None:
    floor = floor_time(cluster)
    first = enqueue(cluster, on_shards(SET_Y), not_before=floor)
    assert [one.is_adopted for one in first.mutations] == [False, False]
    assert set(first.ids) == set(map(str, cluster.hosts))
    wait_for(cluster, first)
    again = enqueue(cluster, on_shards(SET_Y), not_before=floor)
    assert [one.is_adopted for one in again.mutations] == [True, True]
    assert again.ids == first.ids
    assert [len(ids) for ids in mutation_ids(cluster)] == [1, 1]


def test_an_identical_mutation_from_before_the_run_is_never_adopted(cluster: ClickhouseCluster) -> None:
    old = enqueue(cluster, on_shards(SET_Y), not_before=floor_time(cluster))
    wait_for(cluster, old)
    new = enqueue(cluster, on_shards(SET_Y), not_before=floor_time(cluster))
    assert [one.is_adopted for one in new.mutations] == [False, False]
    assert not set(new.ids.items()) & set(old.ids.items())


def test_only_a_shard_without_the_mutation_gets_it(cluster: ClickhouseCluster) -> None:
    enqueue(cluster, {1: SET_Y}, not_before=LONG_AGO)
    both = enqueue(cluster, on_shards(SET_Y), not_before=LONG_AGO)
    assert {one.hosts[0].shard: one.is_adopted for one in both.mutations} == {1: True, 2: False}


@pytest.mark.parametrize(
    "other",
    [
        Mutation("t", [update({"v": "'z'"}, "k < 10")]),
        Mutation("t", [update({"v": "'y'"}, "k < 10")], ["202601"]),
        Mutation("t", [update({"v": "'y'"}, "k < 10"), delete("k = 1")]),
        Mutation("t", [delete("k < 10")]),
    ],
    ids=["value", "partition", "one command more", "another command"],
)
def test_a_mutation_that_differs_in_anything_is_another(cluster: ClickhouseCluster, other: Mutation) -> None:
    enqueue(cluster, {1: SET_Y}, not_before=LONG_AGO)
    (enqueued,) = enqueue(cluster, {1: other}, not_before=LONG_AGO).mutations
    assert not enqueued.is_adopted


def test_a_mutation_is_found_whatever_the_formatting_of_its_text(cluster: ClickhouseCluster) -> None:
    statement = "alter table t  update v='y' where (k<10)"
    cluster.only(cluster.hosts[0]).any_host(Query(statement)).result()
    (enqueued,) = enqueue(cluster, {1: SET_Y}, not_before=LONG_AGO).mutations
    assert enqueued.is_adopted


def test_the_mutation_of_a_process_that_was_killed_before_it_could_report_its_id_is_found(
    cluster: ClickhouseCluster,
) -> None:
    floor = floor_time(cluster)
    script = f"""
import datetime, os, signal
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.mutations import Mutation, enqueue, update
with ClickhouseCluster([Host("127.0.0.1", {cluster.hosts[0].port})], Access(database="{cluster.database}")) as cluster:
    mutation = Mutation("t", [update({{"v": "'y'"}}, "k < 10")])
    enqueue(cluster, {{1: mutation}}, not_before=datetime.datetime.fromisoformat("{floor.isoformat()}"))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    project = Path(__file__).parents[4]
    killed = subprocess.run([sys.executable, "-c", script], cwd=project, timeout=WAIT_SECONDS, check=False)
    assert killed.returncode == -signal.SIGKILL
    (enqueued,) = enqueue(cluster, {1: SET_Y}, not_before=floor).mutations
    assert enqueued.is_adopted


def test_at_whatever_byte_the_connection_ends_the_mutation_is_there_and_its_id_known(
    cluster: ClickhouseCluster, stopped: Callable[[], None]
) -> None:
    def enqueue_through(number: int, byte: int | None) -> int:
        # The first two connections end at that byte, one after the other; then the others work.
        proxy = FaultyProxy(
            cluster.hosts[0].port, lambda count: [Fault(END, byte)] if byte is not None and count < 2 else []
        )
        host = Host("127.0.0.1", proxy.port)
        with ClickhouseCluster([host], Access(database=cluster.database), policy=QUICK) as through:
            mutation = Mutation("t", [update({"v": f"'{number}'"}, f"k = {number}")])
            capacity = Capacity(max_unfinished_mutations=1000)
            (enqueued,) = enqueue(through, {1: mutation}, not_before=LONG_AGO, capacity=capacity).mutations
        proxy.close()
        assert enqueued.id in mutation_ids(cluster)[0]
        return proxy.passed_bytes()

    conversation = enqueue_through(0, None)
    for number, byte in enumerate(range(0, conversation, conversation // 25), 1):
        enqueue_through(number, byte)
    stopped()


def test_the_floor_time_is_a_whole_second_that_every_server_has_reached(
    cluster: ClickhouseCluster,
) -> None:
    floor = floor_time(cluster)
    assert floor.microsecond == 0
    assert rows_of(cluster, f"SELECT now() >= toDateTime({floor.timestamp():.0f})") == [[(1,)]] * 2


def test_a_host_whose_clock_is_too_far_behind_is_named(cluster: ClickhouseCluster) -> None:
    with pytest.raises(ClockSkewError, match=r"clock of ClickHouse host \S+:\d+ is .* seconds behind.*NTP"):
        floor_time(cluster, timeout_seconds=1e-9)


def test_a_floor_without_a_time_zone_is_refused(cluster: ClickhouseCluster) -> None:
    with pytest.raises(ValueError, match="time zone"):
        enqueue(cluster, {1: SET_Y}, not_before=LONG_AGO.replace(tzinfo=None))


def test_a_missing_shard_and_a_missing_table_are_named(cluster: ClickhouseCluster) -> None:
    with pytest.raises(UnknownShardError, match="no shard 7, only: 1, 2"):
        enqueue(cluster, {1: SET_Y, 7: SET_Y}, not_before=LONG_AGO)
    with pytest.raises(LookupError, match=r"127\.0\.0\.1:\d+ has no table missing in database test_"):
        enqueue(cluster, {1: Mutation("missing", [delete("1")])}, not_before=LONG_AGO)
    assert mutation_ids(cluster) == [[], []]


def test_nothing_is_enqueued_if_a_server_with_rows_of_its_own_is_unreachable(
    cluster: ClickhouseCluster,
) -> None:
    proxy = BreakableProxy(cluster.hosts[0].port)
    proxy.close()
    hosts = [*cluster.hosts, Host("127.0.0.1", proxy.port, 2, 2)]
    access = Access(database=cluster.database)
    with ClickhouseCluster(hosts, access, policy=QUICK) as larger, pytest.raises(ClusterError, match=str(proxy.port)):
        enqueue(larger, on_shards(SET_Y), not_before=LONG_AGO)
    assert mutation_ids(cluster) == [[], []]


# Capacity


@pytest.mark.usefixtures("stopped")
def test_where_too_many_mutations_are_unfinished_nothing_is_enqueued_anywhere(cluster: ClickhouseCluster) -> None:
    capacity = Capacity(max_unfinished_mutations=1)
    kept = enqueue(cluster, {2: SET_Y}, not_before=LONG_AGO, capacity=capacity)
    another = Mutation("t", [delete("k = 1")])
    with pytest.raises(CapacityError, match=r":\d+: t has 1 unfinished mutations, and may have at most 1") as caught:
        enqueue(cluster, on_shards(another), not_before=LONG_AGO, capacity=capacity)
    assert f":{cluster.hosts[0].port}:" not in str(caught.value)
    assert mutation_ids(cluster) == [[], [kept.mutations[0].id]]
    # What is there already needs no capacity.
    assert enqueue(cluster, {2: SET_Y}, not_before=LONG_AGO, capacity=capacity).ids == kept.ids


def test_where_the_disk_is_too_small_nothing_is_enqueued_and_only_what_is_rewritten_counts(
    cluster: ClickhouseCluster,
) -> None:
    rows_of(cluster, "INSERT INTO t SELECT number, 'x', randomString(1000), 202603 FROM numbers(2000)")
    ((size,),), _ = rows_of(
        cluster, "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()"
    )
    ((free,),) = rows_of(cluster, "SELECT unreserved_space FROM system.disks WHERE name = 'default'")[0]
    capacity = Capacity(free_space_factor=free / size * 3)
    with pytest.raises(CapacityError, match=r"rewriting t may need \d+ bytes, and \d+ are free on default"):
        enqueue(cluster, {1: Mutation("t", [delete("k = 1")])}, not_before=LONG_AGO, capacity=capacity)
    assert mutation_ids(cluster) == [[], []]
    for one in (SET_Y, Mutation("t", [delete("k = 1")], ["202601"])):
        assert enqueue(cluster, {1: one}, not_before=LONG_AGO, capacity=capacity).mutations


# Waiting


def test_progress_is_reported_from_parts_to_do_to_done(cluster: ClickhouseCluster, stopped: Callable[[], None]) -> None:
    reported: list[list[Progress]] = []

    def on_progress(progress: Any) -> None:
        reported.append(list(progress))
        stopped()

    enqueued = enqueue(cluster, on_shards(SET_Y), not_before=LONG_AGO)
    assert wait(cluster, enqueued, deadline_seconds=WAIT_SECONDS, on_progress=on_progress) == ()
    assert {one.host for one in reported[0]} == set(cluster.hosts)
    assert {(one.state, one.parts_to_do) for one in reported[0]} == {(MutationState.RUNNING, 2)}
    assert {(one.state, one.parts_to_do) for one in reported[-1]} == {(MutationState.DONE, 0)}
    assert all(before != after for before, after in itertools.pairwise(reported))


def test_a_mutation_that_is_not_done_in_time_continues_and_can_be_waited_for_again(
    cluster: ClickhouseCluster, stopped: Callable[[], None]
) -> None:
    enqueued = enqueue(cluster, on_shards(SET_Y), not_before=LONG_AGO)
    with pytest.raises(MutationTimeoutError, match=r"within 0\.2 seconds") as caught:
        wait(cluster, enqueued, deadline_seconds=0.2)
    for host in cluster.hosts:
        assert f"- {host}: {enqueued.ids[str(host)]} of t is still in progress, 2 parts to do" in str(caught.value)
    stopped()
    wait_for(cluster, enqueued)
    assert rows_of(cluster, "SELECT countIf(v = 'y') FROM t") == [[(10,)], [(10,)]]


@pytest.mark.usefixtures("stopped")
def test_a_mutation_that_is_killed_is_an_error_at_once(cluster: ClickhouseCluster) -> None:
    enqueued = enqueue(cluster, on_shards(SET_Y), not_before=LONG_AGO)
    seen = threading.Event()

    def kill_the_second() -> None:
        seen.wait(WAIT_SECONDS)
        kill(cluster, Enqueued(enqueued.mutations[1:]))

    killer = threading.Thread(target=kill_the_second)
    killer.start()
    with pytest.raises(MutationKilledError) as caught:
        wait(
            cluster,
            enqueued,
            deadline_seconds=WAIT_SECONDS,
            on_progress=lambda _: seen.set(),
        )
    killer.join(WAIT_SECONDS)
    assert f"- {cluster.hosts[2]}: {enqueued.ids[str(cluster.hosts[2])]} of t is killed" in str(caught.value)
    assert {one.host.shard: one.state for one in caught.value.progress} == {
        1: MutationState.RUNNING,
        2: MutationState.KILLED,
    }


def test_a_mutation_that_fails_is_an_error_with_the_servers_reason_and_once_killed_blocks_no_other(
    cluster: ClickhouseCluster,
) -> None:
    failing = Mutation("t", [delete("throwIf(k = 17, 'seventeen is wrong') > 0")])
    enqueued = enqueue(cluster, {1: failing}, not_before=LONG_AGO)
    with pytest.raises(MutationFailingError, match="seventeen is wrong") as caught:
        wait_for(cluster, enqueued)
    assert str(cluster.hosts[0]) in str(caught.value)
    kill(cluster, enqueued)
    wait_for(cluster, enqueue(cluster, on_shards(SET_Y), not_before=LONG_AGO))
    with pytest.raises(MutationKilledError):
        wait_for(cluster, enqueued)


def test_a_mutation_of_a_table_that_was_recreated_is_not_found(cluster: ClickhouseCluster) -> None:
    enqueued = enqueue(cluster, on_shards(SET_Y), not_before=LONG_AGO)
    on_each_node(cluster, Query("DROP TABLE t SYNC"))
    with pytest.raises(MutationNotFoundError, match="not found: the table was dropped"):
        wait_for(cluster, enqueued)
    on_each_node(cluster, Query(CREATE))
    on_each_node(cluster, Insert("t", ["k", "v", "big", "month"], ROWS))
    # The same commands get the same ids in the new table: that says nothing about the old table.
    again = enqueue(cluster, on_shards(SET_Y), not_before=LONG_AGO)
    wait_for(cluster, again)
    assert again.ids == enqueued.ids
    with pytest.raises(MutationNotFoundError, match="whether it was done is unknown"):
        wait_for(cluster, enqueued)


def test_an_unlisted_mutation_was_killed_unless_the_list_may_have_dropped_it() -> None:
    assert _gone("mutation_5.txt", [], 100)[0] is MutationState.KILLED
    assert (
        _gone("mutation_5.txt", [f"mutation_{number}.txt" for number in range(6, 106)], 100)[0]
        is MutationState.NOT_FOUND
    )
    assert (
        _gone("mutation_50.txt", [f"mutation_{number}.txt" for number in range(49, 149)], 100)[0]
        is MutationState.KILLED
    )
    assert _gone("0000000005", [f"{number:010}" for number in range(6, 106)], 100)[0] is MutationState.NOT_FOUND


def test_a_failure_is_transient_as_the_table_of_retries_says() -> None:
    assert is_transient_failure("NETWORK_ERROR", "lost")
    assert is_transient_failure("MEMORY_LIMIT_EXCEEDED", "Memory limit (total) exceeded")
    assert not is_transient_failure("MEMORY_LIMIT_EXCEEDED", "Memory limit (for query) exceeded")
    assert not is_transient_failure("UNKNOWN_TABLE", "no such table")
    assert not is_transient_failure("", "of an old server")


# Hosts that do not answer


def test_a_replica_that_does_not_answer_is_reported_and_does_not_delay_the_others(
    cluster: ClickhouseCluster,
) -> None:
    proxy = BreakableProxy(cluster.hosts[0].port)
    hosts = [cluster.hosts[0], Host("127.0.0.1", proxy.port, 1, 2)]
    with ClickhouseCluster(hosts, Access(database=cluster.database), policy=QUICK) as replicas:
        enqueued = enqueue(replicas, {1: SET_Y}, not_before=LONG_AGO)
        assert set(enqueued.ids) == set(map(str, hosts))
        proxy.close()
        assert wait(replicas, enqueued, deadline_seconds=WAIT_SECONDS) == (hosts[1],)


def test_a_shard_of_which_no_host_answers_is_never_done(cluster: ClickhouseCluster) -> None:
    proxy = BreakableProxy(cluster.hosts[0].port)
    host = Host("127.0.0.1", proxy.port)
    with ClickhouseCluster([host], Access(database=cluster.database), policy=QUICK) as alone:
        enqueued = enqueue(alone, {1: SET_Y}, not_before=LONG_AGO)
        proxy.close()
        with pytest.raises(MutationTimeoutError, match=f"{host}: .* unknown, because the host does not answer"):
            wait(alone, enqueued, deadline_seconds=0.5)


def test_a_cluster_without_the_hosts_of_a_mutation_is_refused(cluster: ClickhouseCluster) -> None:
    enqueued = enqueue(cluster, {2: SET_Y}, not_before=LONG_AGO)
    with pytest.raises(LookupError, match="this cluster has no such host"):
        wait_for(cluster.among(cluster.hosts[:2]), enqueued)


def test_a_mutation_continues_after_its_node_was_killed_and_the_wait_finds_it_done(tmp_path: Path) -> None:
    with running_node(tmp_path / "node") as node:
        host = Host("127.0.0.1", node.port)
        with ClickhouseCluster([host], policy=QUICK) as cluster:
            for statement in (CREATE, "SYSTEM STOP MERGES t"):
                cluster.any_host(Query(statement)).result()
            cluster.any_host(Insert("t", ["k", "v", "big", "month"], ROWS)).result()
            floor = floor_time(cluster)
            enqueued = enqueue(cluster, {1: SET_Y}, not_before=floor)
            answers: list[MutationState] = []
            ended: list[object] = []

            def waiting() -> None:
                ended.append(
                    wait(
                        cluster,
                        enqueued,
                        deadline_seconds=WAIT_SECONDS,
                        on_progress=lambda progress: answers.extend(one.state for one in progress),
                    )
                )

            thread = threading.Thread(target=waiting)
            thread.start()
            until(lambda: MutationState.RUNNING in answers)
            node.kill()
            until(lambda: MutationState.UNREACHABLE in answers)
            # After the restart, merges run again.
            with running_node(tmp_path / "node", port=node.port):
                thread.join(WAIT_SECONDS)
                assert len(ended) == 1
                assert cluster.any_host(Query("SELECT countIf(v = 'y') FROM t")).result() == [(10,)]
                # Its id and its time are the same after the restart.
                assert enqueue(cluster, {1: SET_Y}, not_before=floor).ids == enqueued.ids


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
