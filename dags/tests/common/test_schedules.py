from collections.abc import Iterator

import dagster as dg
import pytest

from dags.common.schedules import UNFINISHED, skip_if_already_running

JOB = "squash_job"
KEY = dg.AssetKey("squashed")


@pytest.fixture
def context() -> Iterator[dg.ScheduleEvaluationContext]:
    # A tick opens the instance by its address, so it cannot be in memory.
    with dg.instance_for_test() as instance, dg.build_schedule_context(instance=instance) as value:
        yield value


# A queued run needs a code location.
@pytest.mark.parametrize("status", [one for one in UNFINISHED if one is not dg.DagsterRunStatus.QUEUED])
def test_a_tick_is_skipped_while_a_run_of_the_job_is_in_progress(
    context: dg.ScheduleEvaluationContext, status: dg.DagsterRunStatus
) -> None:
    run = context.instance.add_run(dg.DagsterRun(JOB, status=status))
    reason = skip_if_already_running(context, JOB)
    assert reason is not None
    assert (
        reason.skip_message
        == f"Run {run.run_id} of {JOB} or its assets is still in progress. The next tick checks again."
    )


def test_a_backfill_of_the_same_assets_counts_too(context: dg.ScheduleEvaluationContext) -> None:
    started = dg.DagsterRunStatus.STARTED
    context.instance.add_run(dg.DagsterRun("__ASSET_JOB", status=started, asset_selection=frozenset({KEY})))
    assert skip_if_already_running(context, JOB) is None
    assert skip_if_already_running(context, JOB, [KEY]) is not None


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
)
def test_finished_runs_and_runs_of_other_jobs_do_not_matter(
    context: dg.ScheduleEvaluationContext, status: dg.DagsterRunStatus
) -> None:
    context.instance.add_run(dg.DagsterRun(JOB, status=status))
    context.instance.add_run(dg.DagsterRun("another_job", status=dg.DagsterRunStatus.STARTED))
    assert skip_if_already_running(context, JOB, [KEY]) is None
