import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from dags.common.clickhouse import dictionaries
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import Column, Dictionary
from dags.common.clickhouse.dictionaries import Checksum, DictionaryError, UnequalError, assert_equal_everywhere
from dags.common.clickhouse.errors import ClusterError
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.mutation_progress import wait
from dags.common.clickhouse.mutations import Mutation, enqueue, floor_time, update
from dags.common.clickhouse.query import Insert, Query

COLUMNS = ["team_id", "distinct_id", "person_id", "note"]
KEY = (Column("team_id", "Int64", "Team."), Column("distinct_id", "String", "Visitor."))
VALUES = (Column("person_id", "UUID", "Person."), Column("note", "Nullable(String)", "A note."))
DICTIONARY = dictionaries.snapshot_dictionary("people_dict", "people", KEY, VALUES, "People of this test.")
ROWS = [
    (number % 3, f"visitor {number}", uuid.UUID(int=number), None if number % 2 else "it's\n") for number in range(1000)
]
CREATE = """
CREATE TABLE people (team_id Int64, distinct_id String, person_id UUID, note Nullable(String))
ENGINE = MergeTree ORDER BY (team_id, distinct_id)
"""


@pytest.fixture
def cluster(clickhouse_cluster_ports: tuple[int, ...]) -> Iterator[ClickhouseCluster]:
    """Two nodes with an empty table `people` each, in a database of the test."""
    database = f"test_{uuid.uuid4().hex}"
    hosts = [Host("127.0.0.1", port, shard) for shard, port in enumerate(clickhouse_cluster_ports, 1)]
    with ClickhouseCluster(hosts) as bare:
        bare.map_all_hosts(Query(f"CREATE DATABASE {database}")).result()
        with ClickhouseCluster(hosts, Access(database=database)) as value:
            value.map_all_hosts(Query(CREATE)).result()
            yield value
        bare.map_all_hosts(Query(f"DROP DATABASE {database} SYNC")).result()


def fill(cluster: ClickhouseCluster, first: Any, second: Any) -> None:
    for host, rows in zip(cluster.hosts, (first, second), strict=True):
        cluster.only(host).any_host(Insert("people", COLUMNS, rows)).result()


def create_and_load(cluster: ClickhouseCluster) -> None:
    dictionaries.create(cluster, DICTIONARY)
    dictionaries.load(cluster, "people_dict", deadline_seconds=60)


def test_a_dictionary_equals_its_table_on_every_host_whatever_the_order_of_the_rows(cluster: ClickhouseCluster) -> None:
    fill(cluster, ROWS[:500], ROWS[::-1])
    cluster.only(cluster.hosts[0]).any_host(Insert("people", COLUMNS, ROWS[500:])).result()
    create_and_load(cluster)
    in_memory = dictionaries.checksum(cluster, "people_dict")
    in_tables = dictionaries.table_checksum(cluster, "people", COLUMNS)
    assert set(in_memory) == set(cluster.hosts)
    assert assert_equal_everywhere("people", in_memory, in_tables).rows == len(ROWS)


def test_a_dictionary_answers_for_its_keys(cluster: ClickhouseCluster) -> None:
    fill(cluster, ROWS, ROWS)
    create_and_load(cluster)
    name = f"{cluster.database}.people_dict"
    query = Query(
        "SELECT dictGet(%(name)s, 'person_id', tuple(2::Int64, 'visitor 2')), "
        "dictHas(%(name)s, tuple(1::Int64, 'visitor 2'))",
        {"name": name},
    )
    assert list(cluster.map_all_hosts(query).result().values()) == [[(uuid.UUID(int=2), 0)]] * 2


@pytest.mark.parametrize(
    "changed",
    [
        ROWS[1:],
        [*ROWS[1:], (0, "visitor 0", uuid.UUID(int=1), "it's\n")],
        [*ROWS[1:], (0, "visitor 0", uuid.UUID(int=0), None)],
        [*ROWS[1:], (0, "visitor 0", uuid.UUID(int=0), "")],
    ],
    ids=["a row less", "another value", "NULL for a text", "an empty text"],
)
def test_hosts_that_differ_in_anything_are_an_error_that_names_them_all(
    cluster: ClickhouseCluster, changed: list[Any]
) -> None:
    fill(cluster, ROWS, changed)
    create_and_load(cluster)
    for checksums in (
        dictionaries.checksum(cluster, "people_dict"),
        dictionaries.table_checksum(cluster, "people", COLUMNS),
    ):
        with pytest.raises(UnequalError, match="people must be the same on every host") as caught:
            assert_equal_everywhere("people", checksums)
        for host, rows in zip(cluster.hosts, (ROWS, changed), strict=True):
            assert f"- {host}: {len(rows)} rows, hash " in str(caught.value)


def test_rows_that_are_there_several_times_do_not_cancel_each_other(cluster: ClickhouseCluster) -> None:
    fill(cluster, [ROWS[0]] * 3, [ROWS[0], ROWS[1], ROWS[1]])
    with pytest.raises(UnequalError):
        assert_equal_everywhere("people", dictionaries.table_checksum(cluster, "people", COLUMNS))


def test_hosts_without_rows_are_equal_and_no_host_at_all_is_not(cluster: ClickhouseCluster) -> None:
    assert assert_equal_everywhere("people", dictionaries.table_checksum(cluster, "people", COLUMNS)) == Checksum(0, 0)
    with pytest.raises(UnequalError, match="no host"):
        assert_equal_everywhere("people", {})


def test_a_dictionary_does_not_change_with_its_table_until_it_is_reloaded(cluster: ClickhouseCluster) -> None:
    fill(cluster, ROWS[:5], ROWS[:5])
    create_and_load(cluster)
    fill(cluster, ROWS[5:], ROWS[5:])
    assert assert_equal_everywhere("people", dictionaries.checksum(cluster, "people_dict")).rows == 5
    dictionaries.load(cluster, "people_dict", deadline_seconds=60)
    assert assert_equal_everywhere("people", dictionaries.checksum(cluster, "people_dict")).rows == len(ROWS)


def test_a_dictionary_that_one_host_cannot_load_is_an_error_with_its_host_and_reason(
    cluster: ClickhouseCluster,
) -> None:
    dictionaries.create(cluster, DICTIONARY)
    # By default the server refuses to drop a table that a dictionary reads.
    drop = Query("DROP TABLE people SYNC", settings={"check_table_dependencies": 0})
    cluster.only(cluster.hosts[1]).any_host(drop).result()
    with pytest.raises(DictionaryError, match="people_dict is not loaded on 1 of 2 ClickHouse hosts") as caught:
        dictionaries.load(cluster, "people_dict", deadline_seconds=60)
    assert f"- {cluster.hosts[1]}: ServerException: Code: 60." in str(caught.value)
    assert f"- {cluster.hosts[0]}" not in str(caught.value)


def test_a_dictionary_that_takes_too_long_is_an_error(cluster: ClickhouseCluster) -> None:
    slow = Dictionary(
        name="slow_dict",
        comment="Takes a minute to load.",
        columns=(Column("k", "UInt64", "Key."), Column("v", "UInt8", "Value.")),
        primary_key=("k",),
        source_query="SELECT number AS k, sleepEachRow(1) AS v FROM numbers(60) SETTINGS max_block_size = 1",
        layout="HASHED()",
        lifetime_seconds=(0, 0),
    )
    dictionaries.create(cluster, slow)
    with pytest.raises(DictionaryError, match="CallTimeoutError"):
        dictionaries.load(cluster, "slow_dict", deadline_seconds=0.5)


def test_a_checksum_needs_the_dictionary_on_every_host(cluster: ClickhouseCluster) -> None:
    fill(cluster, ROWS, ROWS)
    create_and_load(cluster)
    cluster.only(cluster.hosts[1]).any_host(Query("DROP DICTIONARY people_dict SYNC")).result()
    with pytest.raises(ClusterError, match=f"- {cluster.hosts[1]}: LookupError: There is no dictionary people_dict"):
        dictionaries.checksum(cluster, "people_dict")


def test_a_mutation_rewrites_what_the_dictionary_says(cluster: ClickhouseCluster) -> None:
    fill(cluster, ROWS, ROWS)
    create_and_load(cluster)
    events = (
        "CREATE TABLE events (team_id Int64, distinct_id String, person_id UUID) ENGINE = MergeTree ORDER BY team_id"
    )
    cluster.map_all_hosts(Query(events)).result()
    rows = [(2, "visitor 2", uuid.UUID(int=77)), (1, "visitor 2", uuid.UUID(int=77))]
    cluster.map_all_hosts(Insert("events", ["team_id", "distinct_id", "person_id"], rows)).result()
    parameters = {"dictionary": f"{cluster.database}.people_dict"}
    key = "(team_id, distinct_id)"
    command = update(
        {"person_id": f"dictGet(%(dictionary)s, 'person_id', {key})"},
        f"dictHas(%(dictionary)s, {key}) AND person_id != dictGet(%(dictionary)s, 'person_id', {key})",
        parameters,
    )
    mutations = dict.fromkeys(cluster.shards, Mutation("events", [command]))
    wait(cluster, enqueue(cluster, mutations, not_before=floor_time(cluster)), deadline_seconds=60)
    found = cluster.map_all_hosts(Query("SELECT team_id, person_id FROM events ORDER BY 1")).result()
    assert list(found.values()) == [[(1, uuid.UUID(int=77)), (2, uuid.UUID(int=2))]] * 2
