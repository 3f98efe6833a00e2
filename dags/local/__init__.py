"""The embedded stack: ClickHouse, S3 and Postgres as processes of this machine, without Docker.

Only this package and the tests import it. `python -m dags.local` is the command; `stack` is where it starts.
"""
