import dataclasses
import datetime as dt
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from decimal import Decimal

import pytest
from click.testing import CliRunner
from clickhouse_driver import Client

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import Column, Dictionary, Placement, SchemaForm, Table, View, literal
from dags.common.clickhouse.discovery import connect
from dags.common.clickhouse.errors import ClusterError
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Insert, Query
from dags.common.clickhouse.schema import (
    COLUMNS_STATEMENT,
    INDEXES_STATEMENT,
    TABLES_STATEMENT,
    SchemaConflictError,
    _merged,
    _plan,
    apply_schema,
    described,
    is_clustered,
)
from dags.common.clickhouse.schema.__main__ import main
from dags.common.clickhouse.tables import EXCHANGE_RATE, EXCHANGE_RATE_DICT, SCHEMA, SCHEMA_MIGRATIONS
from dags.common.settings import Settings

VISITS = Table(
    name="visits",
    comment="It's a \\ test.",
    columns=(
        Column("day", "Date", "Day of the visit, UTC."),
        Column("team_id", "Int64", "Team."),
        Column("amount", "Decimal64(4)", "In dollars.", default="1.5"),
    ),
    engine="ReplacingMergeTree",
    order_by=("team_id", "day"),
    partition_by="toYYYYMM(day)",
    ttl="day + toIntervalYear(10)",
    placement=Placement.SHARDED,
    sharding_key="cityHash64(team_id)",
    settings={"index_granularity": 4096},
    unreplicated_settings={"non_replicated_deduplication_window": 10},
)


@pytest.fixture
def cluster(clickhouse_port: int, clickhouse_database: str) -> Iterator[ClickhouseCluster]:
    access = Access(database=clickhouse_database)
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], access) as value:
        yield value


@pytest.fixture
def two_shards(clickhouse_cluster_ports: tuple[int, ...]) -> Iterator[ClickhouseCluster]:
    """Both nodes of the cluster `local`, in a database of this test."""
    database = f"test_{uuid.uuid4().hex}"
    address, port = "127.0.0.1", clickhouse_cluster_ports[0]
    with connect(Access(), address, port, "local") as outside:
        outside.map_all_hosts(Query(f"CREATE DATABASE {database}")).result()
        with connect(Access(database=database), address, port, "local") as value:
            yield value
        outside.map_all_hosts(Query(f"DROP DATABASE {database} SYNC")).result()


def execute(cluster: ClickhouseCluster, *statements: str) -> None:
    for statement in statements:
        cluster.any_host(Query(statement)).result()


def rows(cluster: ClickhouseCluster, statement: str) -> list[tuple[object, ...]]:
    return cluster.any_host(Query(statement)).result()


def column_types(cluster: ClickhouseCluster, table: str) -> dict[str, str]:
    return {str(row[0]): str(row[1]) for row in rows(cluster, f"DESCRIBE TABLE {table}")}


def put_rates(cluster: ClickhouseCluster, *rates: tuple[str, dt.date, str]) -> None:
    values = [(currency, day, Decimal(rate), 1) for currency, day, rate in rates]
    cluster.any_host(Insert("exchange_rate", ("currency", "date", "rate", "version"), values)).result()
    execute(cluster, "SYSTEM RELOAD DICTIONARY exchange_rate_dict")


def rate_on(cluster: ClickhouseCluster, currency: str, day: dt.date) -> object:
    query = Query(
        "SELECT dictGet('exchange_rate_dict', 'rate', %(currency)s, toDate(%(day)s))",
        {"currency": currency, "day": day},
    )
    return cluster.any_host(query).result()[0][0]


# Applying


def test_applying_creates_every_object_and_records_it(cluster: ClickhouseCluster) -> None:
    changes = apply_schema(cluster, clustered=False, applied_by="run 1")
    assert [change.object_name for change in changes] == [target.name for target in SCHEMA]
    assert {name for (name,) in rows(cluster, "SHOW TABLES")} == {target.name for target in SCHEMA}
    recorded = rows(cluster, "SELECT object, applied_by, length(statements) FROM schema_migrations ORDER BY object")
    assert recorded == [(name, "run 1", 1) for name in sorted(target.name for target in SCHEMA)]


def test_applying_twice_changes_nothing(cluster: ClickhouseCluster) -> None:
    schema = (*SCHEMA, VISITS)
    apply_schema(cluster, clustered=False, schema=schema)
    before = rows(cluster, "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()")
    records = rows(cluster, "SELECT * FROM schema_migrations ORDER BY object")
    assert apply_schema(cluster, clustered=False, schema=schema) == []
    assert before == rows(
        cluster, "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase()"
    )
    assert records == rows(cluster, "SELECT * FROM schema_migrations ORDER BY object")


def test_a_dry_run_names_the_statements_and_changes_nothing(cluster: ClickhouseCluster) -> None:
    planned = apply_schema(cluster, clustered=False, dry_run=True)
    assert rows(cluster, "SHOW TABLES") == []
    assert planned == apply_schema(cluster, clustered=False)


def test_two_processes_may_apply_the_schema_at_once(cluster: ClickhouseCluster) -> None:
    futures = [cluster.any_host(lambda _: apply_in_another_cluster(cluster)) for _ in range(2)]
    for future in futures:
        future.result()
    assert apply_schema(cluster, clustered=False) == []


def apply_in_another_cluster(like: ClickhouseCluster) -> None:
    with ClickhouseCluster(like.hosts, Access(database=like.database)) as another:
        apply_schema(another, clustered=False)


def test_every_node_of_a_cluster_without_keeper_gets_the_single_node_form(two_shards: ClickhouseCluster) -> None:
    changes = apply_schema(two_shards, clustered=False)
    assert {change.where for change in changes} == {str(host) for host in two_shards.hosts}
    assert apply_schema(two_shards, clustered=False) == []
    engine = Query(
        "SELECT engine FROM system.tables WHERE name = 'exchange_rate' AND database = %(database)s",
        {"database": two_shards.database},
    )
    assert list(two_shards.map_all_hosts(engine).result().values()) == [[("ReplacingMergeTree",)]] * 2
    text = described(changes)
    assert text.count(f"CREATE TABLE IF NOT EXISTS `{two_shards.database}`.`exchange_rate`") == 1
    assert f"-- exchange_rate, on {', '.join(map(str, two_shards.hosts))}" in text


# Differences


def with_columns(table: Table, *columns: Column) -> Table:
    return dataclasses.replace(table, columns=columns)


def test_a_missing_column_is_added_in_its_place_and_rows_stay(cluster: ClickhouseCluster) -> None:
    day, team, amount = VISITS.columns
    apply_schema(cluster, clustered=False, schema=[SCHEMA_MIGRATIONS, with_columns(VISITS, day, team)])
    execute(cluster, "INSERT INTO visits SELECT toDate('2024-01-05'), 1")
    first, last = Column("id", "UUID", "First."), Column("note", "Nullable(String)", "Last.")
    wider = with_columns(VISITS, first, day, team, amount, last)
    changes = apply_schema(cluster, clustered=False, schema=[SCHEMA_MIGRATIONS, wider], applied_by="run 2")
    assert len(changes) == 3
    assert list(column_types(cluster, "visits")) == ["id", "day", "team_id", "amount", "note"]
    assert rows(cluster, "SELECT team_id, amount, note FROM visits") == [(1, Decimal("1.5"), None)]
    assert rows(cluster, "SELECT length(statements) FROM schema_migrations WHERE applied_by = 'run 2'") == [(3,)]
    assert apply_schema(cluster, clustered=False, schema=[SCHEMA_MIGRATIONS, wider]) == []


def test_a_column_that_only_the_server_has_is_left_alone(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    execute(cluster, "ALTER TABLE exchange_rate ADD COLUMN extra UInt8")
    assert apply_schema(cluster, clustered=False) == []
    assert "extra" in column_types(cluster, "exchange_rate")


def test_another_type_is_an_error_with_the_column_both_types_and_the_remedy(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    execute(cluster, "ALTER TABLE exchange_rate MODIFY COLUMN rate Float64", "DROP DICTIONARY exchange_rate_dict")
    with pytest.raises(ClusterError) as caught:
        apply_schema(cluster, clustered=False)
    assert isinstance(caught.value.__cause__, SchemaConflictError)
    for expected in (
        str(cluster.hosts[0]),
        "exchange_rate.rate: its type is Float64 on the server and Decimal(18, 10) in the source",
        "ALTER TABLE exchange_rate MODIFY COLUMN rate Decimal(18, 10)",
    ):
        assert expected in str(caught.value)
    assert rows(cluster, "EXISTS DICTIONARY exchange_rate_dict") == [(0,)], "something was changed"


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("ReplacingMergeTree PARTITION BY toYYYYMM(day) ORDER BY team_id", "its sorting key is team_id on the server"),
        ("ReplacingMergeTree ORDER BY (team_id, day)", "its partition key is none on the server and toYYYYMM(day)"),
        ("MergeTree PARTITION BY toYYYYMM(day) ORDER BY (team_id, day)", "its engine is MergeTree on the server"),
        ("ReplacingMergeTree PARTITION BY toYYYYMM(day) ORDER BY (team_id, day)", "its TTL is none on the server"),
        (
            "ReplacingMergeTree PARTITION BY toYYYYMM(day) ORDER BY (team_id, day) TTL day + INTERVAL 1 DAY",
            "its TTL is day + toIntervalDay(1) on the server and day + toIntervalYear(10) in the source",
        ),
    ],
)
def test_another_engine_key_or_ttl_is_refused(cluster: ClickhouseCluster, existing: str, expected: str) -> None:
    execute(cluster, f"CREATE TABLE visits (day Date, team_id Int64, amount Decimal64(4)) ENGINE = {existing}")
    with pytest.raises(ClusterError) as caught:
        apply_schema(cluster, clustered=False, schema=[VISITS])
    assert expected in str(caught.value)


def test_another_version_column_is_refused(cluster: ClickhouseCluster) -> None:
    columns = "currency LowCardinality(String), date Date, rate Decimal64(10), version UInt64"
    execute(cluster, f"CREATE TABLE exchange_rate ({columns}) ENGINE = ReplacingMergeTree ORDER BY (currency, date)")
    with pytest.raises(ClusterError, match=r"its engine is ReplacingMergeTree on .* ReplacingMergeTree\(version\)"):
        apply_schema(cluster, clustered=False)


def test_settings_and_comments_are_updated(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False, schema=[SCHEMA_MIGRATIONS, VISITS])
    execute(
        cluster,
        "ALTER TABLE visits MODIFY SETTING non_replicated_deduplication_window = 1",
        "ALTER TABLE visits MODIFY COMMENT 'old'",
        "ALTER TABLE visits COMMENT COLUMN day 'old'",
    )
    assert len(apply_schema(cluster, clustered=False, schema=[SCHEMA_MIGRATIONS, VISITS])) == 3
    (created,) = rows(cluster, "SELECT create_table_query FROM system.tables WHERE name = 'visits'")[0]
    assert "non_replicated_deduplication_window = 10" in str(created)
    assert "old" not in str(created)
    assert apply_schema(cluster, clustered=False, schema=[SCHEMA_MIGRATIONS, VISITS]) == []


def test_a_missing_index_is_added_and_saves_reading_new_rows(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    execute(cluster, "ALTER TABLE events DROP INDEX person_id_index")
    (change,) = apply_schema(cluster, clustered=False)
    assert "ADD INDEX IF NOT EXISTS `person_id_index` person_id TYPE bloom_filter(0.001)" in change.statement
    execute(cluster, "INSERT INTO events (team_id, person_id) SELECT 1, toUUID('00000000-0000-0000-0000-000000000001')")
    query = "SELECT count() FROM events WHERE person_id = toUUID('00000000-0000-0000-0000-000000000002')"
    plan = [str(line).strip() for (line,) in rows(cluster, f"EXPLAIN indexes = 1 {query}")]
    assert "Granules: 0/1" in plan[plan.index("Name: person_id_index") :]
    assert apply_schema(cluster, clustered=False) == []


def test_another_index_of_the_name_is_refused_with_the_remedy(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    execute(
        cluster,
        "ALTER TABLE events DROP INDEX person_id_index",
        "ALTER TABLE events ADD INDEX person_id_index person_id TYPE minmax",
    )
    with pytest.raises(ClusterError, match="ALTER TABLE events DROP INDEX person_id_index"):
        apply_schema(cluster, clustered=False)


def test_a_changed_dictionary_is_replaced(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    changed = dataclasses.replace(EXCHANGE_RATE_DICT, lifetime_seconds=(10, 20))
    schema = (SCHEMA_MIGRATIONS, EXCHANGE_RATE, changed)
    (change,) = apply_schema(cluster, clustered=False, schema=schema)
    assert change.statement.startswith("CREATE OR REPLACE DICTIONARY")
    (created,) = rows(cluster, "SHOW CREATE DICTIONARY exchange_rate_dict")[0]
    assert "LIFETIME(MIN 10 MAX 20)" in str(created)
    assert apply_schema(cluster, clustered=False, schema=schema) == []


VISITS_BY_DAY = View(
    name="visits_by_day",
    comment="It's a \\ view.",
    query="""
        SELECT day, count() AS visits
        FROM {database}.visits
        WHERE team_id = {team:Int64}
        GROUP BY day
    """,
)


def test_a_view_is_read_with_its_parameters_and_the_dry_run_shows_it(cluster: ClickhouseCluster) -> None:
    schema = (SCHEMA_MIGRATIONS, VISITS, VISITS_BY_DAY)
    planned = apply_schema(cluster, clustered=False, dry_run=True, schema=schema)
    assert planned[-1].statement.startswith("CREATE OR REPLACE VIEW")
    assert planned == apply_schema(cluster, clustered=False, schema=schema)
    execute(cluster, "INSERT INTO visits (day, team_id) VALUES ('2026-03-11', 1), ('2026-03-11', 2)")
    assert rows(cluster, "SELECT visits FROM visits_by_day(team = 1)") == [(1,)]
    assert apply_schema(cluster, clustered=False, schema=schema) == []


@pytest.mark.parametrize(
    "changed", [{"query": "SELECT {team:Int64} AS changed"}, {"comment": "Changed."}], ids=lambda one: next(iter(one))
)
def test_a_changed_view_is_replaced(cluster: ClickhouseCluster, changed: dict[str, str]) -> None:
    schema = (SCHEMA_MIGRATIONS, VISITS, VISITS_BY_DAY)
    apply_schema(cluster, clustered=False, schema=schema)
    schema = (*schema[:2], dataclasses.replace(VISITS_BY_DAY, **changed))
    (change,) = apply_schema(cluster, clustered=False, schema=schema)
    assert change.object_name == "visits_by_day"
    ((definition,),) = rows(cluster, "SELECT create_table_query FROM system.tables WHERE name = 'visits_by_day'")
    assert "hanged" in str(definition)
    assert apply_schema(cluster, clustered=False, schema=schema) == []


@pytest.mark.parametrize(
    ("existing", "expected"),
    [
        ("CREATE TABLE visits_by_day (day Date) ENGINE = Memory", "it is a table of the engine Memory"),
        ("CREATE VIEW visits_by_day AS SELECT 1", "it is a view that the schema did not create"),
    ],
)
def test_an_object_of_a_views_name_that_the_schema_did_not_create_is_refused(
    cluster: ClickhouseCluster, existing: str, expected: str
) -> None:
    execute(cluster, existing)
    before = rows(cluster, "SHOW CREATE TABLE visits_by_day")
    with pytest.raises(ClusterError, match=f"visits_by_day: {expected}"):
        apply_schema(cluster, clustered=False, schema=(SCHEMA_MIGRATIONS, VISITS, VISITS_BY_DAY))
    assert rows(cluster, "SHOW TABLES") == [("visits_by_day",)]
    assert rows(cluster, "SHOW CREATE TABLE visits_by_day") == before


def test_an_object_created_without_a_record_is_recorded_when_found(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    execute(cluster, "TRUNCATE TABLE schema_migrations")
    assert apply_schema(cluster, clustered=False) == []
    found = rows(cluster, "SELECT object, statements FROM schema_migrations ORDER BY object")
    assert found == [(name, []) for name in sorted(target.name for target in SCHEMA)]


# The clustered form


def test_the_clustered_schema_needs_a_name(cluster: ClickhouseCluster) -> None:
    with pytest.raises(ValueError, match="set CLICKHOUSE_CLUSTER"):
        apply_schema(cluster, clustered=True)


@pytest.mark.parametrize("form", [SchemaForm("analytics"), SchemaForm("analytics", "prod-1")])
def test_every_statement_is_valid_to_the_engine(clickhouse_port: int, form: SchemaForm) -> None:
    targets = (*SCHEMA, VISITS, VISITS_BY_DAY)
    statements = [statement for target in targets for statement in target.statements(form)]
    sharded = [target for target in targets if isinstance(target, Table) and target.placement is Placement.SHARDED]
    assert len(statements) == len(targets) + (len(sharded) if form.cluster_name else 0)
    with Client("127.0.0.1", clickhouse_port) as client:
        for statement in statements:
            assert client.execute("SELECT formatQuery(%(statement)s)", {"statement": statement})


def test_a_sharded_table_is_replicated_in_its_shard_and_seen_whole_through_a_distributed_one() -> None:
    form = SchemaForm("analytics", "prod-1")
    stored, whole = VISITS.statements(form)
    assert stored.startswith("CREATE TABLE IF NOT EXISTS `analytics`.`sharded_visits` ON CLUSTER 'prod-1'\n")
    path = "/clickhouse/tables/{shard}/analytics.sharded_visits"
    assert f"ENGINE = ReplicatedReplacingMergeTree('{path}', '{{replica}}')" in stored
    assert "SETTINGS index_granularity = 4096\n" in stored
    assert "CREATE TABLE IF NOT EXISTS `analytics`.`visits` ON CLUSTER 'prod-1'\n" in whole
    assert "ENGINE = Distributed('prod-1', 'analytics', 'sharded_visits', cityHash64(team_id))" in whole


def test_a_table_on_every_node_is_one_group_of_replicas() -> None:
    (statement,) = EXCHANGE_RATE.statements(SchemaForm("analytics", "prod-1"))
    path = "/clickhouse/tables/every_node/analytics.exchange_rate"
    assert f"ENGINE = ReplicatedReplacingMergeTree('{path}', '{{shard}}-{{replica}}', version)" in statement
    assert "non_replicated" not in statement


def test_the_engine_accepts_the_distributed_table(two_shards: ClickhouseCluster) -> None:
    _, whole = VISITS.statements(SchemaForm(two_shards.database, "local"))
    two_shards.map_all_hosts(Query(whole.replace(" ON CLUSTER 'local'", ""))).result()
    engine = Query(
        "SELECT engine_full FROM system.tables WHERE name = 'visits' AND database = %(database)s",
        {"database": two_shards.database},
    )
    expected = f"Distributed('local', '{two_shards.database}', 'sharded_visits', cityHash64(team_id))"
    assert list(two_shards.map_all_hosts(engine).result().values()) == [[(expected,)]] * 2


class ClusteredServer:
    """Answers the queries of the plan like a server with Keeper, which the embedded engine lacks."""

    def __init__(self, tables: dict[str, tuple[str, dict[str, str]]]) -> None:
        self.tables = tables

    def execute(
        self, statement: str, parameters: dict[str, str] | None = None, settings: dict[str, int] | None = None
    ) -> list[tuple[str, ...]]:
        if statement == TABLES_STATEMENT:
            keys = ("toYYYYMM(day)", "team_id, day")
            return [
                (name, engine.partition("(")[0], VISITS.comment, *keys, engine)
                for name, (engine, _) in self.tables.items()
            ]
        if statement == COLUMNS_STATEMENT:
            comments = {column.name: column.comment for column in VISITS.columns}
            return [
                (name, column, type_name, comments[column])
                for name, (_, columns) in self.tables.items()
                for column, type_name in columns.items()
            ]
        if statement == INDEXES_STATEMENT:
            return []
        assert statement.startswith("DESCRIBE TABLE null")
        assert parameters is not None
        assert settings == {"print_pretty_type_names": 0}
        return [("day", "Date"), ("team_id", "Int64"), ("amount", "Decimal(18, 4)")]


def clustered_server(stored_engine: str, whole_engine: str, columns: dict[str, str]) -> ClusteredServer:
    return ClusteredServer({"sharded_visits": (stored_engine, columns), "visits": (whole_engine, columns)})


CLUSTERED = SchemaForm("analytics", "prod-1")
STORED_ENGINE = (
    f"{VISITS.engine_in(CLUSTERED)} PARTITION BY toYYYYMM(day) ORDER BY (team_id, day) "
    "TTL day + toIntervalYear(10) SETTINGS index_granularity = 4096"
)
WHOLE_ENGINE = "Distributed('prod-1', 'analytics', 'sharded_visits', cityHash64(team_id))"
ALL_TYPES = {"day": "Date", "team_id": "Int64", "amount": "Decimal(18, 4)"}


def test_in_a_cluster_nothing_is_planned_for_a_table_that_matches() -> None:
    (step,) = _plan(clustered_server(STORED_ENGINE, WHOLE_ENGINE, ALL_TYPES), CLUSTERED, [VISITS])
    assert step.statements == ()


def test_in_a_cluster_a_column_is_added_to_the_stored_and_to_the_distributed_table() -> None:
    types = {name: type_name for name, type_name in ALL_TYPES.items() if name != "amount"}
    (step,) = _plan(clustered_server(STORED_ENGINE, WHOLE_ENGINE, types), CLUSTERED, [VISITS])
    added = "ADD COLUMN IF NOT EXISTS `amount` Decimal64(4) DEFAULT 1.5 COMMENT 'In dollars.' AFTER `team_id`"
    assert step.statements == tuple(
        f"ALTER TABLE `analytics`.`{name}` ON CLUSTER 'prod-1' {added}" for name in ("sharded_visits", "visits")
    )


def test_in_a_cluster_a_table_that_is_not_replicated_is_refused() -> None:
    plain = STORED_ENGINE.replace(VISITS.engine_in(CLUSTERED), "ReplacingMergeTree")
    with pytest.raises(SchemaConflictError, match=r"its engine is ReplacingMergeTree .* and ReplicatedReplacing"):
        _plan(clustered_server(plain, WHOLE_ENGINE, ALL_TYPES), CLUSTERED, [VISITS])


def test_in_a_cluster_a_statement_that_any_host_needs_is_run_once() -> None:
    whole = _plan(clustered_server(STORED_ENGINE, WHOLE_ENGINE, ALL_TYPES), CLUSTERED, [VISITS])
    empty = _plan(ClusteredServer({}), CLUSTERED, [VISITS])
    (step,) = _merged([whole, empty, empty])
    assert step.statements == tuple(VISITS.statements(CLUSTERED))
    assert not step.recorded


def test_applying_a_tuple_twice_changes_nothing(cluster: ClickhouseCluster) -> None:
    table = dataclasses.replace(
        EXCHANGE_RATE,
        name="tuples",
        columns=(
            *EXCHANGE_RATE.columns,
            Column("pages", "Array(Tuple(host String, at DateTime64(6, 'UTC')))", "Pages."),
        ),
    )
    schema = (SCHEMA_MIGRATIONS, table)
    apply_schema(cluster, clustered=False, schema=schema)
    assert apply_schema(cluster, clustered=False, schema=schema) == []


def test_a_sharding_key_goes_with_sharded_tables_only() -> None:
    with pytest.raises(ValueError, match="a sharded table needs a sharding_key"):
        dataclasses.replace(VISITS, sharding_key=None)
    with pytest.raises(ValueError, match="any other must have none"):
        dataclasses.replace(EXCHANGE_RATE, sharding_key="rand()")


@pytest.mark.parametrize("text", ["it's", "\\", "a\\'b", "\\n", "'; DROP TABLE x; --", "naïve ✓"])
def test_a_literal_reads_back_as_its_text(cluster: ClickhouseCluster, text: str) -> None:
    assert rows(cluster, f"SELECT {literal(text)}") == [(text,)]


def test_only_production_on_a_named_cluster_is_clustered() -> None:
    secrets = dict.fromkeys(
        ("slack_token", "clickhouse_password", "object_storage_secret_access_key", "postgres_password"), "x"
    )
    secrets["visitor_hash_key"] = "x" * 16

    def settings(**values: object) -> Settings:
        return Settings.model_validate({"object_storage_access_key_id": "x", **secrets, **values})

    assert is_clustered(settings(cloud_deployment="US", clickhouse_cluster="main"))
    assert not is_clustered(settings(cloud_deployment="US"))
    assert not is_clustered(settings(debug=True))


# The exchange-rate objects


def test_every_column_has_a_comment() -> None:
    columns = [(target.name, column) for target in SCHEMA if not isinstance(target, View) for column in target.columns]
    assert columns
    assert [(name, column.name) for name, column in columns if not column.comment] == []


def test_a_rate_holds_until_the_next_one_and_at_most_for_a_month(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    put_rates(cluster, ("EUR", dt.date(2024, 1, 5), "0.91"), ("EUR", dt.date(2024, 1, 8), "0.92"))
    days = {5: "0.91", 6: "0.91", 7: "0.91", 8: "0.92", 9: "0.92"}
    for day, rate in days.items():
        assert rate_on(cluster, "EUR", dt.date(2024, 1, day)) == Decimal(rate)
    assert rate_on(cluster, "EUR", dt.date(2024, 1, 8) + dt.timedelta(days=31)) == Decimal("0.92")
    assert rate_on(cluster, "EUR", dt.date(2024, 1, 8) + dt.timedelta(days=32)) is None


def test_an_unknown_rate_reads_as_null_and_not_as_zero(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    put_rates(cluster, ("EUR", dt.date(2024, 1, 5), "0.91"))
    assert rate_on(cluster, "EUR", dt.date(2024, 1, 4)) is None
    assert rate_on(cluster, "XXX", dt.date(2024, 1, 5)) is None


def test_the_dictionary_serves_the_row_with_the_highest_version(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    columns = ("currency", "date", "rate", "version")
    for rate, version in (("0.5", 2), ("0.4", 1)):
        row = ("EUR", dt.date(2024, 1, 5), Decimal(rate), version)
        cluster.any_host(Insert("exchange_rate", columns, [row])).result()
    execute(cluster, "SYSTEM RELOAD DICTIONARY exchange_rate_dict")
    assert rate_on(cluster, "EUR", dt.date(2024, 1, 5)) == Decimal("0.5")


def test_an_insert_of_rates_with_a_token_is_stored_once(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    execute(cluster, "SYSTEM STOP MERGES exchange_rate")
    row = ("EUR", dt.date(2024, 1, 5), Decimal("0.91"), 1)
    insert = Insert("exchange_rate", ("currency", "date", "rate", "version"), [row], "one token")
    for _ in range(2):
        cluster.any_host(insert).result()
    assert rows(cluster, "SELECT count() FROM exchange_rate") == [(1,)]


# The command


@pytest.fixture
def command_environment(clickhouse_port: int, clickhouse_database: str) -> dict[str, str | None]:
    return {"CLICKHOUSE_PORT": str(clickhouse_port), "CLICKHOUSE_DATABASE": clickhouse_database}


def test_the_command_creates_the_database_and_applies_the_schema(
    command_environment: dict[str, str | None], cluster: ClickhouseCluster
) -> None:
    execute(cluster, f"DROP DATABASE {cluster.database} SYNC")
    first = CliRunner().invoke(main, ["apply"], env=command_environment)
    assert (first.exit_code, first.stdout.splitlines()[-1]) == (0, f"Applied: {len(SCHEMA)} statements.")
    second = CliRunner().invoke(main, ["apply"], env=command_environment)
    assert (second.exit_code, second.stdout.strip()) == (0, "Nothing to do: the database matches the schema.")
    assert {name for (name,) in rows(cluster, "SHOW TABLES")} == {target.name for target in SCHEMA}


def test_the_commands_dry_run_changes_nothing(
    command_environment: dict[str, str | None], cluster: ClickhouseCluster
) -> None:
    result = CliRunner().invoke(main, ["apply", "--dry-run"], env=command_environment)
    assert result.exit_code == 0
    assert f"Dry run: nothing was changed. {len(SCHEMA)} statements would be run." in result.stdout
    assert rows(cluster, "SHOW TABLES") == []


@pytest.mark.parametrize("arguments", [["apply"], ["apply", "--dry-run"]])
def test_the_command_says_that_the_server_does_not_answer(
    command_environment: dict[str, str | None], arguments: list[str]
) -> None:
    result = CliRunner().invoke(main, arguments, env={**command_environment, "CLICKHOUSE_PORT": "1"})
    assert result.exit_code == 1
    assert "Error: The call failed on 1 of 1 ClickHouse hosts:" in result.stderr
    assert "127.0.0.1:1" in result.stderr


def test_the_commands_dry_run_says_that_the_database_is_missing(command_environment: dict[str, str | None]) -> None:
    environment = {**command_environment, "CLICKHOUSE_DATABASE": "not_there_yet"}
    result = CliRunner().invoke(main, ["apply", "--dry-run"], env=environment)
    assert result.exit_code == 1
    assert "not_there_yet" in result.stderr


def test_the_command_reports_every_problem_of_the_environment(command_environment: dict[str, str | None]) -> None:
    wrong = {**command_environment, "CLICKHOUSE_PORT": "x", "POSTGRES_PORT": "y"}
    result = CliRunner().invoke(main, ["apply"], env=wrong)
    assert result.exit_code == 1
    assert "CLICKHOUSE_PORT" in result.stderr
    assert "POSTGRES_PORT" in result.stderr


def test_show_prints_the_statements_of_either_form_without_a_connection() -> None:
    single = CliRunner().invoke(main, ["show"], env={"CLICKHOUSE_PORT": "1"}).stdout
    clustered = CliRunner().invoke(main, ["show", "--clustered", "main", "--database", "analytics"]).stdout
    assert "ENGINE = ReplacingMergeTree(version)" in single
    assert "CREATE TABLE IF NOT EXISTS `analytics`.`exchange_rate` ON CLUSTER 'main'" in clustered


def test_the_help_names_the_commands_with_an_example() -> None:
    module = "dags.common.clickhouse.schema"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    shown = [
        subprocess.run(
            [sys.executable, "-m", module, *arguments, "--help"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env=environment,
        ).stdout
        for arguments in ((), ("apply",), ("show",))
    ]
    assert "apply" in shown[0]
    assert "show" in shown[0]
    assert "python -m dags.common.clickhouse.schema apply --dry-run" in shown[1]
    assert "--clustered" in shown[2]


def test_a_dictionary_without_a_range_is_created_too(cluster: ClickhouseCluster) -> None:
    names = Dictionary(
        name="currency_names",
        comment="Names.",
        columns=(Column("code", "String", "Code."), Column("name", "String", "Name.", default="'unknown'")),
        primary_key=("code",),
        source_query="SELECT 'EUR' AS code, 'it''s the euro' AS name FROM {database}.exchange_rate",
        layout="COMPLEX_KEY_HASHED()",
        lifetime_seconds=(0, 0),
    )
    apply_schema(cluster, clustered=False, schema=[SCHEMA_MIGRATIONS, EXCHANGE_RATE, names])
    execute(cluster, "INSERT INTO exchange_rate SELECT 'EUR', today(), 1, 1")
    assert rows(cluster, "SELECT dictGet('currency_names', 'name', 'EUR')") == [("it's the euro",)]
    assert rows(cluster, "SELECT dictGet('currency_names', 'name', 'USD')") == [("unknown",)]
