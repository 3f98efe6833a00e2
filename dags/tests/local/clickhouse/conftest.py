"""A node for the tests of the local ClickHouse, and a client and a database for each test."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from clickhouse_driver import Client

from dags.tests.local.clickhouse.nodes import RunningNode, running_node


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that no test may stop."""
    with running_node(tmp_path_factory.mktemp("clickhouse") / "node") as running:
        yield running


@pytest.fixture
def database(node: RunningNode) -> Iterator[str]:
    """A database of the test."""
    name = f"test_{uuid4().hex}"
    node.query(f"CREATE DATABASE {name}")
    yield name
    node.query(f"DROP DATABASE {name} SYNC")


@pytest.fixture
def client(node: RunningNode, database: str) -> Iterator[Client]:
    """A client whose current database is that of the test."""
    with node.client(database=database) as connected:
        yield connected
