"""A Dagster instance on each database, whose events a test writes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dags.tests.alerts.world import World, local_instance


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def world(request: pytest.FixtureRequest, database: str, memory_path: Path) -> Iterator[World]:
    dsn = request.getfixturevalue("dagster_dsn") if database == "postgres" else None
    with local_instance(memory_path / "home", dsn) as instance:
        yield World(instance)
