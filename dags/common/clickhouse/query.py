"""Calls for a cluster as values: a query or an insert, which knows whether it may be sent twice."""

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
    """Return the identifier in backticks; `database.table` is quoted part by part.

    Raises ValueError unless each part has only letters, digits and underscores: identifiers come from code.
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

    `parameters` fill the `%(name)s` of the statement. `retryable` is whether the statement may be sent twice. By
    default only a statement that reads is; set True for `CREATE … IF NOT EXISTS` and the like. `external_tables`, as
    clickhouse-driver takes them, are sent apart from the statement, so no log has their rows.
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
        """Run the statement on the client."""
        parameters = None if self.parameters is None else dict(self.parameters)
        tables = [dict(table) for table in self.external_tables] or None
        rows: Rows = client.execute(self.statement, parameters, settings=dict(self.settings), external_tables=tables)
        return rows


@dataclass(frozen=True)
class Insert:
    """Rows to insert into one table; the result is their number.

    They may be sent twice only with a `deduplication_token`, which identifies one set of rows: the server then drops
    the second copy if the table keeps tokens (replicated tables do; others need `non_replicated_deduplication_window`).
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
        """Insert the rows with the client."""
        settings = dict(self.settings)
        if self.deduplication_token is not None:
            settings["insert_deduplication_token"] = self.deduplication_token
        columns = ", ".join(quoted(column) for column in self.columns)
        statement = f"INSERT INTO {quoted(self.table)} ({columns}) VALUES"
        client.execute(statement, list(self.rows), settings=settings)
        return len(self.rows)
