"""What a table and a dictionary are, and their DDL: for one node, or for a cluster with replication.

Which ones the project has is in `tables.py`; how they are applied is in `schema.py`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from dags.common.clickhouse.query import quoted


class Placement(Enum):
    """Where the rows of a table are in a cluster."""

    EVERY_NODE = "every node has all rows"
    SHARDED = "each shard has its part, and a Distributed table of the plain name reads and writes all of them"


@dataclass(frozen=True)
class SchemaForm:
    """What the DDL is made for: a database, and the name of a cluster with Keeper; without it, one node by itself."""

    database: str
    cluster_name: str | None = None

    @property
    def on_cluster(self) -> str:
        """The clause that makes one statement run on every node, or nothing."""
        return f" ON CLUSTER {literal(self.cluster_name)}" if self.cluster_name else ""

    def full_name(self, name: str) -> str:
        """The quoted name with its database."""
        return quoted(f"{self.database}.{name}")


@dataclass(frozen=True)
class Column:
    """One column. Types are written as ClickHouse takes them; `comment` says what it holds, with its unit."""

    name: str
    type: str
    comment: str
    default: str | None = None

    def declaration(self) -> str:
        """The column as a CREATE or an ADD COLUMN names it."""
        default = f" DEFAULT {self.default}" if self.default is not None else ""
        return f"{quoted(self.name)} {self.type}{default} COMMENT {literal(self.comment)}"


@dataclass(frozen=True)
class SkipIndex:
    """What lets a query pass over granules in which an expression has none of the values it asks for.

    `expression` and `type` are written as ClickHouse prints them. Its name does not change when they do.
    """

    name: str
    expression: str
    type: str

    def declaration(self) -> str:
        """The index as a CREATE or an ADD INDEX names it."""
        return f"{quoted(self.name)} {self.expression} TYPE {self.type} GRANULARITY 1"


@dataclass(frozen=True)
class Table:
    """A table of the MergeTree family, named without `Replicated`: the clustered form adds that.

    Expressions (`partition_by`, `order_by`, `ttl`) are written as ClickHouse prints them, because an existing table is
    compared with them. `unreplicated_settings` are for the single-node form alone.
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
            raise ValueError(f"Table {self.name}: a sharded table needs a sharding_key, any other has none.")

    def stored_as(self, form: SchemaForm) -> str:
        """The name of the table that holds the rows."""
        return f"sharded_{self.name}" if form.cluster_name and self.placement is Placement.SHARDED else self.name

    def names(self, form: SchemaForm) -> tuple[str, ...]:
        """The names of everything that this table consists of, the one with the rows first."""
        stored_as = self.stored_as(form)
        return (stored_as,) if stored_as == self.name else (stored_as, self.name)

    def settings_in(self, form: SchemaForm) -> dict[str, int]:
        """The settings of the table that holds the rows."""
        return dict(self.settings) if form.cluster_name else {**self.settings, **self.unreplicated_settings}

    def create_statement(self, form: SchemaForm, name: str) -> str:
        """The CREATE TABLE of one of `names(form)`, which an existing table is safe from."""
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
            # One expression goes without parentheses: the server would print them, and the key would seem another.
            f"ORDER BY {self.order_by[0]}" if len(self.order_by) == 1 else f"ORDER BY ({', '.join(self.order_by)})",
            f"TTL {self.ttl}" if self.ttl else "",
            _settings_clause(self.settings_in(form)),
            f"COMMENT {literal(self.comment)}",
        ]
        return head + "\n".join(clause for clause in clauses if clause)

    def statements(self, form: SchemaForm) -> list[str]:
        """Every statement that makes the table where nothing is yet."""
        return [self.create_statement(form, name) for name in self.names(form)]

    def engine_in(self, form: SchemaForm) -> str:
        """The engine of the table that holds the rows, with its arguments, as ClickHouse prints it."""
        if form.cluster_name is None:
            arguments = f"({', '.join(self.engine_arguments)})" if self.engine_arguments else ""
            return self.engine + arguments
        # The nodes that share a path hold the same rows; on it, each needs a name of its own.
        group, replica = (
            ("{shard}", "{replica}") if self.placement is Placement.SHARDED else ("every_node", "{shard}-{replica}")
        )
        path = f"/clickhouse/tables/{group}/{form.database}.{self.stored_as(form)}"
        return f"Replicated{self.engine}({', '.join([literal(path), literal(replica), *self.engine_arguments])})"


@dataclass(frozen=True)
class Dictionary:
    """A dictionary that each node fills from its own tables, with a query as the server's user `default`.

    `source_query` names tables as `{database}.table`. A change of any part replaces the whole dictionary.
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
        """The one statement that makes or replaces the dictionary."""
        comment = f"{self.comment} {self.version_mark(form)}"
        return [f"{self._definition(form)}\nCOMMENT {literal(comment)}"]

    def version_mark(self, form: SchemaForm) -> str:
        """What the comment of the dictionary ends with while the server has this definition of it."""
        return f"[definition {statement_hash([self._definition(form)])}]"

    def _definition(self, form: SchemaForm) -> str:
        columns = ",\n".join(
            f"    {quoted(column.name)} {column.type}"
            + (f" DEFAULT {column.default}" if column.default is not None else "")
            for column in self.columns
        )
        query = " ".join(self.source_query.replace("{database}", quoted(form.database)).split())
        shortest, longest = self.lifetime_seconds
        clauses = [
            f"CREATE OR REPLACE DICTIONARY {form.full_name(self.name)}{form.on_cluster}\n(\n{columns}\n)",
            f"PRIMARY KEY {', '.join(map(quoted, self.primary_key))}",
            f"SOURCE(CLICKHOUSE(QUERY {literal(query)}))",
            f"LAYOUT({self.layout})",
            f"LIFETIME(MIN {shortest} MAX {longest})",
        ]
        if self.value_range is not None:
            clauses.append(f"RANGE(MIN {quoted(self.value_range[0])} MAX {quoted(self.value_range[1])})")
        return "\n".join(clauses)


SchemaObject = Table | Dictionary


def literal(text: str) -> str:
    """The text as a ClickHouse string literal. For DDL alone, where no parameter can stand, and texts from code."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def statement_hash(statements: list[str]) -> str:
    """A short hash that changes with any of the statements."""
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16]


def _settings_clause(settings: Mapping[str, int]) -> str:
    pairs = ", ".join(f"{name} = {value}" for name, value in sorted(settings.items()))
    return f"SETTINGS {pairs}" if pairs else ""
