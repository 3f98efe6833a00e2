"""Tests of `tools/scaffold`."""
