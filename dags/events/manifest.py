"""The manifest in the table `ingested_objects`: which objects are loaded, being loaded, or unreadable.

The version of a row is one above the highest known version of its object, so that no clock decides which of two rows is
newer. Rows are read from every host and merged, because a replica may lag.
"""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert, Query
from dags.common.clickhouse.tables import INGESTED_OBJECTS
from dags.events.objects import ObjectVersion

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# A statement may name a thousand keys, which is more than the server's default of 256 KiB.
LONG_STATEMENT = {"max_query_size": 16 * 1024**2}
COLUMNS = (
    "object",
    "etag",
    "version",
    "object_id",
    "team_id",
    "format",
    "state",
    "lines",
    "rows",
    "rows_by_day",
    "rejected_rows",
    "skipped_rows",
    "size_bytes",
    "first_timestamp",
    "last_timestamp",
    "reason",
    "run_id",
)
SELECT = f"SELECT {', '.join(COLUMNS)} FROM {INGESTED_OBJECTS.name} FINAL"  # noqa: S608 - names from code


class ObjectState(StrEnum):
    """The state of an object, as described in the comment of the column."""

    LOADING = "loading"
    LOADED = "loaded"
    REPLACED = "replaced"
    FAILED = "failed"


# Loading these again would change nothing.
FINAL_STATES = frozenset({ObjectState.LOADED, ObjectState.FAILED})


@dataclass(frozen=True)
class Entry:
    """A row of the manifest. Timestamps are UTC."""

    key: str
    etag: str
    version: int
    object_id: int
    team_id: int
    format: str
    state: ObjectState
    lines: int = 0
    rows: int = 0
    # UTC days of the events.
    rows_by_day: Mapping[dt.date, int] = field(default_factory=dict)
    rejected_rows: int = 0
    skipped_rows: Mapping[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    first_timestamp: dt.datetime = EPOCH
    last_timestamp: dt.datetime = EPOCH
    reason: str = ""
    run_id: str = ""

    @property
    def identity(self) -> tuple[str, str]:
        """Key and etag."""
        return self.key, self.etag

    def now(self, state: ObjectState, run_id: str) -> "Entry":
        """Return the next row of the object, with another state."""
        return replace(self, version=self.version + 1, state=state, run_id=run_id)

    def covering(self, leftover: "Entry | None") -> "Entry":
        """Return this entry widened by the days and times of the rows that a dead load of the same content left.

        Until these rows are removed, their bounds must stay known, and their days must count as changed.
        """
        if leftover is None or not leftover.rows:
            return self
        days = {**dict.fromkeys(leftover.rows_by_day, 0), **self.rows_by_day}
        first, last = leftover.first_timestamp, leftover.last_timestamp
        if self.rows:
            first, last = min(first, self.first_timestamp), max(last, self.last_timestamp)
        return replace(
            self, rows=max(self.rows, leftover.rows), rows_by_day=days, first_timestamp=first, last_timestamp=last
        )


Manifest = Mapping[tuple[str, str], Entry]


def read_keys(cluster: ClickhouseCluster, keys: Sequence[str]) -> Manifest:
    """Return the entries of every version of the keys."""
    if not keys:
        return {}
    return _read(cluster, Query(f"{SELECT} WHERE object IN %(keys)s", {"keys": tuple(keys)}, LONG_STATEMENT))


def read_range(cluster: ClickhouseCluster, first: str, last: str) -> Manifest:
    """Return the entries of every version of the keys from `first` to `last`, both included."""
    statement = f"{SELECT} WHERE object BETWEEN %(first)s AND %(last)s"
    return _read(cluster, Query(statement, {"first": first, "last": last}))


def read_since(cluster: ClickhouseCluster, since: dt.datetime) -> Manifest:
    """Return the entries that were written at `since` or later."""
    return _read(cluster, Query(f"{SELECT} WHERE updated_at >= %(since)s", {"since": since}))


def read_teams(cluster: ClickhouseCluster, team_ids: Collection[int], first: dt.date, last: dt.date) -> Manifest:
    """Return the entries of these teams with events between the two days, both included."""
    statement = (
        f"{SELECT} WHERE team_id IN %(team_ids)s AND toDate(first_timestamp) <= %(last)s "
        "AND toDate(last_timestamp) >= %(first)s"
    )
    return _read(cluster, Query(statement, {"team_ids": tuple(team_ids), "first": first, "last": last}))


def read_run(cluster: ClickhouseCluster, run_id: str) -> Manifest:
    """Return the entries that a run wrote last."""
    return _read(cluster, Query(f"{SELECT} WHERE run_id = %(run_id)s", {"run_id": run_id}))


def write(cluster: ClickhouseCluster, entries: Sequence[Entry], token: str) -> None:
    """Insert rows. `token` identifies this set of rows: sent twice, they are stored once."""
    if not entries:
        return
    rows = [
        (
            entry.key,
            entry.etag,
            entry.version,
            entry.object_id,
            entry.team_id,
            entry.format,
            entry.state.value,
            entry.lines,
            entry.rows,
            dict(entry.rows_by_day),
            entry.rejected_rows,
            dict(entry.skipped_rows),
            entry.size_bytes,
            entry.first_timestamp,
            entry.last_timestamp,
            entry.reason,
            entry.run_id,
        )
        for entry in entries
    ]
    cluster.any_host(Insert(INGESTED_OBJECTS.name, COLUMNS, rows, token)).result()


def merge(views: Iterable[Iterable[Entry]]) -> Manifest:
    """Return the entry with the highest version of each object, from what several hosts have."""
    merged: dict[tuple[str, str], Entry] = {}
    for view in views:
        for entry in view:
            if entry.identity not in merged or entry.version > merged[entry.identity].version:
                merged[entry.identity] = entry
    return merged


def state_of(known: Manifest, version: ObjectVersion) -> ObjectState | None:
    """Return the state of an object, or None when the manifest has no entry of it."""
    entry = known.get(version.identity)
    return None if entry is None else entry.state


def known_version(known: Manifest, version: ObjectVersion) -> int:
    """Return the version of an object's newest entry, or 0 when there is none."""
    entry = known.get(version.identity)
    return 0 if entry is None else entry.version


def _read(cluster: ClickhouseCluster, query: Query) -> Manifest:
    found = cluster.map_all_hosts(query).result()
    return merge([[_entry(row) for row in rows] for rows in found.values()])


def _entry(row: Sequence[object]) -> Entry:
    values = dict(zip(COLUMNS, row, strict=True))
    key = values.pop("object")
    state = ObjectState(str(values.pop("state")))
    return Entry(key=key, state=state, **values)  # type: ignore[arg-type]
