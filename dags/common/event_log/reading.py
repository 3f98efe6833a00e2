"""New events in chunks, from a position that its owner stores.

Events can become visible in another order than that of their ids, because a transaction may commit late. So a reader
starts some time before its position, and skips the events that it already has.
"""

import datetime as dt
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

from dags.common.event_log.private import EventHead, event_heads

MAX_EVENTS_PER_CHUNK = 500
# The longest time that a transaction may take to commit an event.
OVERLAP = dt.timedelta(seconds=120)


@dataclass(frozen=True)
class Position:
    """The newest event id that had been read at a time."""

    at: dt.datetime
    event_id: int


@dataclass(frozen=True)
class Chunk:
    """Events in the order of their ids. Every event before `known_until` is in this chunk or in an earlier one."""

    heads: Sequence[EventHead]
    read_at: dt.datetime
    known_until: dt.datetime


def overlap_start(positions: Sequence[Position], now: dt.datetime) -> int:
    """Return the event id after which to read. `positions` are those of recent reads, the oldest first."""
    old = [position.event_id for position in positions if position.at <= now - OVERLAP]
    return old[-1] if old else positions[0].event_id


def read_chunks(
    instance: dg.DagsterInstance,
    event_types: Collection[dg.DagsterEventType],
    after: int,
    clock: Callable[[], dt.datetime],
    until: dt.datetime,
) -> Iterator[Chunk]:
    """Yield the events after an id until none are left or the time `until` has come; at least one chunk."""
    while True:
        now = clock()
        heads = event_heads(instance, event_types, after, MAX_EVENTS_PER_CHUNK)
        is_last = len(heads) < MAX_EVENTS_PER_CHUNK
        yield Chunk(heads, now, now if is_last else min(now, *(head.at for head in heads)))
        if is_last or clock() >= until:
            return
        after = heads[-1].event_id
