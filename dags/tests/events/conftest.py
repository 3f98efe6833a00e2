"""Fixtures of the tests of events."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.object_storage import ObjectStorage
from dags.common.clickhouse.schema import apply_schema
from dags.common.postgres import Postgres
from dags.tests.conftest import CREDENTIALS
from dags.tests.events.world import World
from dags.tests.rewriting import postgres_of

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


@pytest.fixture
def cluster(clickhouse_port: int, clickhouse_database: str) -> Iterator[ClickhouseCluster]:
    """The real engine, with the project's schema in a database of this test."""
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database)) as connected:
        apply_schema(connected, clustered=False)
        yield connected


@pytest.fixture
def postgres(postgres_dsn: str) -> Postgres:
    """An empty database: deletion requests of one test must not reach another."""
    return postgres_of(postgres_dsn)


@pytest.fixture
def world(
    cluster: ClickhouseCluster, postgres: Postgres, s3_client: "S3Client", s3_endpoint: str, s3_bucket: str
) -> World:
    storage = ObjectStorage(
        s3_bucket,
        f"{s3_endpoint}/{s3_bucket}",
        CREDENTIALS.s3_access_key_id,
        SecretStr(CREDENTIALS.s3_secret_access_key),
    )
    return World(cluster, postgres, s3_client, storage)
