"""The care of ClickHouse itself. team-clickhouse."""

from dags.clickhouse_schema import clickhouse_schema_job
from dags.locations import build_definitions

defs = build_definitions(jobs=[clickhouse_schema_job])
