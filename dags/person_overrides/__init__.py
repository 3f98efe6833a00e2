"""Squashing: the persons of the overrides are written into the events, and the overrides go.

`squash.py` does it; `job.py` has the job, its schedule and the janitor of it and of the deletes.
"""
