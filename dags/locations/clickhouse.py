"""Maintenance of ClickHouse and of the data in it: schema, squashes, deletes."""

from dags.common.owners import JobOwners
from dags.deletes.jobs import deletes_job, deletes_schedule, start_deletes_after_squash
from dags.locations import build_definitions
from dags.maintenance.clickhouse_schema import clickhouse_schema_job
from dags.maintenance.orphaned_rewrites import cleanup_orphaned_rewrites_job, cleanup_orphaned_rewrites_schedule
from dags.person_overrides.jobs import squash_person_overrides, squash_person_overrides_schedule

defs = build_definitions(
    owner=JobOwners.TEAM_CLICKHOUSE,
    jobs=[cleanup_orphaned_rewrites_job, clickhouse_schema_job, deletes_job, squash_person_overrides],
    schedules=[cleanup_orphaned_rewrites_schedule, deletes_schedule, squash_person_overrides_schedule],
    sensors=[start_deletes_after_squash],
)
