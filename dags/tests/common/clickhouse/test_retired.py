import datetime as dt
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Query, Rows
from dags.common.clickhouse.schema import apply_schema
from dags.common.clickhouse.schema.__main__ import main
from dags.common.clickhouse.schema.retired import RETIRED_TABLES, drop_retired_tables
from dags.common.settings import get_settings

FIRST, SECOND = dt.date(2026, 3, 10), dt.date(2026, 3, 11)


@pytest.fixture
def cluster(clickhouse_port: int, clickhouse_database: str) -> Iterator[ClickhouseCluster]:
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database)) as value:
        yield value


def rows(cluster: ClickhouseCluster, statement: str) -> Rows:
    return cluster.any_host(Query(statement)).result()


def add_old_table(cluster: ClickhouseCluster, name: str, *days: dt.date) -> None:
    rows(cluster, f"CREATE TABLE {name} (period_bucket DateTime('UTC')) ENGINE = MergeTree ORDER BY period_bucket")
    for day in days:
        rows(cluster, f"INSERT INTO {name} SELECT toDateTime('{day} 10:00:00', 'UTC')")


def old_tables(cluster: ClickhouseCluster) -> set[str]:
    return {name for (name,) in rows(cluster, "SHOW TABLES")} & set(RETIRED_TABLES)


def drop(cluster: ClickhouseCluster, *, dry_run: bool = False) -> dict[str, tuple[dt.date, ...]]:
    retired = drop_retired_tables(cluster, clustered=False, applied_by="test", dry_run=dry_run)
    return {table.name: table.missing_days for table in retired}


def test_an_old_table_is_dropped_only_when_each_of_its_days_is_computed(cluster: ClickhouseCluster) -> None:
    apply_schema(cluster, clustered=False)
    add_old_table(cluster, "web_stats_daily", FIRST, SECOND)
    add_old_table(cluster, "web_bounces_hourly", SECOND)
    rows(cluster, f"INSERT INTO web_session_days (day, version) SELECT '{SECOND}', 1")
    assert drop(cluster) == {"web_stats_daily": (FIRST,), "web_bounces_hourly": ()}
    assert old_tables(cluster) == {"web_stats_daily"}
    rows(cluster, f"INSERT INTO web_session_days (day, version) SELECT '{FIRST}', 1")
    assert drop(cluster, dry_run=True) == {"web_stats_daily": ()}
    assert old_tables(cluster) == {"web_stats_daily"}
    drop(cluster)
    assert old_tables(cluster) == set()
    recorded = rows(cluster, "SELECT object FROM schema_migrations WHERE applied_by = 'test'")
    assert sorted(recorded) == [("web_bounces_hourly",), ("web_stats_daily",)]
    assert drop(cluster) == {}


def test_before_the_schema_is_applied_every_day_is_missing(cluster: ClickhouseCluster) -> None:
    add_old_table(cluster, "web_stats_daily", FIRST)
    assert drop(cluster, dry_run=True) == {"web_stats_daily": (FIRST,)}


def test_the_command_says_which_days_are_missing_and_how_to_compute_them(
    cluster: ClickhouseCluster, clickhouse_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_old_table(cluster, "web_stats_daily", FIRST, SECOND)
    for name, value in {
        "DEBUG": "1",
        "CLICKHOUSE_PORT": str(clickhouse_port),
        "CLICKHOUSE_DATABASE": cluster.database,
    }.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    result = CliRunner().invoke(main, ["apply"])
    get_settings.cache_clear()
    assert result.exit_code == 0, result.output
    assert f"web_stats_daily stays: web_sessions lacks 2 of its days, from {FIRST} to {SECOND}." in result.output
    assert f"-j web_analytics_daily_job --from {FIRST} --to {SECOND}" in result.output
