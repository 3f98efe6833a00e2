"""The job that squashes, its weekly schedule, and the janitor of what dead squashes and deletes have left.

Belongs here: run config, metadata, when what runs. Not here: the work (`squash.py`).
"""

import datetime as dt
import json

import dagster as dg
from pydantic import Field

from dags.common import deletion_requests
from dags.common.clickhouse.rewrites import as_markdown, drop_leftovers, partitions_of, total
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.resources import ClickhouseResource, PostgresResource
from dags.common.rewrite_runs import LOCK_WAIT_SECONDS, RUN_SECONDS, rewriting
from dags.common.schedules import skip_if_already_running
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.person_overrides.squash import Squashed, squash

OWNER = JobOwners.TEAM_CLICKHOUSE
# What events of people who were just merged are on their way is in by then, with the old person or the new.
CUTOFF_DAYS = 2.0


class SquashConfig(dg.Config):
    """What a run of the squash may be told."""

    dry_run: bool = Field(default=True, description="Count what would be rewritten, and change nothing.")
    cutoff_days: float = Field(
        default=CUTOFF_DAYS, ge=0, description="Overrides younger than this, in days, are left for a later run."
    )
    lock_wait_seconds: float = Field(
        default=LOCK_WAIT_SECONDS, gt=0, description="How long to wait for another run that rewrites events."
    )


@dg.op(tags=owner_tags(OWNER))
def squash_overrides(
    context: dg.OpExecutionContext,
    config: SquashConfig,
    clickhouse: ClickhouseResource,
    postgres: PostgresResource,
) -> None:
    """Writes the persons of the overrides into the events, and removes the overrides that were applied."""
    database = postgres.client()
    deletion_requests.prepare(database)
    with rewriting(context, clickhouse.cluster(context), database, lock_wait_seconds=config.lock_wait_seconds) as job:
        cutoff = dt.datetime.now(dt.UTC) - dt.timedelta(days=config.cutoff_days)
        hold_back = deletion_requests.earliest_person_requests(database)
        squashed = squash(job, cutoff=cutoff, hold_back=hold_back, dry_run=config.dry_run)
    context.add_output_metadata(metadata_of(squashed, cutoff))


# Not started again by itself: what its mutations have done when it died is for a person to see first.
@dg.job(**owned_by(OWNER, **{MAX_RUNTIME_TAG: str(RUN_SECONDS), MAX_RETRIES_TAG: "0", DESTRUCTIVE_TAG: "true"}))
def squash_person_overrides() -> None:
    """Writes the persons of the overrides into the events. A dry run, unless the config says otherwise."""
    squash_overrides()


@dg.op(tags=owner_tags(OWNER))
def drop_orphaned_tables(
    context: dg.OpExecutionContext,
    clickhouse: ClickhouseResource,
    postgres: PostgresResource,
) -> None:
    """Drops tables and dictionaries of squashes and deletes that died, after their mutations have ended."""
    with rewriting(context, clickhouse.cluster(context), postgres.client()) as job:
        dropped = drop_leftovers(job)
    names = "\n".join(f"- {name}" for name in dropped)
    context.add_output_metadata({"dropped": len(dropped), "names": dg.MetadataValue.md(names or "Nothing.")})


@dg.job(**owned_by(OWNER, **{MAX_RUNTIME_TAG: str(RUN_SECONDS), MAX_RETRIES_TAG: "0"}))
def cleanup_orphaned_rewrites_job() -> None:
    """Drops what squashes and deletes that died have left. The next squash or delete does the same."""
    drop_orphaned_tables()


def metadata_of(squashed: Squashed, cutoff: dt.datetime) -> dict[str, dg.MetadataValue]:
    """What people see of a run: what it touched, or would have."""
    touched = total(squashed.found)
    return {
        "dry_run": dg.MetadataValue.bool(squashed.is_dry_run),
        "cutoff": dg.MetadataValue.text(f"{cutoff:%Y-%m-%d %H:%M:%S} UTC"),
        "overrides": dg.MetadataValue.int(squashed.overrides),
        "tombstones": dg.MetadataValue.int(squashed.tombstones),
        "rows_touched": dg.MetadataValue.int(touched.rows),
        "parts_touched": dg.MetadataValue.int(touched.parts),
        "partitions_touched": dg.MetadataValue.int(len(partitions_of(squashed.found))),
        "touched": dg.MetadataValue.md(as_markdown(squashed.found)),
        "rows_rewritten": dg.MetadataValue.int(squashed.rows_rewritten),
        "override_rows_removed": dg.MetadataValue.int(squashed.override_rows_removed),
        "rounds": dg.MetadataValue.int(squashed.rounds),
        "teams_held_back": dg.MetadataValue.json(list(squashed.held_teams)),
        "mutations": dg.MetadataValue.json(json.loads(json.dumps(squashed.mutations))),
    }


@dg.schedule(
    job=squash_person_overrides,
    cron_schedule="0 5 * * 6",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="On Saturdays, when there is least to read. The deletes follow it.",
    **owned_by(OWNER),
)
def squash_person_overrides_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for a squash that is no dry run, unless one is not over yet."""
    reason = skip_if_already_running(context, squash_person_overrides.name)
    config = dg.RunConfig(ops={squash_overrides.name: SquashConfig(dry_run=False)})
    return reason or dg.RunRequest(run_config=config)


@dg.schedule(
    job=cleanup_orphaned_rewrites_job,
    cron_schedule="40 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Daily: a run that died leaves tables that take space, until something drops them.",
    **owned_by(OWNER),
)
def cleanup_orphaned_rewrites_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for the janitor, unless a squash is under way, which has done the same at its beginning."""
    for job_name in (squash_person_overrides.name, cleanup_orphaned_rewrites_job.name):
        reason = skip_if_already_running(context, job_name)
        if reason:
            return reason
    return dg.RunRequest()
