"""Staging tables of a run: created, checked against the schema, swapped in by partition, dropped.

Rewriting rows in place is in `dags/common/rewrites/`.
"""

import contextlib
import datetime as dt
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dags.common.clickhouse import leftovers
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm, Table
from dags.common.clickhouse.leftovers import Leftover
from dags.common.clickhouse.query import quoted

if TYPE_CHECKING:
    from clickhouse_driver import Client

# Longer than any run takes: decides about the staging tables of runs that this Dagster instance does not know.
MAX_RUN_AGE = dt.timedelta(days=2)

STAGING_PREFIX = "staging_"
STAGING_NAME = re.compile(rf"{STAGING_PREFIX}\w+__(?P<run>\w+)__[0-9a-f]{{8}}")

STRUCTURE_STATEMENT = """
SELECT 'column', name, type FROM system.columns WHERE database = currentDatabase() AND table = %(table)s
UNION ALL SELECT 'key', 'partition key', partition_key FROM system.tables
WHERE database = currentDatabase() AND name = %(table)s
UNION ALL SELECT 'key', 'sorting key', sorting_key FROM system.tables
WHERE database = currentDatabase() AND name = %(table)s
"""


class StagingError(Exception):
    """A staging table does not fit its table, so nothing was swapped in. The message lists the differences."""


def staging_name(table: Table, run_id: str) -> str:
    """Return a name for one attempt of a run: an earlier attempt may still write to its own tables."""
    return f"{STAGING_PREFIX}{table.name}__{re.sub(r'[^A-Za-z0-9]', '_', run_id)}__{uuid.uuid4().hex[:8]}"


@contextlib.contextmanager
def staging(client: "Client", tables: Sequence[Table], run_id: str, database: str) -> Iterator[list[str]]:
    """Create empty tables with the columns, keys and engines of these, on one host; drop them after the block."""
    names = [staging_name(table, run_id) for table in tables]
    try:
        for table, name in zip(tables, names, strict=True):
            client.execute(_create_statement(table, name, database))
        yield names
    finally:
        # Without a connection nothing can be dropped: a later run does it.
        if client.connection.connected:
            for name in names:
                client.execute(f"DROP TABLE IF EXISTS {quoted(name)} SYNC")


def check_structure(client: "Client", target: str, table: Table) -> None:
    """Raise StagingError with each difference when a staging table has other columns or keys than its table."""
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
            f"{table.name} does not match the schema:\n- " + "\n- ".join(different) + "\nApply the schema: "
            "clickhouse_schema_job, or python -m dags.common.clickhouse.schema apply."
        )


def swap_statement(table: Table, target: str, day: dt.date, rows: int) -> str:
    """Return the statement that replaces a day's partition (`toYYYYMMDD`) with that of a staging table.

    Without rows it drops the partition.
    """
    alter = f"ALTER TABLE {quoted(table.name)}"
    return (
        f"{alter} REPLACE PARTITION {day:%Y%m%d} FROM {quoted(target)}"
        if rows
        else f"{alter} DROP PARTITION {day:%Y%m%d}"
    )


def drop_leftovers(cluster: ClickhouseCluster, is_finished: Callable[[str], bool | None]) -> list[str]:
    """Drop the staging tables of finished runs, on every host; return their names.

    `is_finished` says of a run id whether the run has finished, and None when it does not know the run: then the age
    of the table decides.
    """

    def should_drop(leftover: Leftover) -> bool:
        match = STAGING_NAME.fullmatch(leftover.name)
        finished = is_finished(match["run"].replace("_", "-")) if match else None
        return finished or (finished is None and leftover.age_seconds > MAX_RUN_AGE.total_seconds())

    return leftovers.drop_leftovers(cluster, STAGING_PREFIX, should_drop)


def _create_statement(table: Table, name: str, database: str) -> str:
    staged = replace(table, name=name, unreplicated_settings={}, comment=f"Staging of {table.name}.")
    return staged.create_statement(SchemaForm(database), name)
