"""Calls for a cluster as values: a query, or an insert. Each knows whether it may be sent twice.

A function of a client that needs more than one statement is written where it is used.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clickhouse_driver import Client


READING_STATEMENT = re.compile(r"\s*(SELECT|SHOW|DESCRIBE|DESC|EXISTS|EXPLAIN)\b", re.IGNORECASE)
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Rows = list[tuple[Any, ...]]


def quoted(identifier: str) -> str:
    """The identifier in backticks; `database.table` is quoted part by part.

    Raises ValueError when a part has anything but letters, digits and underscores: identifiers come from code.
    """
    parts = identifier.split(".")
    for part in parts:
        if not IDENTIFIER.fullmatch(part):
            raise ValueError(
                f"'{identifier}' is not an identifier: use letters, digits and underscores, not starting with a digit."
            )
    return ".".join(f"`{part}`" for part in parts)


@dataclass(frozen=True)
class Query:
    """One statement without rows to insert; the result is a list of rows.

    `parameters` fill the `%(name)s` of the statement. `retryable` is whether the statement may be sent twice: left
    out, a statement that only reads is, and any other is not. Give True for `CREATE … IF NOT EXISTS` and the like.
    `external_tables`, in clickhouse-driver's form, travel beside the statement: what is in them is in no log.
    """

    statement: str
    parameters: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    retryable: bool | None = None
    external_tables: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.retryable is None:
            object.__setattr__(self, "retryable", READING_STATEMENT.match(self.statement) is not None)

    def __call__(self, client: "Client") -> Rows:
        """Runs the statement on the client."""
        parameters = None if self.parameters is None else dict(self.parameters)
        tables = [dict(table) for table in self.external_tables] or None
        rows: Rows = client.execute(self.statement, parameters, settings=dict(self.settings), external_tables=tables)
        return rows


@dataclass(frozen=True)
class Insert:
    """Rows for one table; the result is their number.

    May be sent twice only with a `deduplication_token`: the server then drops the second copy, if the table keeps
    tokens (replicated tables do; others need `non_replicated_deduplication_window`). A token names one set of rows.
    """

    table: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]] = field(repr=False)
    deduplication_token: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def retryable(self) -> bool:
        """Whether the rows may be sent twice."""
        return self.deduplication_token is not None

    def __call__(self, client: "Client") -> int:
        """Inserts the rows with the client."""
        settings = dict(self.settings)
        if self.deduplication_token is not None:
            settings["insert_deduplication_token"] = self.deduplication_token
        columns = ", ".join(quoted(column) for column in self.columns)
        statement = f"INSERT INTO {quoted(self.table)} ({columns}) VALUES"
        client.execute(statement, list(self.rows), settings=settings)
        return len(self.rows)
