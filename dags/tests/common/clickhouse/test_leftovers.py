from collections.abc import Iterator

import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.leftovers import drop_leftovers
from dags.common.clickhouse.query import Query

DICTIONARY = """
CREATE DICTIONARY run_z_dict (k UInt64, v UInt8) PRIMARY KEY k
SOURCE(CLICKHOUSE(TABLE 'run_a' DB '{database}')) LAYOUT(HASHED()) LIFETIME(0)
"""
STATEMENTS = (
    "CREATE TABLE run_a (k UInt64, v UInt8) ENGINE = MergeTree ORDER BY k",
    "CREATE TABLE run_b (k UInt64) ENGINE = MergeTree ORDER BY k",
    "CREATE TABLE other (k UInt64) ENGINE = MergeTree ORDER BY k",
    DICTIONARY,
)


@pytest.fixture
def cluster(clickhouse_port: int, clickhouse_database: str) -> Iterator[ClickhouseCluster]:
    """A node with the tables `run_a`, `run_b` and `other`, and a dictionary that reads `run_a`."""
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database)) as value:
        for statement in STATEMENTS:
            value.any_host(Query(statement.format(database=clickhouse_database))).result()
        yield value


def names(cluster: ClickhouseCluster) -> list[str]:
    return [name for (name,) in cluster.any_host(Query("SHOW TABLES")).result()]


@pytest.mark.parametrize("sync", [True, False])
def test_a_dictionary_is_dropped_before_its_table_and_other_tables_stay(cluster: ClickhouseCluster, sync: bool) -> None:  # noqa: FBT001 - pytest passes it
    assert drop_leftovers(cluster, "run_", sync=sync) == ["run_a", "run_b", "run_z_dict"]
    assert names(cluster) == ["other"]
    assert drop_leftovers(cluster, "run_", sync=sync) == []


def test_only_accepted_leftovers_are_dropped(cluster: ClickhouseCluster) -> None:
    assert drop_leftovers(cluster, "run_", lambda leftover: leftover.age_seconds > 3600) == []
    assert drop_leftovers(cluster, "run_", lambda leftover: leftover.is_dictionary) == ["run_z_dict"]
    assert names(cluster) == ["other", "run_a", "run_b"]
