import dagster as dg
import pytest

from dags.common.clickhouse.query import Query
from dags.common.rewrites.rewrite import PREFIX
from dags.common.rewrites.run import REWRITE_JOBS
from dags.locations.clickhouse import defs
from dags.maintenance.orphaned_rewrites import cleanup_orphaned_rewrites_job, cleanup_orphaned_rewrites_schedule
from dags.tests.resources import clickhouse_resource, postgres_resource
from dags.tests.rewriting import World, world

__all__ = ["world"]


def test_the_job_drops_what_dead_runs_left_and_nothing_else(world: World) -> None:
    for name in (f"{PREFIX}overrides__dead__12345678", "of_another_system"):
        statement = f"CREATE TABLE {name} (one UInt8) ENGINE = MergeTree ORDER BY one"
        world.cluster.map_all_hosts(Query(statement)).result()
    resources = {"clickhouse": clickhouse_resource(world.cluster), "postgres": postgres_resource(world.postgres)}
    with dg.DagsterInstance.ephemeral() as instance:
        result = cleanup_orphaned_rewrites_job.execute_in_process(instance=instance, resources=resources)
    (output,) = result.filter_events(lambda event: event.is_successful_output)
    assert output.step_output_data.metadata["dropped"].value == 1
    assert world.run_tables() == []
    assert ("of_another_system",) in world.everywhere("SHOW TABLES")


@pytest.mark.parametrize("job_name", REWRITE_JOBS)
def test_the_schedule_skips_while_a_rewrite_is_in_progress(job_name: str) -> None:
    job = defs.get_job_def(job_name)
    with dg.instance_for_test() as instance, dg.build_schedule_context(instance=instance) as context:
        run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
        skipped = cleanup_orphaned_rewrites_schedule(context)
        assert isinstance(skipped, dg.SkipReason)
        assert run.run_id in str(skipped.skip_message)
        instance.report_run_canceled(run)
        assert isinstance(cleanup_orphaned_rewrites_schedule(context), dg.RunRequest)
