"""Tests of `dags/scaffold`."""
