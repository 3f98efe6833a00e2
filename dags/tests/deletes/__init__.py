"""Tests of the deletes."""
