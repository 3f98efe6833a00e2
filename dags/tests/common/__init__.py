"""Tests of `dags/common`."""
