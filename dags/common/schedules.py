"""Whether runs are still in progress, for schedules and for cleanup."""

from collections.abc import Sequence

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter

# Statuses of a run that may still write.
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
    """Return a SkipReason if a run of the job, or of a backfill of one of the assets, is in progress; else None.

    Used as `return skip_if_already_running(context, job.name) or dg.RunRequest()`. It saves a useless run and is not a
    lock, since a run may start after the tick checked: use `locks.py` for work that must not overlap.
    """
    run_id = unfinished_run(context.instance, job_name, asset_keys)
    if run_id is None:
        return None
    return dg.SkipReason(f"Run {run_id} of {job_name} or its assets is still in progress. The next tick checks again.")


def unfinished_run(instance: dg.DagsterInstance, job_name: str, asset_keys: Sequence[dg.AssetKey] = ()) -> str | None:
    """Return the id of a run in progress, of the job or of a backfill of the assets; None if there is none."""
    wanted = set(asset_keys)
    # Few runs are unfinished at a time, so reading all of them costs little.
    for run in instance.get_runs(RunsFilter(statuses=list(UNFINISHED))):
        if run.job_name == job_name or wanted & set(run.asset_selection or ()):
            return run.run_id
    return None


def run_is_finished(instance: dg.DagsterInstance, run_id: str) -> bool | None:
    """Return whether a run has finished, with or without success; None for a run that the instance does not know."""
    run = instance.get_run_by_id(run_id)
    return None if run is None else run.is_finished
