import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Insert, Query, quoted


@pytest.mark.parametrize("statement", ["SELECT 1", "\n  select 1", "SHOW TABLES", "DESCRIBE x", "EXPLAIN SELECT 1"])
def test_a_statement_that_reads_may_be_sent_twice(statement: str) -> None:
    assert Query(statement).retryable


@pytest.mark.parametrize(
    "statement", ["INSERT INTO t SELECT 1", "WITH 1 AS x INSERT INTO t SELECT x", "DROP TABLE t", "SELECTED"]
)
def test_any_other_statement_may_be_sent_twice_only_if_the_caller_says_so(statement: str) -> None:
    assert not Query(statement).retryable
    assert Query(statement, retryable=True).retryable


def test_an_insert_may_be_sent_twice_only_with_a_token() -> None:
    assert not Insert("t", ["a"], [(1,)]).retryable
    assert Insert("t", ["a"], [(1,)], deduplication_token="x").retryable  # noqa: S106 - no secret


@pytest.mark.parametrize("identifier", ["a b", "a`", "a;b", "", "1a", "a..b", "t; DROP TABLE t"])
def test_a_text_that_is_not_an_identifier_is_refused(identifier: str) -> None:
    with pytest.raises(ValueError, match="is not an identifier"):
        quoted(identifier)


def test_parameters_are_values_and_never_sql(clickhouse_port: int) -> None:
    nasty = "'; DROP TABLE x -- \\ %(a)s"
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)]) as cluster:
        assert cluster.any_host(Query("SELECT %(text)s", {"text": nasty})).result() == [(nasty,)]


def test_an_insert_sent_twice_with_one_token_is_stored_once(clickhouse_port: int, clickhouse_database: str) -> None:
    access = Access(database=clickhouse_database)
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], access) as cluster:
        cluster.any_host(
            Query(
                "CREATE TABLE t (a UInt8, b String) ENGINE = MergeTree ORDER BY a "
                "SETTINGS non_replicated_deduplication_window = 10"
            )
        ).result()
        insert = Insert("t", ["a", "b"], [(1, "x"), (2, "y")], deduplication_token="one")  # noqa: S106 - no secret
        assert [cluster.any_host(insert).result() for _ in range(2)] == [2, 2]
        assert cluster.any_host(Query("SELECT count() FROM t")).result() == [(2,)]


def test_the_rows_of_an_insert_are_not_in_its_text() -> None:
    assert "secret" not in repr(Insert("t", ["a"], [("secret",)]))
