"""Fixtures of the web table tests: the real engine with the schema."""

from collections.abc import Iterator

import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.schema import apply_schema
from dags.tests.events.conftest import postgres, world
from dags.tests.web_preaggregated.events import Web

__all__ = ["postgres", "world"]


@pytest.fixture
def cluster(clickhouse_port: int, clickhouse_database: str) -> Iterator[ClickhouseCluster]:
    """The real engine, with the project's schema in a database of this test."""
    with ClickhouseCluster([Host("127.0.0.1", clickhouse_port)], Access(database=clickhouse_database)) as connected:
        apply_schema(connected, clustered=False)
        yield connected


@pytest.fixture
def web(cluster: ClickhouseCluster) -> Web:
    """Inserts events and reads the numbers of the web tables."""
    return Web(cluster)
