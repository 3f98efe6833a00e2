"""Tests of `dags/common/clickhouse`, on the real engine."""
