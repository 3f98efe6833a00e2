"""What the reader takes from Dagster without a public interface; `test_private.py` pins its behavior."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa

if TYPE_CHECKING:
    from dagster._core.events.log import EventLogEntry

MAX_ERROR_CHARACTERS = 500


@dataclass(frozen=True)
class EventHead:
    """The columns of an event that are readable without decoding it."""

    event_id: int
    run_id: str
    event_type: str
    at: dt.datetime


class UndecodableEventError(Exception):
    """The stored text of an event is not readable by this version of Dagster."""


def event_heads(
    instance: dg.DagsterInstance, event_types: Collection[dg.DagsterEventType], after_id: int, limit: int
) -> Sequence[EventHead]:
    """Return the events of these types, of all runs, after an id and in the order of their ids.

    The public readers decode each event, which is slow where each tick reads the last two minutes again. They also skip
    what they cannot decode without an error, and on SQLite read check evaluations run by run.
    """
    table = _event_logs()
    query = (
        sa.select(table.c.id, table.c.run_id, table.c.dagster_event_type, table.c.timestamp)
        .where(table.c.dagster_event_type.in_(sorted(one.value for one in event_types)), table.c.id > after_id)
        .order_by(table.c.id)
        .limit(limit)
    )
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        rows = connection.execute(query).all()
    return [EventHead(row.id, row.run_id, row.dagster_event_type, row.timestamp.replace(tzinfo=dt.UTC)) for row in rows]


def last_event_id_before(
    instance: dg.DagsterInstance, event_types: Collection[dg.DagsterEventType], time: dt.datetime
) -> int:
    """Return the id after which all events of these types since a time are found.

    The query scans the events of these types, so a reader asks once and then keeps its position.
    """
    table = _event_logs()
    query = sa.select(sa.func.min(table.c.id)).where(
        table.c.dagster_event_type.in_(sorted(one.value for one in event_types)),
        table.c.timestamp >= time.astimezone(dt.UTC).replace(tzinfo=None),
    )
    newest = sa.select(sa.func.max(table.c.id))
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        first = connection.execute(query).scalar()
        last = connection.execute(newest).scalar() if first is None else None
    return (last or 0) if first is None else first - 1


def event_texts(instance: dg.DagsterInstance, event_ids: Collection[int]) -> Mapping[int, str]:
    """Return the stored texts of events by id, without those deleted meanwhile."""
    if not event_ids:
        return {}
    table = _event_logs()
    query = sa.select(table.c.id, table.c.event).where(table.c.id.in_(list(event_ids)))
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        return {row.id: row.event for row in connection.execute(query)}


def decode_event(text: str) -> "EventLogEntry":
    """Return the event of a stored text. Raises UndecodableEventError."""
    from dagster._core.events.log import EventLogEntry
    from dagster._serdes import deserialize_value

    try:
        return deserialize_value(text, EventLogEntry)
    except Exception as error:
        # The decoder can raise anything for a malformed text. It is the fault of one event, not of the reader.
        raise UndecodableEventError(f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARACTERS]) from error


def storage_url(instance: dg.DagsterInstance) -> str | None:
    """Return the SQLAlchemy URL, password included, of the instance's Postgres database; None when it is in files."""
    return getattr(instance.event_log_storage, "postgres_url", None)


def _event_logs() -> Any:
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    return SqlEventLogStorageTable
