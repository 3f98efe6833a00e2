"""The embedded stack: ClickHouse, S3 and Postgres as processes of this machine, with no Docker.

What belongs here: starting, watching, stopping and erasing local services. What does not: anything that production
runs; nothing outside this package and the tests imports it. `python -m dags.local` is the command; see `stack` next.
"""
