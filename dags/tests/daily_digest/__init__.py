"""Tests of `dags/daily_digest`."""
