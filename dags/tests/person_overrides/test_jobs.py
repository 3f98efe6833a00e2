import datetime as dt
from typing import Any

import dagster as dg

from dags.person_overrides.jobs import squash_person_overrides, squash_person_overrides_schedule
from dags.tests.resources import clickhouse_resource, postgres_resource
from dags.tests.rewriting import Event, Override, World, person

NOW = dt.datetime(2026, 4, 4, 5, tzinfo=dt.UTC)


def run(world: World, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the squash; return the metadata of its one step."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = squash_person_overrides.execute_in_process(
            config,
            instance=instance,
            resources={"clickhouse": clickhouse_resource(world.cluster), "postgres": postgres_resource(world.postgres)},
        )
    (output,) = result.filter_events(lambda event: event.is_successful_output)
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def test_a_manual_run_is_a_dry_run_that_shows_what_it_would_touch(world: World) -> None:
    world.add([Event(person(1))])
    world.override([Override(person(5))])
    metadata = run(world)
    assert metadata["dry_run"] is True
    assert (metadata["rows_touched"], metadata["parts_touched"], metadata["partitions_touched"]) == (1, 1, 1)
    assert "202603 | 1 | 1 |" in metadata["touched"]
    assert metadata["rows_rewritten"] == 0
    assert world.overrides() == {(1, "visitor", 1, 0)}


def test_the_schedule_requests_a_squash_that_is_not_a_dry_run(world: World) -> None:
    event = Event(person(1))
    world.add([event])
    world.override([Override(person(5))])
    with (
        dg.instance_for_test() as instance,
        dg.build_schedule_context(instance=instance, scheduled_execution_time=NOW) as context,
    ):
        (request,) = squash_person_overrides_schedule.evaluate_tick(context).run_requests or []
    metadata = run(world, dict(request.run_config))
    assert metadata["dry_run"] is False
    assert metadata["rows_rewritten"] == 1
    assert metadata["mutations"]
    assert world.persons() == {event.uuid: person(5)}


def test_an_override_is_left_until_it_is_as_old_as_the_config_says(world: World) -> None:
    world.add([Event(person(1))])
    world.override([Override(person(5), _timestamp=dt.datetime.now(dt.UTC) - dt.timedelta(days=1))])
    config: dict[str, Any] = {"dry_run": False}
    assert run(world, {"ops": {"squash_overrides": {"config": config}}})["overrides"] == 0
    config = {"dry_run": False, "cutoff_days": 0.5}
    assert run(world, {"ops": {"squash_overrides": {"config": config}}})["overrides"] == 1
    assert world.overrides() == set()


def test_every_query_of_a_squash_carries_its_run_and_owner(world: World) -> None:
    run(world)
    world.everywhere("SYSTEM FLUSH LOGS query_log")
    statement = (
        "SELECT DISTINCT JSONExtractString(log_comment, 'job'), JSONExtractString(log_comment, 'owner') "
        "FROM system.query_log WHERE current_database = currentDatabase() AND query LIKE '%%rewrite_overrides__%%' "
        "AND query_kind IN ('Insert', 'Create', 'Drop')"
    )
    assert set(world.everywhere(statement)) == {("squash_person_overrides", "team-clickhouse")}
