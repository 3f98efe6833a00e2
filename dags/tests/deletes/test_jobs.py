import datetime as dt
from typing import Any

import dagster as dg

from dags.common.deletion_requests import RequestKind, RequestState, list_requests
from dags.deletes.jobs import deletes_job, deletes_schedule, start_deletes_after_squash
from dags.person_overrides.jobs import squash_person_overrides
from dags.tests.resources import clickhouse_resource, postgres_resource
from dags.tests.rewriting import Event, World, at, person
from dags.web_preaggregated.assets import POOL

NOW = dt.datetime(2026, 4, 1, 5, tzinfo=dt.UTC)


def run(world: World, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the deletes; return the metadata of their one step."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = deletes_job.execute_in_process(
            config,
            instance=instance,
            resources={"clickhouse": clickhouse_resource(world.cluster), "postgres": postgres_resource(world.postgres)},
        )
    (output,) = result.filter_events(lambda event: event.is_successful_output)
    return {name: value.value for name, value in output.step_output_data.metadata.items()}


def test_a_manual_run_is_a_dry_run_that_shows_what_it_would_delete(world: World) -> None:
    world.add([Event(person(1))])
    (id_,) = world.request(RequestKind.TEAM, 1, [""], at(1))
    metadata = run(world)
    assert metadata["dry_run"] is True
    assert metadata["requests_that_would_be_done"] == 1
    assert metadata["events_rows_touched"] == 1
    assert f"| {id_} |" in metadata["requests"]
    assert len(world.persons()) == 1


def test_the_schedule_requests_deletes_that_are_not_a_dry_run(world: World) -> None:
    world.add([Event(person(1))])
    world.request(RequestKind.TEAM, 1, [""], at(1))
    with (
        dg.instance_for_test() as instance,
        dg.build_schedule_context(instance=instance, scheduled_execution_time=NOW) as context,
    ):
        (request,) = deletes_schedule.evaluate_tick(context).run_requests or []
    metadata = run(world, dict(request.run_config))
    assert metadata["requests_done"] == 1
    assert metadata["events_rows_deleted"] == 1
    assert list_requests(world.postgres)[0].state is RequestState.DONE
    assert world.persons() == {}


def after_a_squash(world: World, *, dry_run: bool) -> dg.RunRequest | dg.SkipReason:
    config = {"ops": {"squash_overrides": {"config": {"dry_run": dry_run}}}}
    with dg.DagsterInstance.ephemeral() as instance:
        result = squash_person_overrides.execute_in_process(
            config,
            instance=instance,
            resources={"clickhouse": clickhouse_resource(world.cluster), "postgres": postgres_resource(world.postgres)},
        )
        (success,) = (event for event in result.all_events if event.is_job_success)
        context = dg.build_run_status_sensor_context(
            sensor_name="start_deletes_after_squash",
            dagster_event=success,
            dagster_instance=instance,
            dagster_run=result.dagster_run,
        )
        answer = start_deletes_after_squash(context)
    assert isinstance(answer, dg.RunRequest | dg.SkipReason)
    return answer


def test_deletes_follow_a_squash_once_and_not_a_dry_run_of_it(world: World) -> None:
    request = after_a_squash(world, dry_run=False)
    assert isinstance(request, dg.RunRequest)
    assert request.run_key
    assert request.run_config["ops"]["process_deletion_requests"]["config"]["dry_run"] is False
    assert isinstance(after_a_squash(world, dry_run=True), dg.SkipReason)


def test_deletes_and_the_web_tables_never_run_at_the_same_time() -> None:
    (op,) = deletes_job.nodes
    assert op.definition.pools == {POOL}
