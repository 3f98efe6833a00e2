"""Apply the schema of `tables.py` to a cluster. Run by `clickhouse_schema_job`, or by the command in `__main__.py`.

Applying it twice changes nothing. It creates missing objects, adds missing columns and indexes, and updates comments,
settings, dictionaries and views. Any other difference is an error, before anything is changed.
"""

import getpass
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import (
    VERSION_MARK,
    SchemaForm,
    SchemaObject,
    Table,
    View,
    literal,
    statement_hash,
)
from dags.common.clickhouse.discovery import access_from_settings, connect
from dags.common.clickhouse.hosts import Access
from dags.common.clickhouse.query import Insert, Query, quoted
from dags.common.clickhouse.tables import SCHEMA, SCHEMA_MIGRATIONS
from dags.common.settings import Settings

if TYPE_CHECKING:
    from clickhouse_driver import Client

EVERY_HOST = "every host, ON CLUSTER"
TABLES_STATEMENT = """
SELECT name, engine, comment, partition_key, sorting_key, engine_full FROM system.tables WHERE database = %(database)s
"""
COLUMNS_STATEMENT = """
SELECT table, name, type, comment FROM system.columns WHERE database = %(database)s ORDER BY table, position
"""
INDEXES_STATEMENT = """
SELECT table, name, expr, type_full FROM system.data_skipping_indices WHERE database = %(database)s
"""
RECORDED_STATEMENT = "SELECT object, argMax(statement_hash, applied_at) FROM schema_migrations GROUP BY object"


class SchemaConflictError(Exception):
    """The server differs from the source in a way that needs a migration by hand."""


@dataclass(frozen=True)
class SchemaChange:
    """One statement that was run for an object, or in a dry run would be; `where` is a host or all of them."""

    object_name: str
    statement: str
    where: str


@dataclass(frozen=True)
class _ExistingTable:
    engine: str
    comment: str
    partition_key: str
    sorting_key: str
    engine_full: str
    columns: dict[str, tuple[str, str]]  # name to type and comment
    skip_indexes: dict[str, tuple[str, str]]  # name to expression and type


@dataclass(frozen=True)
class _Step:
    """The statements that one object needs on one host."""

    target: SchemaObject
    statements: tuple[str, ...]
    recorded: bool


def is_clustered(settings: Settings) -> bool:
    """Return whether to use the clustered form: in production, on a named cluster. Embedded nodes have no Keeper."""
    return settings.cloud_deployment is not None and settings.clickhouse_cluster is not None


def apply_schema(
    cluster: ClickhouseCluster,
    clustered: bool,  # noqa: FBT001 - the one choice there is
    *,
    applied_by: str = "",
    dry_run: bool = False,
    schema: Sequence[SchemaObject] = SCHEMA,
) -> list[SchemaChange]:
    """Apply the schema to the cluster's database; return the statements that were run, or in a dry run would be.

    In the clustered form each statement runs once, ON CLUSTER; else the single-node form is applied on every host.
    Every host is compared first: a SchemaConflictError, inside a ClusterError that names the hosts, means that nothing
    was changed. `applied_by` is recorded in the table schema_migrations; by default it is the user and the machine.
    """
    if clustered and cluster.name is None:
        raise ValueError("The clustered schema needs a named cluster: set CLICKHOUSE_CLUSTER.")
    form = SchemaForm(cluster.database, cluster.name if clustered else None)
    applied_by = applied_by or author()

    def plan(client: "Client") -> list[_Step]:
        return _plan(client, form, schema)

    plans = cluster.map_all_hosts(plan, retryable=True).result()
    if clustered:
        steps = _merged(list(plans.values()))
        if not dry_run:
            cluster.any_host(lambda client: _run(client, form, steps, applied_by), retryable=True).result()
        return _changes(steps, EVERY_HOST)
    if not dry_run:
        # Planned again in the call, so that a retry continues where the first attempt stopped.
        cluster.map_all_hosts(lambda client: _run(client, form, plan(client), applied_by), retryable=True).result()
    return [change for host, steps in plans.items() for change in _changes(steps, str(host))]


def author() -> str:
    """Return the user and the machine of this process."""
    return f"{getpass.getuser()}@{platform.node()}"


def described(changes: Sequence[SchemaChange]) -> str:
    """Return the statements as text, each once, below its object and hosts."""
    hosts: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        hosts.setdefault((change.object_name, change.statement), []).append(change.where)
    return "\n".join(
        f"-- {object_name}, on {', '.join(where)}\n{statement};\n" for (object_name, statement), where in hosts.items()
    )


def create_database(settings: Settings) -> None:
    """Create the configured database on every host. Raises ClusterError, and what `connect` raises."""
    access = access_from_settings(settings)
    outside = Access(access.user, access.password, "default", access.secure)
    statement = f"CREATE DATABASE IF NOT EXISTS {quoted(settings.clickhouse_database)}"
    with connect(outside, settings.clickhouse_host, settings.clickhouse_port, settings.clickhouse_cluster) as cluster:
        cluster.map_all_hosts(Query(statement, retryable=True)).result()


def _plan(client: "Client", form: SchemaForm, schema: Sequence[SchemaObject]) -> list[_Step]:
    existing = _existing_tables(client, form.database)
    recorded = dict(client.execute(RECORDED_STATEMENT)) if SCHEMA_MIGRATIONS.name in existing else {}
    conflicts: list[str] = []
    steps = []
    for target in schema:
        if isinstance(target, Table):
            statements = _table_statements(client, form, target, existing, conflicts)
        else:
            found = existing.get(target.name)
            if isinstance(target, View):
                conflicts += _view_conflicts(target, found)
            current = found is not None and found.comment.endswith(target.version_mark(form))
            statements = [] if current else target.statements(form)
        is_recorded = recorded.get(target.name) == statement_hash(target.statements(form))
        steps.append(_Step(target, tuple(statements), is_recorded))
    if conflicts:
        raise SchemaConflictError("The schema was not applied:\n" + "\n".join(f"- {line}" for line in conflicts))
    return steps


def _existing_tables(client: "Client", database: str) -> dict[str, _ExistingTable]:
    columns: dict[str, dict[str, tuple[str, str]]] = {}
    for table, name, type_name, comment in client.execute(COLUMNS_STATEMENT, {"database": database}):
        columns.setdefault(table, {})[name] = (type_name, comment)
    indexes: dict[str, dict[str, tuple[str, str]]] = {}
    for table, name, expression, type_name in client.execute(INDEXES_STATEMENT, {"database": database}):
        indexes.setdefault(table, {})[name] = (expression, type_name)
    rows = client.execute(TABLES_STATEMENT, {"database": database})
    return {
        name: _ExistingTable(
            engine, comment, partition_key, sorting_key, engine_full, columns.get(name, {}), indexes.get(name, {})
        )
        for name, engine, comment, partition_key, sorting_key, engine_full in rows
    }


def _view_conflicts(view: View, found: _ExistingTable | None) -> list[str]:
    """Refuse an object of the view's name that the schema did not create, because it would be replaced."""
    if found is None or (found.engine == "View" and VERSION_MARK in found.comment):
        return []
    what = "view that the schema did not create" if found.engine == "View" else f"table of the engine {found.engine}"
    return [f"{view.name}: it is a {what}, and a view in the source. Rename it or drop it, and apply the schema again."]


def _table_statements(
    client: "Client", form: SchemaForm, table: Table, existing: dict[str, _ExistingTable], conflicts: list[str]
) -> list[str]:
    types = _canonical_types(client, table)
    statements = []
    for name in table.names(form):
        found = existing.get(name)
        if found is None:
            statements.append(table.create_statement(form, name))
            continue
        conflicts += _type_conflicts(name, types, found)
        statements += _column_statements(form, table, name, found)
        if name == table.stored_as(form):
            conflicts += _key_conflicts(form, table, name, found)
            statements += _setting_statements(form, table, name, found)
            conflicts += _index_conflicts(table, name, found)
            statements += _index_statements(form, table, name, found)
    return statements


def _canonical_types(client: "Client", table: Table) -> dict[str, str]:
    """Return the types of the source as the server prints them: `Decimal(18, 10)` for `Decimal64(10)`."""
    structure = ", ".join(f"{quoted(column.name)} {column.type}" for column in table.columns)
    # Tuples would be printed over several lines, unlike in system.columns.
    settings = {"print_pretty_type_names": 0}
    rows = client.execute("DESCRIBE TABLE null(%(structure)s)", {"structure": structure}, settings=settings)
    return {row[0]: row[1] for row in rows}


def _type_conflicts(name: str, types: dict[str, str], found: _ExistingTable) -> list[str]:
    return [
        f"{name}.{column}: its type is {found.columns[column][0]} on the server and {wanted} in the source. Convert it "
        f"by hand (ALTER TABLE {name} MODIFY COLUMN {column} {wanted}, when every value fits), or correct the source."
        for column, wanted in types.items()
        if column in found.columns and found.columns[column][0] != wanted
    ]


def _key_conflicts(form: SchemaForm, table: Table, name: str, found: _ExistingTable) -> list[str]:
    comparisons = [
        (
            "engine",
            _before(found.engine_full, (" PARTITION BY ", " PRIMARY KEY ", " ORDER BY ")),
            table.engine_in(form),
        ),
        ("partition key", found.partition_key, table.partition_by),
        ("sorting key", found.sorting_key, ", ".join(table.order_by)),
        ("TTL", _ttl_of(found.engine_full), table.ttl),
    ]
    return [
        f"{name}: its {what} is {has or 'none'} on the server and {wanted or 'none'} in the source. Create a new table "
        "and move the rows into it, or correct the source."
        for what, has, wanted in comparisons
        if "".join(has.split()) != "".join(wanted.split())
    ]


def _ttl_of(engine_full: str) -> str:
    _, found, rest = engine_full.partition(" TTL ")
    return _before(rest, (" SETTINGS ",)) if found else ""


def _before(text: str, marks: tuple[str, ...]) -> str:
    for mark in marks:
        text = text.split(mark, 1)[0]
    return text


def _column_statements(form: SchemaForm, table: Table, name: str, found: _ExistingTable) -> list[str]:
    alter = f"ALTER TABLE {form.full_name(name)}{form.on_cluster}"
    statements = []
    place = "FIRST"
    for column in table.columns:
        if column.name not in found.columns:
            statements.append(f"{alter} ADD COLUMN IF NOT EXISTS {column.declaration()} {place}")
        elif found.columns[column.name][1] != column.comment:
            statements.append(f"{alter} COMMENT COLUMN {quoted(column.name)} {literal(column.comment)}")
        place = f"AFTER {quoted(column.name)}"
    if found.comment != table.comment:
        statements.append(f"{alter} MODIFY COMMENT {literal(table.comment)}")
    return statements


def _setting_statements(form: SchemaForm, table: Table, name: str, found: _ExistingTable) -> list[str]:
    _, _, listed = found.engine_full.partition(" SETTINGS ")
    has = {pair.strip() for pair in listed.split(",")}
    return [
        f"ALTER TABLE {form.full_name(name)}{form.on_cluster} MODIFY SETTING {setting} = {value}"
        for setting, value in sorted(table.settings_in(form).items())
        if f"{setting} = {value}" not in has
    ]


def _index_conflicts(table: Table, name: str, found: _ExistingTable) -> list[str]:
    return [
        f"{name}: its index {index.name} is {' TYPE '.join(found.skip_indexes[index.name])} on the server and "
        f"{index.expression} TYPE {index.type} in the source. Drop it (ALTER TABLE {name} DROP INDEX {index.name}) and "
        "apply the schema again, or correct the source."
        for index in table.skip_indexes
        if found.skip_indexes.get(index.name, (index.expression, index.type)) != (index.expression, index.type)
    ]


def _index_statements(form: SchemaForm, table: Table, name: str, found: _ExistingTable) -> list[str]:
    """Return the missing indexes. Existing parts get them when merged, or by MATERIALIZE INDEX, run by hand."""
    return [
        f"ALTER TABLE {form.full_name(name)}{form.on_cluster} ADD INDEX IF NOT EXISTS {index.declaration()}"
        for index in table.skip_indexes
        if index.name not in found.skip_indexes
    ]


def _merged(plans: list[list[_Step]]) -> list[_Step]:
    """Return one plan for all hosts: the statements that any of them needs, each once."""
    return [
        _Step(
            target=steps[0].target,
            statements=tuple(dict.fromkeys(statement for step in steps for statement in step.statements)),
            recorded=all(step.recorded for step in steps),
        )
        for steps in zip(*plans, strict=True)
    ]


def _run(client: "Client", form: SchemaForm, steps: list[_Step], applied_by: str) -> None:
    for step in steps:
        for statement in step.statements:
            client.execute(statement)
    rows = [
        (step.target.name, statement_hash(step.target.statements(form)), list(step.statements), applied_by)
        for step in steps
        if step.statements or not step.recorded
    ]
    if rows:
        Insert(SCHEMA_MIGRATIONS.name, ("object", "statement_hash", "statements", "applied_by"), rows)(client)


def _changes(steps: list[_Step], where: str) -> list[SchemaChange]:
    return [SchemaChange(step.target.name, statement, where) for step in steps for statement in step.statements]
