"""The job that brings ClickHouse to the schema of `dags/common/clickhouse/tables.py`. team-clickhouse.

The same is done by `python -m dags.common.clickhouse.schema apply`, which also makes the database.
"""

import dagster as dg
from pydantic import Field

from dags.common.clickhouse.schema import apply_schema, described, is_clustered
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.resources import ClickhouseResource
from dags.common.settings import get_settings
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG


class ClickhouseSchemaConfig(dg.Config):
    """What a run of the job may be told."""

    dry_run: bool = Field(
        default=False, description="Show the statements in the run's log and metadata, and change nothing."
    )


@dg.op(tags=owner_tags(JobOwners.TEAM_CLICKHOUSE))
def apply_clickhouse_schema(
    context: dg.OpExecutionContext, config: ClickhouseSchemaConfig, clickhouse: ClickhouseResource
) -> None:
    """Makes what is missing, brings up to date what can be, refuses the rest before anything is changed."""
    changes = apply_schema(
        clickhouse.cluster(context),
        is_clustered(get_settings()),
        applied_by=context.run_id,
        dry_run=config.dry_run,
    )
    text = described(changes)
    context.log.info(
        f"{'Dry run, these would be run' if config.dry_run else 'Run'}: {len(changes)} statements.\n\n{text}"
    )
    context.add_output_metadata(
        {
            "dry_run": config.dry_run,
            "statement_count": len(changes),
            "statements": dg.MetadataValue.md(f"```sql\n{text}\n```"),
        }
    )


# It makes and adds, and refuses what would lose data.
@dg.job(
    **owned_by(JobOwners.TEAM_CLICKHOUSE, **{MAX_RUNTIME_TAG: "1800", MAX_RETRIES_TAG: "0", DESTRUCTIVE_TAG: "false"})
)
def clickhouse_schema_job() -> None:
    """Brings the ClickHouse database to the schema in the source. Safe to run again at any time."""
    apply_clickhouse_schema()
