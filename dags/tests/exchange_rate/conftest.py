"""Fixtures of the exchange-rate tests: a web source on loopback, the schema applied, and a Dagster instance."""

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Query, quoted
from dags.common.clickhouse.schema import apply_schema
from dags.common.json_io_manager import JsonObjectIOManager
from dags.tests.exchange_rate.platform import Platform
from dags.tests.exchange_rate.source_server import Source, source_server
from dags.tests.resources import s3_resource

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


@pytest.fixture
def source() -> Iterator[Source]:
    """A server in place of Open Exchange Rates."""
    with source_server() as running:
        yield running


@pytest.fixture
def cluster(clickhouse_port: int, clickhouse_database: str) -> Iterator[ClickhouseCluster]:
    """The real engine, with the project's schema in a database of this test."""
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database)) as connected:
        apply_schema(connected, clustered=False)
        yield connected


@pytest.fixture
def two_hosts(clickhouse_cluster_ports: tuple[int, ...]) -> Iterator[ClickhouseCluster]:
    """Two nodes, each with the single-node schema in a database of this test."""
    hosts = [Host("127.0.0.1", port, shard) for shard, port in enumerate(clickhouse_cluster_ports, start=1)]
    database = f"test_{uuid.uuid4().hex}"
    with ClickhouseCluster(hosts) as outside:
        outside.map_all_hosts(Query(f"CREATE DATABASE {quoted(database)}")).result()
        with ClickhouseCluster(hosts, Access(database=database)) as connected:
            apply_schema(connected, clustered=False)
            yield connected
        outside.map_all_hosts(Query(f"DROP DATABASE {quoted(database)} SYNC")).result()


@pytest.fixture
def platform(cluster: ClickhouseCluster, s3_client: "S3Client", s3_bucket: str) -> Iterator[Platform]:
    """Dagster, ClickHouse and object storage, for runs of the real jobs."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(instance, cluster, JsonObjectIOManager(s3=s3_resource(s3_client), bucket=s3_bucket))
