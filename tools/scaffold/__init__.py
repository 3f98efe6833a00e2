"""`make new-team`, `make new-dag` and `make check-team`: add a team or a dag, and check a team.

It edits files as text, so it also works in a project that does not load.
"""
