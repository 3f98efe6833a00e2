"""The job that squashes person overrides, and its weekly schedule."""

import datetime as dt
import json

import dagster as dg
from pydantic import Field

from dags.common import deletion_requests
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.resources import ClickhouseResource, PostgresResource
from dags.common.rewrites.matches import as_markdown, partitions_of, total
from dags.common.rewrites.run import LOCK_WAIT_SECONDS, MAX_RUN_SECONDS, exclusive_rewrite
from dags.common.schedules import skip_if_already_running
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.person_overrides.squash import SquashResult, squash

OWNER = JobOwners.TEAM_CLICKHOUSE
# Late events of a person who was just merged, with the old person or the new one, have arrived by then.
CUTOFF_DAYS = 2.0


class SquashConfig(dg.Config):
    """Configuration of a run of the squash."""

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
    """Write the persons of the overrides into the events, and remove the overrides that were applied."""
    database = postgres.client()
    deletion_requests.apply_migrations(database)
    cluster = clickhouse.cluster(context)
    with exclusive_rewrite(context, cluster, database, lock_wait_seconds=config.lock_wait_seconds) as rewrite:
        cutoff = dt.datetime.now(dt.UTC) - dt.timedelta(days=config.cutoff_days)
        hold_back = deletion_requests.earliest_person_requests(database)
        result = squash(rewrite, cutoff=cutoff, hold_back=hold_back, dry_run=config.dry_run)
    context.add_output_metadata(metadata_of(result, cutoff))


# Not restarted automatically: a person should see first what the mutations of a dead run have done.
@dg.job(**owned_by(OWNER, **{MAX_RUNTIME_TAG: str(MAX_RUN_SECONDS), MAX_RETRIES_TAG: "0", DESTRUCTIVE_TAG: "true"}))
def squash_person_overrides() -> None:
    """Write the persons of the overrides into the events. A dry run, unless the config says otherwise."""
    squash_overrides()


def metadata_of(result: SquashResult, cutoff: dt.datetime) -> dict[str, dg.MetadataValue]:
    """Return the metadata of a run: what it rewrote, or in a dry run would have."""
    matched = total(result.matches)
    return {
        "dry_run": dg.MetadataValue.bool(result.is_dry_run),
        "cutoff": dg.MetadataValue.text(f"{cutoff:%Y-%m-%d %H:%M:%S} UTC"),
        "overrides": dg.MetadataValue.int(result.overrides),
        "tombstones": dg.MetadataValue.int(result.tombstones),
        "rows_touched": dg.MetadataValue.int(matched.rows),
        "parts_touched": dg.MetadataValue.int(matched.parts),
        "partitions_touched": dg.MetadataValue.int(len(partitions_of(result.matches))),
        "touched": dg.MetadataValue.md(as_markdown(result.matches)),
        "rows_rewritten": dg.MetadataValue.int(result.rows_rewritten),
        "override_rows_removed": dg.MetadataValue.int(result.override_rows_removed),
        "days_touched": dg.MetadataValue.int(len(result.days)),
        "rounds": dg.MetadataValue.int(result.rounds),
        "teams_held_back": dg.MetadataValue.json(list(result.held_teams)),
        "mutations": dg.MetadataValue.json(json.loads(json.dumps(result.mutations))),
    }


@dg.schedule(
    job=squash_person_overrides,
    cron_schedule="0 5 * * 6",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="On Saturdays, when fewest people query. deletes_job follows it.",
    **owned_by(OWNER),
)
def squash_person_overrides_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request a squash that is not a dry run, unless one is still in progress."""
    reason = skip_if_already_running(context, squash_person_overrides.name)
    config = dg.RunConfig(ops={squash_overrides.name: SquashConfig(dry_run=False)})
    return reason or dg.RunRequest(run_config=config)
