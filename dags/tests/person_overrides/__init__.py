"""Tests of the squash."""
