"""The job that processes deletion requests, its schedule, and the sensor that starts it after a squash."""

import datetime as dt
import json
from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from dags.common import deletion_requests
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.markdown import markdown_table
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.resources import ClickhouseResource, PostgresResource
from dags.common.rewrites.matches import as_markdown, partitions_of, total
from dags.common.rewrites.run import LOCK_WAIT_SECONDS, MAX_RUN_SECONDS, exclusive_rewrite
from dags.common.schedules import skip_if_already_running
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.daily_digest.assets import analytics_digest_daily
from dags.deletes.delete import DeletionResult, process_requests
from dags.deletes.web_tables import recompute_digests, recompute_web_tables
from dags.person_overrides.jobs import squash_overrides, squash_person_overrides
from dags.web_preaggregated.assets import POOL, SESSIONS_DAILY

OWNER = JobOwners.TEAM_CLICKHOUSE
# In the metadata; all requests are in Postgres.
MAX_LISTED_REQUESTS = 50


class DeletesConfig(dg.Config):
    """Configuration of a run of deletes_job."""

    dry_run: bool = Field(default=True, description="Count what would be deleted, and change nothing.")
    lock_wait_seconds: float = Field(
        default=LOCK_WAIT_SECONDS, gt=0, description="How long to wait for another run that rewrites events."
    )


# In the pool of the web tables: a run that read an event before its deletion would write it into them again.
@dg.op(pool=POOL, tags=owner_tags(OWNER))
def process_deletion_requests(
    context: dg.OpExecutionContext,
    config: DeletesConfig,
    clickhouse: ClickhouseResource,
    postgres: PostgresResource,
) -> None:
    """Delete what the pending requests cover, count what is left, and mark the requests done with the evidence."""
    cluster, database = clickhouse.cluster(context), postgres.client()
    deletion_requests.apply_migrations(database)
    with exclusive_rewrite(context, cluster, database, lock_wait_seconds=config.lock_wait_seconds) as rewrite:
        result = process_requests(
            rewrite,
            database,
            lambda days: _recompute(context, cluster, days),
            dry_run=config.dry_run,
        )
    for request_id, reason in result.waiting.items():
        context.log.info(f"Request {request_id}: {reason}")
    context.add_output_metadata(metadata_of(result))


def _recompute(
    context: dg.OpExecutionContext, cluster: ClickhouseCluster, days: Sequence[dt.date]
) -> Sequence[dt.date]:
    """Recompute web tables and digest, so that no table has what was deleted, and log it: the exports then follow."""
    computed = recompute_web_tables(cluster, days, context.run_id)
    digests = recompute_digests(cluster, days, context.run_id)
    # The current day is no partition yet.
    closed = [day for day in computed if day < dt.datetime.now(dt.UTC).date()]
    for key, recomputed in ((SESSIONS_DAILY, closed), (analytics_digest_daily.key, digests)):
        for day in recomputed:
            context.log_event(dg.AssetMaterialization(key, partition=str(day), metadata={"because": "deletion"}))
    return computed


# Not restarted automatically: a person should see first what the mutations of a dead run have done.
@dg.job(**owned_by(OWNER, **{MAX_RUNTIME_TAG: str(MAX_RUN_SECONDS), MAX_RETRIES_TAG: "0", DESTRUCTIVE_TAG: "true"}))
def deletes_job() -> None:
    """Process the requests in the table deletion_requests. A dry run, unless the config says otherwise."""
    process_deletion_requests()


def metadata_of(result: DeletionResult) -> dict[str, dg.MetadataValue]:
    """Return the metadata of a run: what it deleted, or in a dry run would have."""
    metadata: dict[str, dg.MetadataValue] = {
        "dry_run": dg.MetadataValue.bool(result.is_dry_run),
        "requests_that_would_be_done" if result.is_dry_run else "requests_done": dg.MetadataValue.int(len(result.done)),
        "requests_waiting": dg.MetadataValue.int(len(result.waiting)),
        "days_computed_again": dg.MetadataValue.int(len(result.days_recomputed)),
        "requests": dg.MetadataValue.md(_requests_table(result)),
        "mutations": dg.MetadataValue.json(json.loads(json.dumps(result.mutations))),
    }
    for table, matches in result.matches.items():
        metadata |= {
            f"{table}_rows_touched": dg.MetadataValue.int(total(matches).rows),
            f"{table}_parts_touched": dg.MetadataValue.int(total(matches).parts),
            f"{table}_partitions_touched": dg.MetadataValue.int(len(partitions_of(matches))),
            f"{table}_touched": dg.MetadataValue.md(as_markdown(matches)),
        }
    for table, rows in result.rows_deleted.items():
        metadata[f"{table}_rows_deleted"] = dg.MetadataValue.int(rows)
    return metadata


def _requests_table(result: DeletionResult) -> str:
    rows: list[tuple[int, str, str]] = []
    for request_id in result.done[:MAX_LISTED_REQUESTS]:
        counts = ", ".join(f"{table} {count}" for table, count in result.rows_by_request[request_id].items())
        rows.append((request_id, counts, ""))
    rows += [(request_id, "", reason) for request_id, reason in list(result.waiting.items())[:MAX_LISTED_REQUESTS]]
    return markdown_table(["request", "rows", "note"], "rll", rows) or "No request is due."


def _run_request(run_key: str | None = None) -> dg.RunRequest:
    config = dg.RunConfig(ops={process_deletion_requests.name: DeletesConfig(dry_run=False)})
    return dg.RunRequest(run_key=run_key, run_config=config)


@dg.schedule(
    job=deletes_job,
    cron_schedule="0 5 * * 3",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="On Wednesdays: the requests that need not wait for the weekly squash.",
    **owned_by(OWNER),
)
def deletes_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request a run that is not a dry run, unless one is still in progress."""
    return skip_if_already_running(context, deletes_job.name) or _run_request()


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    monitored_jobs=[squash_person_overrides],
    request_job=deletes_job,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts deletes_job after each squash: requests for persons may have waited for it.",
    tags=owner_tags(OWNER),
)
def start_deletes_after_squash(context: dg.RunStatusSensorContext) -> dg.RunRequest | dg.SkipReason:
    """Request one run of deletes_job for each squash that was not a dry run."""
    run = context.dagster_run
    ops: Any = run.run_config.get("ops", {})
    if ops.get(squash_overrides.name, {}).get("config", {}).get("dry_run", True):
        return dg.SkipReason(f"Run {run.run_id} of {run.job_name} was a dry run.")
    return _run_request(run_key=f"after {run.run_id}")
