"""The tables on two nodes, and the requests in a Postgres."""

from collections.abc import Iterator

import pytest

from dags.tests.rewriting import World, world_on


@pytest.fixture
def world(clickhouse_cluster_ports: tuple[int, ...], postgres_dsn: str) -> Iterator[World]:
    """A new database on two shards with the schema, and an empty table of requests."""
    with world_on(clickhouse_cluster_ports, postgres_dsn) as opened:
        yield opened
