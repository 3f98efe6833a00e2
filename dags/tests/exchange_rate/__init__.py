"""Tests of `dags/exchange_rate/`."""
