"""The queries on single values that live as long as the store."""

import sqlalchemy as sa

from dags.alerts.queries.statements import insert_new
from dags.alerts.tables import stored_values


def get_value(connection: sa.Connection, name: str) -> str | None:
    """Return a stored value, None when it was never set."""
    return connection.execute(sa.select(stored_values.c.value).where(stored_values.c.name == name)).scalar()


def set_value(connection: sa.Connection, name: str, value: str) -> None:
    """Store a value under a name, in place of an earlier one."""
    insert_new(connection, stored_values, [{"name": name, "value": value}])
    connection.execute(sa.update(stored_values).where(stored_values.c.name == name).values(value=value))
