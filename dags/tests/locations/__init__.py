"""Tests of `dags/locations`."""
