"""The job that drops what dead squashes and deletes left in ClickHouse, and its daily schedule. team-clickhouse."""

import dagster as dg

from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.resources import ClickhouseResource, PostgresResource
from dags.common.rewrites.run import MAX_RUN_SECONDS, REWRITE_JOBS, exclusive_rewrite
from dags.common.schedules import skip_if_already_running
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG

OWNER = JobOwners.TEAM_CLICKHOUSE


@dg.op(tags=owner_tags(OWNER))
def drop_orphaned_tables(
    context: dg.OpExecutionContext,
    clickhouse: ClickhouseResource,
    postgres: PostgresResource,
) -> None:
    """Drop the tables and dictionaries of dead squashes and deletes, after their mutations have finished."""
    with exclusive_rewrite(context, clickhouse.cluster(context), postgres.client()) as rewrite:
        dropped = rewrite.drop_leftovers()
    names = "\n".join(f"- {name}" for name in dropped)
    context.add_output_metadata({"dropped": len(dropped), "names": dg.MetadataValue.md(names or "Nothing.")})


@dg.job(**owned_by(OWNER, **{MAX_RUNTIME_TAG: str(MAX_RUN_SECONDS), MAX_RETRIES_TAG: "0"}))
def cleanup_orphaned_rewrites_job() -> None:
    """Drop what dead squashes and deletes left. The next squash or delete does the same when it starts."""
    drop_orphaned_tables()


@dg.schedule(
    job=cleanup_orphaned_rewrites_job,
    cron_schedule="40 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Daily: the tables of a dead run take space until they are dropped.",
    **owned_by(OWNER),
)
def cleanup_orphaned_rewrites_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request a cleanup, unless a squash or delete is in progress: it holds the lock, and has cleaned up already."""
    for job_name in (*REWRITE_JOBS, cleanup_orphaned_rewrites_job.name):
        reason = skip_if_already_running(context, job_name)
        if reason:
            return reason
    return dg.RunRequest()
