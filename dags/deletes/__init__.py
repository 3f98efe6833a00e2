"""Deletion on request: of persons, teams, events by name, and single events. docs/deletes.md describes it."""
