"""The job that deletes what was asked for, its schedule, and the sensor that starts it after a squash.

Belongs here: run config, metadata, when what runs. Not here: the work (`delete.py`).
"""

import json
from typing import Any

import dagster as dg
from pydantic import Field

from dags.common import deletion_requests
from dags.common.clickhouse.rewrites import as_markdown, partitions_of, total
from dags.common.markdown import markdown_table
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.resources import ClickhouseResource, PostgresResource
from dags.common.rewrite_runs import LOCK_WAIT_SECONDS, RUN_SECONDS, rewriting
from dags.common.schedules import skip_if_already_running
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.deletes.delete import Deleted, delete_requested
from dags.deletes.web_tables import compute_web_tables_again
from dags.person_overrides.jobs import squash_overrides, squash_person_overrides
from dags.web_preaggregated.assets import POOL

OWNER = JobOwners.TEAM_CLICKHOUSE
# In the UI; the rest is in Postgres.
MOST_SHOWN = 50


class DeletesConfig(dg.Config):
    """What a run of the deletes may be told."""

    dry_run: bool = Field(default=True, description="Count what would be deleted, and change nothing.")
    lock_wait_seconds: float = Field(
        default=LOCK_WAIT_SECONDS, gt=0, description="How long to wait for another run that rewrites events."
    )


# In the pool of the web tables: one of theirs that has read an event before it goes would bring it back into them.
@dg.op(pool=POOL, tags=owner_tags(OWNER))
def process_deletion_requests(
    context: dg.OpExecutionContext,
    config: DeletesConfig,
    clickhouse: ClickhouseResource,
    postgres: PostgresResource,
) -> None:
    """Deletes what the pending requests cover, counts what is left, and marks them done with the evidence."""
    cluster, database = clickhouse.cluster(context), postgres.client()
    deletion_requests.prepare(database)
    with rewriting(context, cluster, database, lock_wait_seconds=config.lock_wait_seconds) as job:
        deleted = delete_requested(
            job,
            database,
            lambda days: compute_web_tables_again(cluster, days, context.run_id),
            dry_run=config.dry_run,
        )
    for request_id, why in deleted.waiting.items():
        context.log.info(f"Request {request_id}: {why}")
    context.add_output_metadata(metadata_of(deleted))


# Not started again by itself: what its mutations have done when it died is for a person to see first.
@dg.job(**owned_by(OWNER, **{MAX_RUNTIME_TAG: str(RUN_SECONDS), MAX_RETRIES_TAG: "0", DESTRUCTIVE_TAG: "true"}))
def deletes_job() -> None:
    """Deletes what was asked for in deletion_requests. A dry run, unless the config says otherwise."""
    process_deletion_requests()


def metadata_of(deleted: Deleted) -> dict[str, dg.MetadataValue]:
    """What people see of a run: what it touched, or would have."""
    metadata: dict[str, dg.MetadataValue] = {
        "dry_run": dg.MetadataValue.bool(deleted.is_dry_run),
        "requests_that_would_be_done" if deleted.is_dry_run else "requests_done": dg.MetadataValue.int(
            len(deleted.done)
        ),
        "requests_waiting": dg.MetadataValue.int(len(deleted.waiting)),
        "days_computed_again": dg.MetadataValue.int(len(deleted.days_computed_again)),
        "requests": dg.MetadataValue.md(_requests_table(deleted)),
        "mutations": dg.MetadataValue.json(json.loads(json.dumps(deleted.mutations))),
    }
    for table, found in deleted.found.items():
        metadata |= {
            f"{table}_rows_touched": dg.MetadataValue.int(total(found).rows),
            f"{table}_parts_touched": dg.MetadataValue.int(total(found).parts),
            f"{table}_partitions_touched": dg.MetadataValue.int(len(partitions_of(found))),
            f"{table}_touched": dg.MetadataValue.md(as_markdown(found)),
        }
    for table, rows in deleted.rows_deleted.items():
        metadata[f"{table}_rows_deleted"] = dg.MetadataValue.int(rows)
    return metadata


def _requests_table(deleted: Deleted) -> str:
    rows: list[tuple[int, str, str]] = []
    for request_id in deleted.done[:MOST_SHOWN]:
        counts = ", ".join(f"{table} {count}" for table, count in deleted.rows_by_request[request_id].items())
        rows.append((request_id, counts, ""))
    rows += [(request_id, "", why) for request_id, why in list(deleted.waiting.items())[:MOST_SHOWN]]
    return markdown_table(["request", "rows", "note"], "rll", rows) or "No request is due."


def _request(run_key: str | None = None) -> dg.RunRequest:
    config = dg.RunConfig(ops={process_deletion_requests.name: DeletesConfig(dry_run=False)})
    return dg.RunRequest(run_key=run_key, run_config=config)


@dg.schedule(
    job=deletes_job,
    cron_schedule="0 5 * * 3",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="On Wednesdays: what need not wait for the squash of the week, after which the rest is done.",
    **owned_by(OWNER),
)
def deletes_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for deletes that are no dry run, unless a run is not over yet."""
    return skip_if_already_running(context, deletes_job.name) or _request()


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    monitored_jobs=[squash_person_overrides],
    request_job=deletes_job,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Deletes after each squash: requests for persons have waited for it.",
    tags=owner_tags(OWNER),
)
def start_deletes_after_squash(context: dg.RunStatusSensorContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for deletes once for each squash that was no dry run."""
    run = context.dagster_run
    ops: Any = run.run_config.get("ops", {})
    if ops.get(squash_overrides.name, {}).get("config", {}).get("dry_run", True):
        return dg.SkipReason(f"Run {run.run_id} of {run.job_name} was a dry run.")
    return _request(run_key=f"after {run.run_id}")
