"""Events that several objects contain, such as files before and after a compaction: they survive the removal of one.

`events` keeps one of the rows of an event, so a merge may have left only the row of the object that is removed. Before
that, the other loaded objects with events of the same teams and days are read again, and their rows of these events
inserted. This converges when it is repeated, and a load that dies before the removal repeats it.
"""

import datetime as dt
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dags.common.clickhouse.query import quoted
from dags.common.clickhouse.tables import EVENTS
from dags.events.manifest import Entry, Manifest, ObjectState
from dags.events.objects import Format
from dags.events.staging import SETTINGS, StagedBatch
from dags.events.staging_table import IS_EVENT

logger = logging.getLogger(__name__)

# What makes rows the same event for the engine of the table.
EVENT_KEY = "team_id, toDate(timestamp), event, distinct_id, uuid"

CREATE_STATEMENT = """
CREATE TABLE {lost} (team_id Int64, day Date, event String, distinct_id String, uuid UUID, is_leftover Bool)
ENGINE = MergeTree ORDER BY (team_id, day)
"""
FILL_STATEMENT = """
INSERT INTO {lost} SELECT DISTINCT {key}, object_id IN %(leftovers)s FROM {events} WHERE object_id IN %(ids)s
    AND timestamp >= toDateTime64(%(first)s, 6, 'UTC') AND timestamp <= toDateTime64(%(last)s, 6, 'UTC')
"""
# The new content of a replaced object has most of its events. But the new rows of a load that died are removed before
# they are inserted, so all events of these count.
LOST = """
is_leftover OR (team_id, day, event, distinct_id, uuid) NOT IN (
    SELECT {key} FROM {staged} WHERE {is_event} AND object IN %(objects)s
)
"""
DAYS_STATEMENT = "SELECT team_id, groupUniqArray(day) FROM {lost} WHERE {is_lost} GROUP BY team_id"


def find_lost_events(
    staged: StagedBatch, leftovers: Sequence[Entry], replaced: Sequence[Entry], objects: Sequence[str]
) -> Mapping[int, set[dt.date]]:
    """Fill the table `lost` of the batch with the events that go with these objects; return their days by team."""
    gone = [entry for entry in (*leftovers, *replaced) if entry.rows and entry.format != Format.ACCESS_LOG]
    if not gone:
        return {}
    names = _names(staged)
    staged.run(CREATE_STATEMENT.format(**names))
    parameters = {
        "ids": tuple(entry.object_id for entry in gone),
        # 0 keeps the list from being empty. No object has this id.
        "leftovers": (0, *(entry.object_id for entry in leftovers)),
        "first": f"{min(entry.first_timestamp for entry in gone):%Y-%m-%d %H:%M:%S.%f}",
        "last": f"{max(entry.last_timestamp for entry in gone):%Y-%m-%d %H:%M:%S.%f}",
    }
    staged.run(FILL_STATEMENT.format(**names), parameters, settings=SETTINGS)
    statement = DAYS_STATEMENT.format(is_lost=LOST.format(**names), **names)
    return {team_id: set(days) for team_id, days in staged.rows(statement, {"objects": tuple(objects)})}


def is_lost(staged: StagedBatch) -> str:
    """Return the condition of rows to stage that are events of the table `lost`; its parameter is `objects`."""
    names = _names(staged)
    lost = f"SELECT team_id, day, event, distinct_id, uuid FROM {names['lost']} WHERE {LOST.format(**names)}"  # noqa: S608 - names from code
    return f"{IS_EVENT} AND ({EVENT_KEY}) IN ({lost})"


def others_with_events_on(
    days: Mapping[int, set[dt.date]], loaded: Manifest, objects: Iterable[str]
) -> Iterator[Entry]:
    """Yield the loaded objects that have events of a team on its days, without the given objects."""
    without = set(objects)
    for entry in loaded.values():
        is_other = entry.state is ObjectState.LOADED and entry.key not in without
        if is_other and entry.format != Format.ACCESS_LOG and days.get(entry.team_id, set()) & _days_of(entry):
            yield entry


def _days_of(entry: Entry) -> set[dt.date]:
    """Return the days of an object's events; for an object that was loaded before they were recorded, all between."""
    if entry.rows_by_day or not entry.rows:
        return set(entry.rows_by_day)
    first, last = entry.first_timestamp.date(), entry.last_timestamp.date()
    return {first + dt.timedelta(days=n) for n in range((last - first).days + 1)}


def _names(staged: StagedBatch) -> dict[str, str]:
    return {
        "lost": quoted(staged.lost),
        "staged": quoted(staged.table),
        "events": EVENTS.name,
        "key": EVENT_KEY,
        "is_event": IS_EVENT,
    }
