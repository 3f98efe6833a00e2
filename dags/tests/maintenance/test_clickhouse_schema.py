from collections.abc import Iterator

import dagster as dg
import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.tables import SCHEMA
from dags.common.settings import Settings, get_settings
from dags.maintenance.clickhouse_schema import clickhouse_schema_job
from dags.tests.resources import clickhouse_resource


@pytest.fixture
def cluster(
    clickhouse_port: int, clickhouse_database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ClickhouseCluster]:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    get_settings.cache_clear()
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database)) as value:
        yield value
    get_settings.cache_clear()


def run(cluster: ClickhouseCluster, instance: dg.DagsterInstance, **config: bool) -> tuple[str, dict[str, object]]:
    result = clickhouse_schema_job.execute_in_process(
        resources={"clickhouse": clickhouse_resource(cluster)},
        instance=instance,
        run_config={"ops": {"apply_clickhouse_schema": {"config": config}}},
    )
    (output,) = result.filter_events(lambda event: event.is_successful_output)
    metadata = output.step_output_data.metadata
    return result.run_id, {name: value.value for name, value in metadata.items()}


def tables(cluster: ClickhouseCluster) -> set[str]:
    return {name for (name,) in cluster.any_host(Query("SHOW TABLES")).result()}


def test_the_job_applies_the_schema_once_and_records_its_run(cluster: ClickhouseCluster) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_id, metadata = run(cluster, instance)
        assert metadata["statement_count"] == len(SCHEMA)
        assert tables(cluster) == {target.name for target in SCHEMA}
        recorded = cluster.any_host(Query("SELECT DISTINCT applied_by FROM schema_migrations")).result()
        assert recorded == [(run_id,)]
        _, again = run(cluster, instance)
        assert again["statement_count"] == 0


def test_a_dry_run_shows_the_statements_and_changes_nothing(cluster: ClickhouseCluster) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_id, metadata = run(cluster, instance, dry_run=True)
        logged = "".join(str(record.user_message) for record in instance.all_logs(run_id))
    assert metadata["dry_run"] is True
    for text in (str(metadata["statements"]), logged):
        assert f"CREATE TABLE IF NOT EXISTS `{cluster.database}`.`exchange_rate`" in text
    assert tables(cluster) == set()


def test_the_queries_of_the_job_carry_its_run_and_owner(cluster: ClickhouseCluster) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run_id, _ = run(cluster, instance)
    cluster.any_host(Query("SYSTEM FLUSH LOGS")).result()
    found = cluster.any_host(
        Query(
            "SELECT DISTINCT JSONExtractString(log_comment, 'job'), JSONExtractString(log_comment, 'step'), "
            "JSONExtractString(log_comment, 'owner') FROM system.query_log "
            "WHERE JSONExtractString(log_comment, 'run_id') = %(run_id)s",
            {"run_id": run_id},
        )
    ).result()
    assert found == [("clickhouse_schema_job", "apply_clickhouse_schema", "team-clickhouse")]
