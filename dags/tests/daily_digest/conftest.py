"""Fixtures of the digest's tests: the real engine with the schema, and a Dagster to run in."""

from collections.abc import Iterator

import dagster as dg
import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.schema import apply_schema
from dags.tests.daily_digest.platform import Platform


@pytest.fixture
def platform(clickhouse_port: int, clickhouse_database: str) -> Iterator[Platform]:
    """Dagster and ClickHouse, for runs of the real job."""
    with (
        ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database)) as cluster,
        dg.DagsterInstance.ephemeral() as instance,
    ):
        apply_schema(cluster, clustered=False)
        yield Platform(instance, cluster)
