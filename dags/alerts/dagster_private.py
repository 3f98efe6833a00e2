"""What the alert engine takes from Dagster by ways that Dagster does not promise to keep.

Belongs here: such calls and nothing else, each with the reason; `test_dagster_private.py` pins what they do. All other
modules use Dagster's public interface.
"""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa

if TYPE_CHECKING:
    from dagster._core.events.log import EventLogEntry


@dataclass(frozen=True)
class EventHead:
    """What the event log knows of an event without decoding it."""

    event_id: int
    run_id: str
    event_type: str
    at: dt.datetime


class UndecodableEventError(Exception):
    """The text of an event is not what this version of Dagster can read."""


def event_heads(
    instance: dg.DagsterInstance, event_types: Collection[dg.DagsterEventType], after_id: int, limit: int
) -> Sequence[EventHead]:
    """The events of these types of all runs, in the order of their ids, after an id.

    The public readers decode each event, which makes reading the last two minutes again at each tick dear; leave out
    what they cannot decode without a word; and read check evaluations run by run on SQLite.
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
    """The id after which all events of these types since a time are found; asked once in the life of a store."""
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
    """The stored texts of events, by id. What was deleted meanwhile is missing."""
    table = _event_logs()
    query = sa.select(table.c.id, table.c.event).where(table.c.id.in_(list(event_ids)))
    with instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        return {row.id: row.event for row in connection.execute(query)}


def decoded(text: str) -> "EventLogEntry":
    """The event of a stored text. Raises UndecodableEventError."""
    from dagster._core.events.log import EventLogEntry
    from dagster._serdes import deserialize_value

    try:
        return deserialize_value(text, EventLogEntry)
    except Exception as error:
        # Whatever a strange text makes the decoder do, it is one event's fault and not the tick's.
        raise UndecodableEventError(f"{type(error).__name__}: {error}"[:500]) from error


def storage_url(instance: dg.DagsterInstance) -> str | None:
    """The SQLAlchemy URL, password included, of the instance's own Postgres database; None when it is in files."""
    return getattr(instance.event_log_storage, "postgres_url", None)


def _event_logs() -> Any:
    from dagster._core.storage.event_log.schema import SqlEventLogStorageTable

    return SqlEventLogStorageTable
