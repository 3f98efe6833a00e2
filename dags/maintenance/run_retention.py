"""The job that deletes old runs with their events, which Dagster keeps for ever otherwise.

Dagster deletes old ticks itself (`retention` in dagster.yaml), and a lifecycle rule of the bucket deletes logs.
"""

import datetime as dt
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dagster as dg
from dagster import DagsterRunStatus, RunsFilter
from pydantic import Field

from dags.common.kubernetes import kubernetes_resources
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.schedules import skip_if_already_running
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG

OWNER = JobOwners.TEAM_DATA_PLATFORM
# The alert router reads the last 48 hours, and the retries of these runs.
MIN_KEEP_DAYS = 7
BATCH_RUNS = 100
PAUSE_SECONDS = 0.5
FINISHED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)


@dataclass(frozen=True)
class DeletedRuns:
    """The runs that were deleted, or would have been."""

    runs: int = 0
    # Kept although old: they made the latest materialization of an asset or of a partition.
    current: int = 0
    is_complete: bool = True


class RunRetentionConfig(dg.Config):
    """Run config of the retention."""

    dry_run: bool = Field(default=True, description="Count the runs that would be deleted, and delete none.")
    keep_days: int = Field(default=90, ge=MIN_KEEP_DAYS, description="Keep the runs that ended in the last days.")
    max_runtime_minutes: float = Field(default=30, gt=0, description="Stop after this time. The next run continues.")


def delete_runs(
    instance: dg.DagsterInstance,
    before: dt.datetime,
    *,
    dry_run: bool,
    deadline: float = float("inf"),
    batch_runs: int = BATCH_RUNS,
    pause_seconds: float = PAUSE_SECONDS,
    report: Callable[[DeletedRuns], None] = lambda _: None,
) -> DeletedRuns:
    """Delete finished runs that last changed before a time, with their events, oldest first; return how many.

    Runs that made the latest materialization of an asset or of a partition stay: without them Dagster would show it as
    never materialized. The deadline is a time of `time.monotonic`. However a pass ends, the next one continues.
    `report` is called after each batch.
    """
    deleted = DeletedRuns()
    for batch in _batches(instance, RunsFilter(statuses=list(FINISHED), updated_before=before), batch_runs):
        for run_id in batch:
            if time.monotonic() >= deadline:
                return DeletedRuns(deleted.runs, deleted.current, is_complete=False)
            if _is_current(instance, run_id):
                deleted = DeletedRuns(deleted.runs, deleted.current + 1)
                continue
            if not dry_run:
                instance.delete_run(run_id)
            deleted = DeletedRuns(deleted.runs + 1, deleted.current)
        report(deleted)
        if not dry_run:
            # Let other clients of Postgres in.
            time.sleep(pause_seconds)
    return deleted


def _batches(instance: dg.DagsterInstance, filters: RunsFilter, size: int) -> Iterator[list[str]]:
    batch = _run_ids(instance, filters, None, size)
    while batch:
        # Read before this batch is deleted, because the cursor is a run that must still exist.
        following = _run_ids(instance, filters, batch[-1], size)
        yield batch
        batch = following


def _run_ids(instance: dg.DagsterInstance, filters: RunsFilter, after: str | None, limit: int) -> list[str]:
    records = instance.get_run_records(filters=filters, limit=limit, cursor=after, ascending=True)
    return [record.dagster_run.run_id for record in records]


def _is_current(instance: dg.DagsterInstance, run_id: str) -> bool:
    cursor = None
    while True:
        materializations = instance.get_records_for_run(
            run_id, cursor=cursor, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=BATCH_RUNS
        )
        if any(_is_latest(instance, record) for record in materializations.records):
            return True
        if not materializations.has_more:
            return False
        cursor = materializations.cursor


def _is_latest(instance: dg.DagsterInstance, record: dg.EventLogRecord) -> bool:
    if record.asset_key is None:
        return False
    partitions = None if record.partition_key is None else [record.partition_key]
    latest = instance.fetch_materializations(dg.AssetRecordsFilter(record.asset_key, partitions), limit=1).records
    # Compared by run, because SQLite numbers the events of each run on its own.
    return not latest or latest[0].run_id == record.run_id


@dg.op(tags=owner_tags(OWNER))
def delete_old_runs(context: dg.OpExecutionContext, config: RunRetentionConfig) -> None:
    """Delete old runs with their events."""
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=config.keep_days)
    verb = "would be deleted" if config.dry_run else "deleted"
    deleted = delete_runs(
        context.instance,
        before,
        dry_run=config.dry_run,
        deadline=time.monotonic() + config.max_runtime_minutes * 60,
        report=lambda now: context.log.info(
            f"{now.runs} runs {verb}, {now.current} kept because they made the latest materialization of an asset."
        ),
    )
    context.add_output_metadata(
        {
            "dry_run": dg.MetadataValue.bool(config.dry_run),
            "before": dg.MetadataValue.text(f"{before:%Y-%m-%d %H:%M:%S} UTC"),
            "runs_that_would_be_deleted" if config.dry_run else "runs_deleted": dg.MetadataValue.int(deleted.runs),
            "runs_kept_for_what_they_made": dg.MetadataValue.int(deleted.current),
            "is_complete": dg.MetadataValue.bool(deleted.is_complete),
        }
    )


# Not retried: the next day's run continues.
@dg.job(
    **owned_by(
        OWNER,
        **{MAX_RUNTIME_TAG: "3600", MAX_RETRIES_TAG: "0", DESTRUCTIVE_TAG: "true"},
        **kubernetes_resources("small"),
    )
)
def run_retention_job() -> None:
    """Deletes old runs with their events. A dry run unless the config says otherwise."""
    delete_old_runs()


@dg.schedule(
    job=run_retention_job,
    cron_schedule="20 4 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Daily, when few runs are in progress.",
    **owned_by(OWNER),
)
def run_retention_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request a run that deletes, unless one is still in progress."""
    config = dg.RunConfig(ops={delete_old_runs.name: RunRetentionConfig(dry_run=False)})
    return skip_if_already_running(context, run_retention_job.name) or dg.RunRequest(run_config=config)
