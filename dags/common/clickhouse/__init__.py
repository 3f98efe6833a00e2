"""ClickHouse without Dagster: the cluster, retries, query tags and the schema."""
