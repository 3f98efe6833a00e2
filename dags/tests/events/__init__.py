"""Tests of `dags/events`."""
