"""Tables of a run: filled, compared in form with the table that they are for, swapped in by partition, dropped.

Belongs here: what every job that replaces whole partitions does in the same way. Not here: what is computed (the dags),
and rewriting rows where they lie (`rewrites.py`).
"""

import contextlib
import datetime as dt
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm, Table
from dags.common.clickhouse.query import quoted

if TYPE_CHECKING:
    from clickhouse_driver import Client

# Older than any run can be: a staging table of a run that this Dagster does not know, such as another laptop's.
UNKNOWN_RUN_AGE = dt.timedelta(days=2)

STAGING_PREFIX = "staging_"
STAGING_NAME = re.compile(rf"{STAGING_PREFIX}\w+__(?P<run>\w+)__[0-9a-f]{{8}}")

STAGING_STATEMENT = """
SELECT name, dateDiff('second', metadata_modification_time, now()) FROM system.tables
WHERE database = currentDatabase() AND startsWith(name, %(prefix)s)
"""
STRUCTURE_STATEMENT = """
SELECT 'column', name, type FROM system.columns WHERE database = currentDatabase() AND table = %(table)s
UNION ALL SELECT 'key', 'partition key', partition_key FROM system.tables
WHERE database = currentDatabase() AND name = %(table)s
UNION ALL SELECT 'key', 'sorting key', sorting_key FROM system.tables
WHERE database = currentDatabase() AND name = %(table)s
"""


class StagingError(Exception):
    """What was computed is not what the tables can take. Nothing was swapped in. The message says what differs."""


def staging_name(table: Table, run_id: str) -> str:
    """A name for one attempt of a run: an earlier attempt may still be writing to its own tables."""
    return f"{STAGING_PREFIX}{table.name}__{re.sub(r'[^A-Za-z0-9]', '_', run_id)}__{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def staging(client: "Client", tables: Sequence[Table], run_id: str, database: str) -> Iterator[list[str]]:
    """Empty tables with the columns, keys and engine of these, on one node; dropped at the end of the block."""
    names = [staging_name(table, run_id) for table in tables]
    try:
        for table, name in zip(tables, names, strict=True):
            client.execute(_create_statement(table, name, database))
        yield names
    finally:
        # A client that is gone cannot drop anything: then a later run does.
        if client.connection.connected:
            for name in names:
                client.execute(f"DROP TABLE IF EXISTS {quoted(name)} SYNC")


def check_form(client: "Client", target: str, table: Table) -> None:
    """Raise StagingError when a staging table is not of the form of its table, naming each difference."""
    staged, wanted = (
        {(kind, name): value for kind, name, value in client.execute(STRUCTURE_STATEMENT, {"table": name_})}
        for name_ in (target, table.name)
    )
    different = [
        f"{name}: {wanted.get((kind, name), 'none')} in the table, {staged.get((kind, name), 'none')} in the source"
        for kind, name in sorted({*staged, *wanted})
        if staged.get((kind, name)) != wanted.get((kind, name))
    ]
    if different:
        raise StagingError(
            f"{table.name} has not the form that the schema says:\n- " + "\n- ".join(different) + "\nApply the schema: "
            "clickhouse_schema_job, or python -m dags.common.clickhouse.schema apply."
        )


def swap_statement(table: Table, target: str, day: dt.date, rows: int) -> str:
    """Puts a day's partition (`toYYYYMMDD`) of a staging table in place of the table's; without rows, drops that."""
    alter = f"ALTER TABLE {quoted(table.name)}"
    return (
        f"{alter} REPLACE PARTITION {day:%Y%m%d} FROM {quoted(target)}"
        if rows
        else f"{alter} DROP PARTITION {day:%Y%m%d}"
    )


def drop_leftovers(cluster: ClickhouseCluster, is_over: Callable[[str], bool | None]) -> list[str]:
    """Drop the staging tables of runs that are over, on every host; return their names.

    `is_over` says of a run id whether that run is over, and None when it knows no such run: then age decides.
    """

    def drop(client: "Client") -> list[str]:
        dropped = []
        for name, age_seconds in client.execute(STAGING_STATEMENT, {"prefix": STAGING_PREFIX}):
            match = STAGING_NAME.fullmatch(name)
            over = is_over(_run_id_of(match["run"])) if match else None
            if over or (over is None and age_seconds > UNKNOWN_RUN_AGE.total_seconds()):
                client.execute(f"DROP TABLE IF EXISTS {quoted(name)} SYNC")
                dropped.append(name)
        return dropped

    found = cluster.map_all_hosts(drop, retryable=True).result()
    return sorted({name for names in found.values() for name in names})


def _create_statement(table: Table, name: str, database: str) -> str:
    staged = replace(table, name=name, unreplicated_settings={}, comment=f"Staging of {table.name}.")
    return staged.create_statement(SchemaForm(database), name)


def _run_id_of(part: str) -> str:
    return part.replace("_", "-")
