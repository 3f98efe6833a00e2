"""Squashes and deletes over random histories, on two shards, against the model."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from dags.common.clickhouse.query import Query
from dags.tests.histories import History, histories, play
from dags.tests.rewriting import World

SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def emptied(world: World) -> World:
    """Remove what the previous example inserted."""
    for table in ("events", "person_distinct_id_overrides"):
        world.cluster.map_all_hosts(Query(f"TRUNCATE TABLE {table} SYNC", retryable=True)).result()
    with world.postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM deletion_requests")
    return world


@settings(max_examples=6, deadline=None, suppress_health_check=SUPPRESSED, phases=(Phase.explicit, Phase.generate))
@given(history=histories(jobs=2, teams=6))
def test_after_any_history_the_tables_equal_the_model(world: World, history: History) -> None:
    play(history, emptied(world))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=120, deadline=None, suppress_health_check=SUPPRESSED)
@given(history=histories(jobs=5, teams=8))
def test_after_long_histories_the_tables_equal_the_model(world: World, history: History) -> None:
    play(history, emptied(world))
