"""Forgetting old runs: Dagster keeps every run and all of its events for ever, and Postgres fills up.

Belongs here: which runs go, the job and its schedule. Not here: ticks of schedules and sensors, which Dagster purges
itself (`retention` of the instance), and what runs printed, which a lifecycle rule of the bucket removes.
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
# The alert router reads back 48 hours, and waits for retries on top of it.
FEWEST_DAYS = 7
BATCH_RUNS = 100
PAUSE_SECONDS = 0.5
OVER = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)


@dataclass(frozen=True)
class Forgotten:
    """What a pass has deleted, or would have."""

    runs: int = 0
    # Older, and kept: they made what an asset or a partition of it is now.
    current: int = 0
    is_complete: bool = True


class RunRetentionConfig(dg.Config):
    """What a run of the retention may be told."""

    dry_run: bool = Field(default=True, description="Count what would be deleted, and change nothing.")
    keep_days: int = Field(default=90, ge=FEWEST_DAYS, description="Runs that ended more recently are kept.")
    max_runtime_minutes: float = Field(
        default=30, gt=0, description="Stop after this; the next run continues from there."
    )


def forget_runs(
    instance: dg.DagsterInstance,
    before: dt.datetime,
    *,
    dry_run: bool,
    deadline: float = float("inf"),
    batch_runs: int = BATCH_RUNS,
    pause_seconds: float = PAUSE_SECONDS,
    report: Callable[[Forgotten], None] = lambda _: None,
) -> Forgotten:
    """Delete runs that were over and last changed before a time, with their events, oldest first; return how many.

    A run stays that is not over, or that made the newest version of an asset or of a partition of it: Dagster would
    take them for never made. It stops between two runs at the deadline, on the clock of `time.monotonic`; whatever way
    it is stopped, the next pass goes on. `report` hears of each batch.
    """
    forgotten = Forgotten()
    for batch in _batches(instance, RunsFilter(statuses=list(OVER), updated_before=before), batch_runs):
        for run_id in batch:
            if time.monotonic() >= deadline:
                return Forgotten(forgotten.runs, forgotten.current, is_complete=False)
            if _is_current(instance, run_id):
                forgotten = Forgotten(forgotten.runs, forgotten.current + 1)
                continue
            if not dry_run:
                instance.delete_run(run_id)
            forgotten = Forgotten(forgotten.runs + 1, forgotten.current)
        report(forgotten)
        if not dry_run:
            # Leaves Postgres time for those who wait for it.
            time.sleep(pause_seconds)
    return forgotten


def _batches(instance: dg.DagsterInstance, filters: RunsFilter, size: int) -> Iterator[list[str]]:
    batch = _run_ids(instance, filters, None, size)
    while batch:
        # Asked for before this one is deleted: Dagster finds a place in the list by a run that is there.
        following = _run_ids(instance, filters, batch[-1], size)
        yield batch
        batch = following


def _run_ids(instance: dg.DagsterInstance, filters: RunsFilter, after: str | None, limit: int) -> list[str]:
    records = instance.get_run_records(filters=filters, limit=limit, cursor=after, ascending=True)
    return [record.dagster_run.run_id for record in records]


def _is_current(instance: dg.DagsterInstance, run_id: str) -> bool:
    cursor = None
    while True:
        made = instance.get_records_for_run(
            run_id, cursor=cursor, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION, limit=BATCH_RUNS
        )
        if any(_is_newest(instance, record) for record in made.records):
            return True
        if not made.has_more:
            return False
        cursor = made.cursor


def _is_newest(instance: dg.DagsterInstance, made: dg.EventLogRecord) -> bool:
    if made.asset_key is None:
        return False
    partitions = None if made.partition_key is None else [made.partition_key]
    newest = instance.fetch_materializations(dg.AssetRecordsFilter(made.asset_key, partitions), limit=1).records
    # By run: the number of an event is another in each of SQLite's files.
    return not newest or newest[0].run_id == made.run_id


@dg.op(tags=owner_tags(OWNER))
def delete_old_runs(context: dg.OpExecutionContext, config: RunRetentionConfig) -> None:
    """Deletes runs that ended long ago, with their events."""
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=config.keep_days)
    verb = "would be deleted" if config.dry_run else "deleted"
    forgotten = forget_runs(
        context.instance,
        before,
        dry_run=config.dry_run,
        deadline=time.monotonic() + config.max_runtime_minutes * 60,
        report=lambda now: context.log.info(f"{now.runs} runs {verb}, {now.current} kept for what they made."),
    )
    context.add_output_metadata(
        {
            "dry_run": dg.MetadataValue.bool(config.dry_run),
            "before": dg.MetadataValue.text(f"{before:%Y-%m-%d %H:%M:%S} UTC"),
            "runs_that_would_be_deleted" if config.dry_run else "runs_deleted": dg.MetadataValue.int(forgotten.runs),
            "runs_kept_for_what_they_made": dg.MetadataValue.int(forgotten.current),
            "is_complete": dg.MetadataValue.bool(forgotten.is_complete),
        }
    )


# Not tried again by itself: the next day's run does what is left.
@dg.job(
    **owned_by(
        OWNER,
        **{MAX_RUNTIME_TAG: "3600", MAX_RETRIES_TAG: "0", DESTRUCTIVE_TAG: "true"},
        **kubernetes_resources("small"),
    )
)
def run_retention_job() -> None:
    """Deletes runs that ended long ago, with their events. A dry run, unless the config says otherwise."""
    delete_old_runs()


@dg.schedule(
    job=run_retention_job,
    cron_schedule="20 4 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Daily, when few runs are under way.",
    **owned_by(OWNER),
)
def run_retention_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for a pass that is no dry run, unless one is not over yet."""
    config = dg.RunConfig(ops={delete_old_runs.name: RunRetentionConfig(dry_run=False)})
    return skip_if_already_running(context, run_retention_job.name) or dg.RunRequest(run_config=config)
