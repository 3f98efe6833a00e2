"""Publishing staged objects: their rows go into `events` and `events_rejected`, and their states into the manifest."""

import datetime as dt
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm, Table
from dags.common.clickhouse.query import Query, quoted
from dags.common.clickhouse.tables import EVENTS, EVENTS_REJECTED
from dags.common.locks import Lock
from dags.events import access_logs, manifest, visits
from dags.events.accounting import new_entry
from dags.events.manifest import LONG_STATEMENT, Entry, Manifest, ObjectState
from dags.events.objects import Format, ObjectProblem, ObjectVersion
from dags.events.staging import SETTINGS, StagedBatch
from dags.events.staging_table import EVENT_NAMES, IS_EVENT

logger = logging.getLogger(__name__)

REMOVAL_TIMEOUT_SECONDS = 1800.0

TEAMS_WITHOUT_SESSION = f"""
SELECT team_id, min(timestamp), max(timestamp) FROM {{table}} WHERE {visits.WITHOUT_SESSION} GROUP BY team_id
"""  # noqa: S608 - names from code


@dataclass(frozen=True)
class Publisher:
    """Publishes the objects of one staged batch. `known` is the manifest of their keys, `form` that of the schema.

    `restore` is called before the rows of objects are removed: the leftovers of dead loads, and replaced objects.
    """

    cluster: ClickhouseCluster
    form: SchemaForm
    run_id: str
    staged: StagedBatch
    known: Manifest
    restore: Callable[[Sequence[Entry], Sequence[Entry]], None]

    def publish(self, entries: Sequence[Entry], lock: Lock) -> list[Entry]:
        """Insert the staged rows of these objects, remove the rows that they replace, and return the new entries."""
        keys = {entry.key for entry in entries}
        others = [entry for entry in self.known.values() if entry.key in keys]
        leftovers = [entry for entry in others if entry.state is ObjectState.LOADING]
        replaced = [entry for entry in others if entry.state is ObjectState.LOADED]
        lock.assert_held()
        left = {entry.identity: entry for entry in leftovers}
        loading = [entry.covering(left.get(entry.identity)).now(ObjectState.LOADING, self.run_id) for entry in entries]
        manifest.write(self.cluster, loading, f"{self.staged.attempt_id}-loading")
        self.restore(leftovers, replaced)
        self._remove(leftovers)
        self.insert(loading, superseded=[entry.object_id for entry in (*leftovers, *replaced, *loading)])
        self._remove(replaced)
        lock.assert_held()
        # Without the days and times that only leftovers had.
        loaded = [entry.now(ObjectState.LOADING, self.run_id).now(ObjectState.LOADED, self.run_id) for entry in entries]
        identities = {entry.identity for entry in loaded}
        removed = [
            entry.now(ObjectState.REPLACED, self.run_id)
            for entry in (*leftovers, *replaced)
            if entry.identity not in identities
        ]
        manifest.write(self.cluster, [*loaded, *removed], f"{self.staged.attempt_id}-loaded")
        return loaded

    def record_unreadable(self, versions: Iterable[ObjectVersion], problems: Iterable[ObjectProblem]) -> None:
        """Write the objects whose content cannot be read to the manifest as failed, with their reasons."""
        reasons = {problem.key: problem.reason for problem in problems if problem.is_unreadable}
        entries = [
            new_entry(version, self.known, reason=reasons[version.key]).now(ObjectState.FAILED, self.run_id)
            for version in versions
            # A dead attempt may have left rows of it, which only a load that finds `loading` removes.
            if version.key in reasons and manifest.state_of(self.known, version) is not ObjectState.LOADING
        ]
        manifest.write(self.cluster, entries, f"{self.staged.attempt_id}-failed")

    def insert(self, entries: Sequence[Entry], superseded: Sequence[int]) -> None:
        """Insert the staged rows of the objects. Visits ignore events of the objects with the `superseded` ids."""
        objects = tuple(entry.key for entry in entries)
        names = ", ".join(EVENT_NAMES)
        into = f"INSERT INTO {EVENTS.name} ({names}) "
        table = quoted(self.staged.table)
        # 0 keeps the list from being empty. No object has this id.
        parameters = {"objects": objects, "first_log_chunk": self._first_log_chunk, "superseded": (0, *superseded)}
        if {entry.format for entry in entries} != {Format.ACCESS_LOG}:
            statement = (
                f"{into}SELECT {names} FROM {table} WHERE {IS_EVENT} AND session_id != '' "  # noqa: S608 - names from code
                "AND chunk < %(first_log_chunk)s AND object IN %(objects)s"
            )
            self.staged.run(statement, parameters, settings=self._settings("events"))
            found = self.staged.rows(TEAMS_WITHOUT_SESSION.format(table=table), parameters)
            if found:
                statement = into + visits.events_statement(self.staged.table)
                bounds = {
                    "teams": tuple(team for team, _, _ in found),
                    "first": _text(min(first for _, first, _ in found)),
                    "last": _text(max(last for _, _, last in found)),
                }
                self.staged.run(statement, {**parameters, **bounds}, settings=self._settings("visits"))
        logs = [entry for entry in entries if entry.format == Format.ACCESS_LOG and entry.rows]
        if logs:
            bounds = {
                "teams": tuple({entry.team_id for entry in logs}),
                "first": _text(min(entry.first_timestamp for entry in logs)),
                "last": _text(max(entry.last_timestamp for entry in logs)),
            }
            statement = into + access_logs.page_views_statement(self.staged.table, self.staged.agents)
            self.staged.run(statement, {**parameters, **bounds}, settings=self._settings("page-views"))
        if any(entry.rejected_rows for entry in entries):
            statement = (
                f"INSERT INTO {EVENTS_REJECTED.name} (team_id, object, line, reason, raw, object_id, run_id) "  # noqa: S608 - names from code
                "SELECT team_id, object, line, rejected_because, raw, object_id, %(run_id)s "
                f"FROM {table} WHERE rejected_because != '' AND object IN %(objects)s"
            )
            self.staged.run(statement, {"objects": objects, "run_id": self.run_id}, settings=self._settings("rejected"))

    @property
    def _first_log_chunk(self) -> int:
        """The first chunk of access logs, or the number after the last chunk."""
        first = self.staged.first_log_chunk
        return self.staged.chunks + 1 if first is None else first

    def _settings(self, what: str) -> Mapping[str, object]:
        return {
            **SETTINGS,
            "insert_deduplication_token": f"{self.staged.attempt_id}-{what}",
            # An insert into a Distributed table returns when the shards have the rows.
            "distributed_foreground_insert": 1,
            # Looking for duplicates in each block takes as long as writing it, and merges remove them anyway.
            "optimize_on_insert": 0,
        }

    def _remove(self, entries: Sequence[Entry]) -> None:
        """Remove the rows of these objects from the tables, on every host."""
        if not entries:
            return
        logger.info("Removing the rows of %s", ", ".join(f"{entry.key} {entry.etag}" for entry in entries))
        ids = tuple(entry.object_id for entry in entries)
        with_rows = [entry for entry in entries if entry.rows]
        if with_rows:
            # The bounds on the timestamp keep the mutation out of partitions without these rows.
            parameters = {
                "ids": ids,
                "first": _text(min(entry.first_timestamp for entry in with_rows)),
                "last": _text(max(entry.last_timestamp for entry in with_rows)),
            }
            condition = (
                "object_id IN %(ids)s AND timestamp >= toDateTime64(%(first)s, 6, 'UTC') "
                "AND timestamp <= toDateTime64(%(last)s, 6, 'UTC')"
            )
            self._delete(EVENTS, condition, parameters)
        if any(entry.rejected_rows for entry in entries):
            self._delete(EVENTS_REJECTED, "object_id IN %(ids)s", {"ids": ids})

    def _delete(self, table: Table, condition: str, parameters: Mapping[str, object]) -> None:
        name = quoted(table.stored_as(self.form))
        query = Query(f"DELETE FROM {name} WHERE {condition}", parameters, LONG_STATEMENT, retryable=True)  # noqa: S608 - names from code
        self.cluster.map_all_hosts(query, timeout_seconds=REMOVAL_TIMEOUT_SECONDS).result()


def _text(timestamp: dt.datetime) -> str:
    return f"{timestamp:%Y-%m-%d %H:%M:%S.%f}"
