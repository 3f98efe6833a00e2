"""The job that applies the schema of `dags/common/clickhouse/tables.py` to ClickHouse. team-clickhouse.

`python -m dags.common.clickhouse.schema apply` does the same, and also creates the database.
"""

import dagster as dg
from pydantic import Field

from dags.common.clickhouse.schema import apply_schema, described, is_clustered
from dags.common.clickhouse.schema.retired import drop_retired_tables
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.resources import ClickhouseResource
from dags.common.settings import get_settings
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG


class ClickhouseSchemaConfig(dg.Config):
    """Configuration of a run of the job."""

    dry_run: bool = Field(
        default=False, description="Show the statements in the run's log and metadata, and change nothing."
    )


@dg.op(tags=owner_tags(JobOwners.TEAM_CLICKHOUSE))
def apply_clickhouse_schema(
    context: dg.OpExecutionContext, config: ClickhouseSchemaConfig, clickhouse: ClickhouseResource
) -> None:
    """Create and update what can be; fail on any other difference before anything is changed."""
    cluster, clustered = clickhouse.cluster(context), is_clustered(get_settings())
    changes = apply_schema(cluster, clustered, applied_by=context.run_id, dry_run=config.dry_run)
    text = described(changes)
    context.log.info(f"{'Would run' if config.dry_run else 'Ran'} {len(changes)} statements.\n\n{text}")
    retired = drop_retired_tables(cluster, clustered, applied_by=context.run_id, dry_run=config.dry_run)
    for table in retired:
        context.log.info(f"{'Dry run: ' if config.dry_run else ''}{table}")
    context.add_output_metadata(
        {
            "dry_run": config.dry_run,
            "statement_count": len(changes),
            "statements": dg.MetadataValue.md(f"```sql\n{text}\n```"),
            **{f"retired_{table.name}": str(table) for table in retired},
        }
    )


# It creates and adds. It drops only tables whose days another one has computed from the same events.
@dg.job(
    **owned_by(JobOwners.TEAM_CLICKHOUSE, **{MAX_RUNTIME_TAG: "1800", MAX_RETRIES_TAG: "0", DESTRUCTIVE_TAG: "false"})
)
def clickhouse_schema_job() -> None:
    """Apply the schema to the ClickHouse database. Safe to repeat at any time."""
    apply_clickhouse_schema()
