"""Tables, dictionaries and views as values, and their DDL for a single node or for a cluster with replication.

The project's own are in `tables.py` and `views.py`.
"""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from dags.common.clickhouse.query import quoted

# Begins the mark in the comment of a dictionary or view; the hash of its definition follows.
VERSION_MARK = "[definition "


class Placement(Enum):
    """The hosts of a cluster that store the rows of a table."""

    EVERY_NODE = "every node has all rows"
    SHARDED = "each shard has some rows, and a Distributed table of the plain name reads and writes all shards"


@dataclass(frozen=True)
class SchemaForm:
    """The target of the DDL: a database, and the name of a cluster with Keeper; without a name, a single node."""

    database: str
    cluster_name: str | None = None

    @property
    def on_cluster(self) -> str:
        """The clause that runs a statement on every node of the cluster; empty for a single node."""
        return f" ON CLUSTER {literal(self.cluster_name)}" if self.cluster_name else ""

    def full_name(self, name: str) -> str:
        """Return the quoted name with its database."""
        return quoted(f"{self.database}.{name}")


@dataclass(frozen=True)
class Column:
    """One column. `comment` says what it holds, with its unit."""

    name: str
    type: str
    comment: str
    default: str | None = None

    def declaration(self) -> str:
        """Return the column as CREATE TABLE and ADD COLUMN take it."""
        default = f" DEFAULT {self.default}" if self.default is not None else ""
        return f"{quoted(self.name)} {self.type}{default} COMMENT {literal(self.comment)}"


@dataclass(frozen=True)
class SkipIndex:
    """A data-skipping index, by which a query skips granules without the values that it looks for.

    Write `expression` and `type` as ClickHouse prints them.
    """

    name: str
    expression: str
    type: str

    def declaration(self) -> str:
        """Return the index as CREATE TABLE and ADD INDEX take it."""
        return f"{quoted(self.name)} {self.expression} TYPE {self.type} GRANULARITY 1"


@dataclass(frozen=True)
class Table:
    """A table of the MergeTree family. Name the engine without `Replicated`: the clustered form adds it.

    Write expressions (`partition_by`, `order_by`, `ttl`) as ClickHouse prints them, because existing tables are
    compared with them. `unreplicated_settings` apply to the single-node form only.
    """

    name: str
    comment: str
    columns: tuple[Column, ...]
    engine: str
    order_by: tuple[str, ...]
    placement: Placement
    engine_arguments: tuple[str, ...] = ()
    partition_by: str = ""
    ttl: str = ""
    sharding_key: str | None = None
    settings: Mapping[str, int] = field(default_factory=dict)
    unreplicated_settings: Mapping[str, int] = field(default_factory=dict)
    skip_indexes: tuple[SkipIndex, ...] = ()

    def __post_init__(self) -> None:
        if (self.placement is Placement.SHARDED) != (self.sharding_key is not None):
            raise ValueError(f"Table {self.name}: a sharded table needs a sharding_key, any other must have none.")

    def stored_as(self, form: SchemaForm) -> str:
        """Return the name of the table that holds the rows."""
        return f"sharded_{self.name}" if form.cluster_name and self.placement is Placement.SHARDED else self.name

    def names(self, form: SchemaForm) -> tuple[str, ...]:
        """Return the names of the tables that this table consists of, the one with the rows first."""
        stored_as = self.stored_as(form)
        return (stored_as,) if stored_as == self.name else (stored_as, self.name)

    def settings_in(self, form: SchemaForm) -> dict[str, int]:
        """Return the settings of the table that holds the rows."""
        return dict(self.settings) if form.cluster_name else {**self.settings, **self.unreplicated_settings}

    def create_statement(self, form: SchemaForm, name: str) -> str:
        """Return the CREATE TABLE IF NOT EXISTS of one of `names(form)`."""
        declarations = [column.declaration() for column in self.columns]
        if name == self.stored_as(form):
            declarations += [f"INDEX {index.declaration()}" for index in self.skip_indexes]
        body = ",\n".join(f"    {declaration}" for declaration in declarations)
        head = f"CREATE TABLE IF NOT EXISTS {form.full_name(name)}{form.on_cluster}\n(\n{body}\n)\n"
        if name != self.stored_as(form):
            arguments = [literal(form.cluster_name or ""), literal(form.database), literal(self.stored_as(form))]
            engine = f"Distributed({', '.join([*arguments, self.sharding_key or ''])})"
            return f"{head}ENGINE = {engine}\nCOMMENT {literal(self.comment)}"
        clauses = [
            f"ENGINE = {self.engine_in(form)}",
            f"PARTITION BY {self.partition_by}" if self.partition_by else "",
            # A single expression has no parentheses: the server would print them, and the key would differ.
            f"ORDER BY {self.order_by[0]}" if len(self.order_by) == 1 else f"ORDER BY ({', '.join(self.order_by)})",
            f"TTL {self.ttl}" if self.ttl else "",
            _settings_clause(self.settings_in(form)),
            f"COMMENT {literal(self.comment)}",
        ]
        return head + "\n".join(clause for clause in clauses if clause)

    def statements(self, form: SchemaForm) -> list[str]:
        """Return every statement that creates the table."""
        return [self.create_statement(form, name) for name in self.names(form)]

    def engine_in(self, form: SchemaForm) -> str:
        """Return the engine of the table that holds the rows, with its arguments, as ClickHouse prints it."""
        if form.cluster_name is None:
            arguments = f"({', '.join(self.engine_arguments)})" if self.engine_arguments else ""
            return self.engine + arguments
        # Nodes with the same path hold the same rows; each needs a name of its own on it.
        group, replica = (
            ("{shard}", "{replica}") if self.placement is Placement.SHARDED else ("every_node", "{shard}-{replica}")
        )
        path = f"/clickhouse/tables/{group}/{form.database}.{self.stored_as(form)}"
        return f"Replicated{self.engine}({', '.join([literal(path), literal(replica), *self.engine_arguments])})"


@dataclass(frozen=True)
class Dictionary:
    """A dictionary that each node loads from its own tables, with a query that runs as the server's user `default`.

    `source_query` names tables as `{database}.table`. Any change replaces the whole dictionary.
    """

    name: str
    comment: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    source_query: str
    layout: str
    lifetime_seconds: tuple[int, int]
    value_range: tuple[str, str] | None = None

    def statements(self, form: SchemaForm) -> list[str]:
        """Return the statement that creates or replaces the dictionary."""
        comment = f"{self.comment} {self.version_mark(form)}"
        return [f"{self._definition(form)}\nCOMMENT {literal(comment)}"]

    def version_mark(self, form: SchemaForm) -> str:
        """Return the end of the dictionary's comment, by which the server's definition is compared with this one."""
        return f"{VERSION_MARK}{statement_hash([self._definition(form)])}]"

    def _definition(self, form: SchemaForm) -> str:
        columns = ",\n".join(
            f"    {quoted(column.name)} {column.type}"
            + (f" DEFAULT {column.default}" if column.default is not None else "")
            for column in self.columns
        )
        query = " ".join(self.source_query.replace("{database}", quoted(form.database)).split())
        min_seconds, max_seconds = self.lifetime_seconds
        clauses = [
            f"CREATE OR REPLACE DICTIONARY {form.full_name(self.name)}{form.on_cluster}\n(\n{columns}\n)",
            f"PRIMARY KEY {', '.join(map(quoted, self.primary_key))}",
            f"SOURCE(CLICKHOUSE(QUERY {literal(query)}))",
            f"LAYOUT({self.layout})",
            f"LIFETIME(MIN {min_seconds} MAX {max_seconds})",
        ]
        if self.value_range is not None:
            clauses.append(f"RANGE(MIN {quoted(self.value_range[0])} MAX {quoted(self.value_range[1])})")
        return "\n".join(clauses)


@dataclass(frozen=True)
class View:
    """A view, by default with parameters: a query reads it as a table function, `SELECT * FROM name(team = 1, …)`.

    `query` names tables as `{database}.table`, and parameters as ClickHouse does: `{team:Int64}`. ClickHouse keeps no
    comments on the columns of a view with parameters: `comment` says what they hold. Any change replaces the view.
    """

    name: str
    comment: str
    query: str

    def statements(self, form: SchemaForm) -> list[str]:
        """Return the statement that creates or replaces the view."""
        comment = f"{self.comment} {self.version_mark(form)}"
        return [f"{self._definition(form)}\nCOMMENT {literal(comment)}"]

    def version_mark(self, form: SchemaForm) -> str:
        """Return the end of the view's comment, by which the server's definition is compared with this one."""
        return f"{VERSION_MARK}{statement_hash([self.comment, self._definition(form)])}]"

    def _definition(self, form: SchemaForm) -> str:
        query = inspect.cleandoc(self.query.replace("{database}", quoted(form.database)))
        return f"CREATE OR REPLACE VIEW {form.full_name(self.name)}{form.on_cluster} AS\n{query}"


SchemaObject = Table | Dictionary | View


def literal(text: str) -> str:
    """Return the text as a ClickHouse string literal: for texts from code in DDL, which takes no parameters."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def statement_hash(statements: list[str]) -> str:
    """Return a short hash of the statements."""
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16]


def _settings_clause(settings: Mapping[str, int]) -> str:
    pairs = ", ".join(f"{name} = {value}" for name, value in sorted(settings.items()))
    return f"SETTINGS {pairs}" if pairs else ""
