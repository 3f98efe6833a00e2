"""Whether work is still under way, for schedules and for what cleans up after runs. When what runs is in each dag."""

from collections.abc import Sequence

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter

# Statuses of a run that may still do something.
UNFINISHED = (
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
)


def skip_if_already_running(
    context: dg.ScheduleEvaluationContext, job_name: str, asset_keys: Sequence[dg.AssetKey] = ()
) -> dg.SkipReason | None:
    """Return why a tick is to be skipped, with the run that does the same work; None when no run does.

    The same work is a run of the job, or of a backfill of any of the assets, which has no job name of ours:
    `return skip_if_already_running(context, job.name) or dg.RunRequest()`. A run may still begin after the tick has
    asked, so this spares a useless run and is no lock: what must not overlap takes one (`locks.py`).
    """
    run_id = unfinished_run(context.instance, job_name, asset_keys)
    if run_id is None:
        return None
    return dg.SkipReason(f"Run {run_id} does the work of {job_name} and is not over. The next tick asks again.")


def unfinished_run(instance: dg.DagsterInstance, job_name: str, asset_keys: Sequence[dg.AssetKey] = ()) -> str | None:
    """Return the id of a run that is not over yet, of the job or of a backfill of the assets; None if there is none."""
    wanted = set(asset_keys)
    # Few runs are unfinished at a time, so looking at all of them costs little.
    for run in instance.get_runs(RunsFilter(statuses=list(UNFINISHED))):
        if run.job_name == job_name or wanted & set(run.asset_selection or ()):
            return run.run_id
    return None


def run_is_over(instance: dg.DagsterInstance, run_id: str) -> bool | None:
    """Return whether a run has ended, however it did; None when the instance knows no such run."""
    run = instance.get_run_by_id(run_id)
    return None if run is None else run.is_finished
