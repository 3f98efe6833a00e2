"""Queries, settings and errors behave in clickhouse-driver as with a ClickHouse server."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from dags.tests.local.clickhouse.nodes import RunningNode, wait_until
from dags.tests.local.clickhouse.raw import CANCEL, RawClient

LONG_QUERY = "SELECT count() FROM numbers(1000000000000) WHERE NOT ignore(cityHash64(number))"


def code_of(client: Client, sql: str, *arguments: Any, **options: Any) -> int:
    """Return the code of the error that a statement raises."""
    with pytest.raises(ServerException) as caught:
        client.execute(sql, *arguments, **options)
    return int(caught.value.code)


def is_running(node: RunningNode, query_id: str) -> bool:
    return bool(node.query("SELECT 1 FROM system.processes WHERE query_id = %(id)s", {"id": query_id}))


@contextmanager
def long_query(node: RunningNode, query_id: str, sql: str = LONG_QUERY) -> Iterator[list[ServerException]]:
    """Run a query in a thread; its error is appended to the list."""
    outcome: list[ServerException] = []

    def run() -> None:
        try:
            node.query(sql, query_id=query_id)
        except ServerException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until("the query is in system.processes", lambda: is_running(node, query_id))
        yield outcome
    finally:
        node.query("KILL QUERY WHERE query_id = %(id)s", {"id": query_id})
        thread.join(20)
        assert not thread.is_alive()


# Settings


def test_a_setting_of_a_query_applies_to_that_query_only(client: Client) -> None:
    sql = "SELECT getSetting('max_threads'), getSetting('max_block_size')"
    [before] = client.execute(sql)
    assert client.execute(sql, settings={"max_threads": 3, "max_block_size": 77}) == [(3, 77)]
    assert client.execute(sql, settings={"max_threads": 4}) == [(4, before[1])]
    assert client.execute(sql) == [before]


def test_set_changes_the_connection_and_settings_of_a_query_override_it(client: Client, node: RunningNode) -> None:
    sql = "SELECT getSetting('max_block_size')"
    client.execute("SET max_block_size = 11", settings={"max_threads": 1})
    assert client.execute(sql) == [(11,)]
    assert client.execute(sql, settings={"max_block_size": 12}) == [(12,)]
    assert client.execute(sql) == [(11,)]
    assert node.query(sql) != [(11,)]
    client.execute("SET max_block_size = DEFAULT")
    assert client.execute(sql) == node.query(sql)


def test_a_setting_stays_after_a_query_that_failed(node: RunningNode) -> None:
    with RawClient(node.port) as raw:
        raw.send_query("SET max_threads = 5")
        raw.receive_until_end()
        raw.send_query("SELECT throwIf(1)", settings={"max_threads": "2"})
        assert raw.expect_exception().code == 395
        raw.send_query("SELECT throwIf(getSetting('max_threads') != 5)")
        assert raw.receive_until_end().rows == 1


def test_settings_of_the_client_apply_to_every_query(node: RunningNode) -> None:
    with node.client(settings={"max_block_size": 13}) as client:
        for _ in range(2):
            assert client.execute("SELECT getSetting('max_block_size')") == [(13,)]


@pytest.mark.parametrize("value", ["it's", "a\\b", "=', max_threads = 1 --", "", "世界"])
def test_a_settings_value_is_never_taken_for_sql(client: Client, value: str) -> None:
    assert client.execute("SELECT getSetting('log_comment')", settings={"log_comment": value}) == [(value,)]


def test_an_unknown_setting_is_ignored_unless_it_is_important(node: RunningNode) -> None:
    with node.client(settings={"no_such_setting": 1}) as client:
        assert client.execute("SELECT 1") == [(1,)]
    with node.client(settings={"no_such_setting": 1}, settings_is_important=True) as client:
        assert code_of(client, "SELECT 1") == 115
    assert code_of(client, "SET no_such_setting = 1") == 115


@pytest.mark.parametrize("readonly", ["1", "2"])
def test_a_read_only_query_leaves_the_connection_writable(node: RunningNode, readonly: str) -> None:
    with RawClient(node.port) as raw:
        raw.send_query("CREATE TEMPORARY TABLE forbidden (a Int8)", settings={"readonly": "1"})
        assert raw.expect_exception().code == 164
        raw.send_query("SELECT 1", settings={"readonly": readonly})
        assert raw.receive_until_end().rows == 1
        raw.send_query("CREATE TEMPORARY TABLE allowed (a Int8)", settings={"max_threads": "1"})
        raw.receive_until_end()


@pytest.mark.parametrize(
    "restrictive",
    [
        {"limit": "1"},
        {"max_result_rows": "1"},
        {"max_rows_to_read": "1"},
        {"max_columns_to_read": "1"},
        {"offset": "1"},
    ],
)
def test_a_restrictive_setting_leaves_the_connection_unchanged(node: RunningNode, restrictive: dict[str, str]) -> None:
    with RawClient(node.port) as raw:
        raw.send_query("SET max_threads = 5, max_block_size = 55, max_insert_threads = 2")
        raw.receive_until_end()
        raw.send_query("SELECT 1", settings=restrictive)
        raw.receive_until_end()
        changed = {"max_threads": "1", "max_block_size": "10", "max_insert_threads": "1"}
        raw.send_query("SELECT 1", settings=restrictive | changed)
        raw.receive_until_end()
        raw.send_query(
            "SELECT throwIf((getSetting('max_threads'), getSetting('max_block_size'), getSetting('max_insert_threads'))"
            " != (5, 55, 2)) FROM numbers(3)"
        )
        assert raw.receive_until_end().rows == 3


def test_limits_of_time_and_memory_end_a_query(client: Client) -> None:
    assert code_of(client, LONG_QUERY, settings={"max_execution_time": 1}) == 159
    assert (
        code_of(client, "SELECT groupArray(number) FROM numbers(100000000)", settings={"max_memory_usage": 10**7})
        == 241
    )


# Databases and tables of a connection


def test_use_and_the_clients_database_choose_where_names_are_looked_up(
    client: Client, node: RunningNode, database: str
) -> None:
    assert client.execute("SELECT currentDatabase()") == [(database,)]
    client.execute("USE system")
    assert client.execute("SELECT currentDatabase()") == [("system",)]
    assert node.query("SELECT currentDatabase()") == [("default",)]
    assert code_of(client, "USE `no such`") == 81


def test_a_database_with_an_unusual_name_can_be_the_clients_database(node: RunningNode) -> None:
    name = f"odd `'\" {uuid4().hex}"
    quoted = "`" + name.replace("`", "\\`") + "`"
    node.query(f"CREATE DATABASE {quoted}")
    try:
        with node.client(database=name) as client:
            assert client.execute("SELECT currentDatabase()") == [(name,)]
    finally:
        node.query(f"DROP DATABASE {quoted}")


def test_an_unknown_database_or_user_is_an_error_when_connecting(node: RunningNode) -> None:
    with node.client(database="nowhere") as client:
        assert code_of(client, "SELECT 1") == 81
    with node.client(user="unknown") as client:
        assert code_of(client, "SELECT 1") == 516


def test_temporary_tables_belong_to_one_connection(client: Client, node: RunningNode) -> None:
    client.execute("CREATE TEMPORARY TABLE mine (a Int8)")
    client.execute("INSERT INTO mine VALUES", [(1,)])
    assert client.execute("SELECT * FROM mine") == [(1,)]
    with node.client() as other:
        assert code_of(other, "SELECT * FROM mine") == 60
    client.disconnect()
    assert code_of(client, "SELECT * FROM mine") == 60


def test_external_tables_last_for_one_query(client: Client) -> None:
    tables = [
        {
            "name": "first",
            "structure": [("a", "Int32"), ("b", "String")],
            "data": [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}],
        },
        {"name": "second", "structure": [("a", "Int32")], "data": [{"a": 2}]},
        {"name": "none", "structure": [("a", "Int32")], "data": []},
    ]
    for _ in range(2):
        rows = client.execute(
            "SELECT b, (SELECT count() FROM none) FROM first JOIN second USING a", external_tables=tables
        )
        assert rows == [("y", 0)]
    assert code_of(client, "SELECT * FROM first") == 60


# Queries and their ids


def test_a_running_query_is_visible_under_the_id_that_its_client_chose(node: RunningNode) -> None:
    query_id = f"chosen by client {uuid4()}"
    with long_query(node, query_id) as outcome:
        with node.client() as second:
            assert code_of(second, "SELECT 1", query_id=query_id) == 216
        node.query("KILL QUERY WHERE query_id = %(id)s", {"id": query_id})
        wait_until("the killed query has ended", lambda: outcome)
        assert outcome[0].code == 394
        wait_until("the query is gone from system.processes", lambda: not is_running(node, query_id), 2)
    assert node.query("SELECT 1", query_id=query_id) == [(1,)]


def test_the_query_log_knows_ids_and_comments(client: Client) -> None:
    query_id, comment = str(uuid4()), json.dumps({"run": "it's", "n": 1})
    assert client.execute("SELECT 42", query_id=query_id, settings={"log_comment": comment}) == [(42,)]
    assert (
        code_of(client, "SELECT throwIf(1, 'on purpose')", query_id=query_id + "x", settings={"log_comment": comment})
        == 395
    )
    client.execute("SYSTEM FLUSH LOGS")
    rows = client.execute(
        "SELECT query_id, type, query, exception_code FROM system.query_log WHERE log_comment = %(comment)s AND "
        "type != 'QueryStart' ORDER BY query_id",
        {"comment": comment},
    )
    assert rows == [
        (query_id, "QueryFinish", "SELECT 42", 0),
        (query_id + "x", "ExceptionWhileProcessing", "SELECT throwIf(1, 'on purpose')", 395),
    ]


def test_a_cancelled_stream_ends_and_the_connection_stays_usable(client: Client, node: RunningNode) -> None:
    query_id = str(uuid4())
    rows = client.execute_iter("SELECT number FROM numbers(1000000000000)", query_id=query_id)
    assert next(rows) == (0,)
    client.cancel()
    assert client.execute("SELECT 1") == [(1,)]
    wait_until("the cancelled query is gone", lambda: not is_running(node, query_id), 2)


def test_a_cancelled_aggregation_ends_and_the_connection_stays_usable(node: RunningNode) -> None:
    query_id = str(uuid4())
    with RawClient(node.port) as raw:
        raw.send_query(LONG_QUERY, query_id=query_id)
        wait_until("the query runs", lambda: is_running(node, query_id))
        raw.send(CANCEL)
        assert raw.receive_until_end().rows == 0
        wait_until("the cancelled query is gone", lambda: not is_running(node, query_id), 2)
        raw.ping()
        raw.send_query("SELECT 1")
        assert raw.receive_until_end().rows == 1


def test_a_late_cancel_does_not_stop_the_next_query(node: RunningNode) -> None:
    with RawClient(node.port) as raw:
        for _ in range(50):
            raw.send_query("SELECT number FROM numbers(10)")
            assert raw.receive_until_end().rows == 10
            raw.send(CANCEL)


def test_queries_of_different_connections_run_at_the_same_time(node: RunningNode) -> None:
    with long_query(node, str(uuid4())), long_query(node, str(uuid4())):
        assert node.query("SELECT 1") == [(1,)]


# Results


def test_progress_and_profile_report_what_was_read(client: Client) -> None:
    progress = client.execute_with_progress("SELECT number FROM numbers(3000000) WHERE number % 1000 = 0")
    assert all(len(step) == 2 for step in progress)
    assert len(progress.get_result()) == 3000
    assert client.last_query.progress.rows == 3_000_000
    assert client.last_query.profile_info.rows == 3000


def test_an_insert_reports_how_many_rows_were_written(client: Client) -> None:
    client.execute("CREATE TABLE counted (a Int8) ENGINE = Memory")
    assert client.execute("INSERT INTO counted VALUES", [(1,), (2,)]) == 2
    assert client.execute("SELECT count() FROM counted") == [(2,)]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS a, 'x' AS b",
        "SELECT 1 AS a, 'x' AS b WHERE 0",
        "SELECT 1 AS a, 'x' AS b LIMIT 0 -- nothing",
        "SELECT 1 AS a, 'x' AS b FORMAT JSON",
    ],
)
def test_names_and_types_are_known_with_and_without_rows(client: Client, sql: str) -> None:
    assert client.execute(sql, with_column_types=True)[1] == [("a", "UInt8"), ("b", "String")]


def test_statements_other_than_select_return_their_tables(client: Client, database: str) -> None:
    client.execute("CREATE TABLE shown (a Int8) ENGINE = Memory")
    assert client.execute("SHOW TABLES") == [("shown",)]
    assert client.execute("DESCRIBE TABLE shown")[0][:2] == ("a", "Int8")
    assert client.execute("EXISTS TABLE shown") == [(1,)]
    assert client.execute("EXPLAIN SYNTAX SELECT 1")
    assert client.execute(f"SHOW CREATE TABLE {database}.shown")[0][0].startswith(f"CREATE TABLE {database}.shown")


def test_a_select_may_begin_in_any_way(client: Client) -> None:
    for sql in (
        "WITH 1 AS x SELECT x",
        "(SELECT 1)",
        "FROM (SELECT 1 AS a) SELECT a",
        "/* why */ SELECT 1 -- because",
        "SELECT 1;",
    ):
        assert client.execute(sql) == [(1,)]
    assert client.execute("SELECT 1 UNION ALL (SELECT 1)") == [(1,), (1,)]
    assert client.execute("SELECT ';--', '/*', $$;'$$") == [(";--", "/*", ";'")]


def test_an_insert_may_begin_with(client: Client) -> None:
    client.execute("CREATE TABLE target (a Int8) ENGINE = Memory")
    client.execute("WITH 3 AS x INSERT INTO target SELECT x")
    client.execute("INSERT INTO target (a) VALUES (4), (5)")
    assert client.execute("SELECT sum(a) FROM target") == [(12,)]


def test_parameters_set_on_the_connection_are_filled_in_by_the_engine(client: Client) -> None:
    client.execute("SET param_word = 'it''s'")
    assert client.execute("SELECT {word:String}") == [("it's",)]


def test_the_session_can_be_used_after_every_kind_of_error(node: RunningNode) -> None:
    with RawClient(node.port) as raw:
        for sql, code in ERRORS:
            raw.send_query(sql)
            assert raw.expect_exception().code == code
            raw.ping()
        raw.send_query("SELECT 1")
        assert raw.receive_until_end().rows == 1


ERRORS = [
    ("SELECT no_such_column FROM system.one", 47),
    ("SELECT * FROM no_such_table", 60),
    ("SELEC 1", 62),
    ("SELECT FROM WHERE", 62),
    ("", 62),
    ("SELECT 1; SELECT 2", 62),
    ("SELECT * FROM nowhere.table", 81),
    ("INSERT INTO no_such_table VALUES", 60),
    ("SELECT * FROM system.one SETTINGS no_such_setting = 1", 115),
    ("SELECT throwIf(number = 100000) FROM numbers(1000000)", 395),
    ("SELECT no_such_function()", 46),
    ("SELECT sum(number) FROM numbers(10) GROUP BY number WITH TOTALS", 48),
]


@pytest.mark.parametrize(("sql", "code"), ERRORS)
def test_errors_have_the_codes_of_clickhouse(client: Client, sql: str, code: int) -> None:
    assert code_of(client, sql) == code


# Deduplication and failing inserts


def test_a_repeated_insert_with_the_same_token_writes_nothing(client: Client) -> None:
    client.execute(
        "CREATE TABLE once (a Int32) ENGINE = MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100"
    )
    for token, rows in (("first", 10), ("first", 10), ("second", 10), ("first", 10)):
        settings = {"insert_deduplication_token": token}
        client.execute("INSERT INTO once VALUES", [(number,) for number in range(rows)], settings=settings)
    assert client.execute("SELECT count() FROM once") == [(20,)]


@pytest.mark.parametrize("rows", [1, 200_000])
@pytest.mark.parametrize(
    ("definition", "code"),
    [
        ("a Int32, CONSTRAINT small CHECK a < 0", 469),
        ("a Int32, b Int8 MATERIALIZED throwIf(a >= 0)", 395),
    ],
)
def test_an_insert_that_fails_while_writing_is_an_error(client: Client, definition: str, code: int, rows: int) -> None:
    client.execute(f"CREATE TABLE strict ({definition}) ENGINE = MergeTree ORDER BY a")
    assert code_of(client, "INSERT INTO strict VALUES", [(number,) for number in range(rows)]) == code
    assert client.execute("SELECT count() FROM strict") == [(0,)]


def test_an_insert_that_fails_in_a_materialized_view_is_an_error(client: Client) -> None:
    client.execute("CREATE TABLE source (a Int32) ENGINE = MergeTree ORDER BY a")
    client.execute(
        "CREATE MATERIALIZED VIEW seen ENGINE = MergeTree ORDER BY b AS SELECT throwIf(a = 1) AS b FROM source"
    )
    assert code_of(client, "INSERT INTO source VALUES", [(1,)]) == 395


def test_an_insert_into_too_many_partitions_is_an_error(client: Client) -> None:
    client.execute("CREATE TABLE parts (a Int32) ENGINE = MergeTree PARTITION BY a ORDER BY a")
    settings = {"max_partitions_per_insert_block": 5}
    assert code_of(client, "INSERT INTO parts VALUES", [(number,) for number in range(10)], settings=settings) == 252
