"""Squashing person overrides: their persons are written into the events, then the overrides are removed."""
