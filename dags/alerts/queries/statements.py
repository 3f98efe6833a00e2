"""What the queries on all tables share: inserts that skip known keys, and parts of bounded size."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

# Databases limit the number of values in a statement.
MAX_ROWS_PER_STATEMENT = 500

Value = TypeVar("Value")


def chunks(values: Sequence[Value], size: int = MAX_ROWS_PER_STATEMENT) -> Iterable[Sequence[Value]]:
    """Yield the values in parts of at most that size."""
    return (values[start : start + size] for start in range(0, len(values), size))


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows whose key does not exist yet, and return how many they were."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    added = 0
    for chunk in chunks(rows):
        added += connection.execute(insert(table).values(list(chunk)).on_conflict_do_nothing()).rowcount
    return added
