"""Tests of `dags/web_preaggregated`."""
