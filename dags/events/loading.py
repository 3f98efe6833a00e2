"""Loads a batch of objects into `events`, each object exactly once, whatever dies in the middle.

One batch at a time, under a lock (`exclusive`). In this order:

1. What a load that died has left is ended and dropped: its statements, its staging tables.
2. The manifest tells what is loaded already; the listing of the bucket, what the objects are now.
3. All objects of a format are read by one statement into a staging table named after the attempt. A statement that
   fails is halved until the object that cannot be read is alone; the others go on.
4. Every line of every object is accounted for, and the listing says that no object has changed meanwhile.
5. The manifest says `loading`: from here on rows may be in `events`. Those that a dead attempt left are removed.
6. One INSERT … SELECT each for events, page views and rejected lines; rows of an older content of a key are removed.
7. The manifest says `loaded`.

Until step 5 nothing but staging is touched. After it, a later load of the same object finds `loading` and begins with
the removal. Not here: what a line means, and anything of Dagster.
"""

import datetime as dt
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster, one_line
from dags.common.clickhouse.ddl import SchemaForm, Table
from dags.common.clickhouse.object_storage import ObjectQuery, ObjectStorage
from dags.common.clickhouse.query import Insert, Query, Rows, quoted
from dags.common.clickhouse.tables import EVENTS, EVENTS_REJECTED
from dags.common.locks import Lock
from dags.events import access_logs, manifest, product_events, staging
from dags.events.manifest import EPOCH, LONG_STATEMENT, Entry, Manifest, ObjectState
from dags.events.objects import Format, ObjectVersion, team_of
from dags.events.user_agents import parse_user_agents

logger = logging.getLogger(__name__)

BOT_RULE = "bot"
BLANK_RULE = "blank line"
STATEMENT_TIMEOUT_SECONDS = 4 * 3600.0
CLEANING_TIMEOUT_SECONDS = 1800.0
AGENTS_PER_INSERT = 50_000

# What the engine says about bytes that are not what the suffix promises.
UNREADABLE_CODES = {
    6: "CANNOT_PARSE_TEXT",
    27: "CANNOT_PARSE_INPUT_ASSERTION_FAILED",
    32: "ATTEMPT_TO_READ_AFTER_EOF",
    33: "CANNOT_READ_ALL_DATA",
    53: "TYPE_MISMATCH",
    70: "CANNOT_CONVERT_TYPE",
    117: "INCORRECT_DATA",
    271: "CANNOT_DECOMPRESS",
    354: "ZLIB_INFLATE_FAILED",
    561: "ZSTD_DECODER_FAILED",
    636: "CANNOT_EXTRACT_TABLE_STRUCTURE",
    1001: "STD_EXCEPTION",
}
# Not of the content: the object is gone, or may not be read.
STORAGE_CODE = 499

# Bounded memory for an object of any size: small blocks, sorting on disk, and few files open at once.
READING_SETTINGS = {
    **LONG_STATEMENT,
    "max_memory_usage": 3 * 1024**3,
    "max_bytes_before_external_sort": 256 * 1024**2,
    "max_bytes_before_external_group_by": 256 * 1024**2,
    "join_algorithm": "hash",
    "min_insert_block_size_bytes": 64 * 1024**2,
    "min_insert_block_size_rows": 262_144,
    "max_insert_block_size": 65_536,
    # Events of ten years are a hundred and twenty partitions, and all of them legitimate.
    "throw_on_max_partitions_per_insert_block": 0,
    "output_format_json_escape_forward_slashes": 0,
    "max_execution_time": int(STATEMENT_TIMEOUT_SECONDS),
}

COUNTS_STATEMENT = """
SELECT
    object, etag, any(object_id), count(), max(line), countIf({is_event}), countIf(rejected_because != ''),
    minIf(timestamp, {is_event}), maxIf(timestamp, {is_event}), anyIf(rejected_because, rejected_because != '')
FROM {table} GROUP BY object, etag
"""
SKIPPED_STATEMENT = "SELECT object, skipped_by, count() FROM {table} WHERE skipped_by != '' GROUP BY object, skipped_by"
BOTS_STATEMENT = """
SELECT object, count() FROM {table}
WHERE {is_event} AND chunk >= %(first_log_chunk)s AND agent IN (SELECT agent FROM {agents} WHERE is_bot)
GROUP BY object
"""
LEFTOVER_TABLES_STATEMENT = (
    "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, %(prefix)s)"
)
# Only statements that write into the tables: the others harm nobody.
LEFTOVER_QUERIES = "query ILIKE 'INSERT INTO %%' AND position(query, %(prefix)s) > 0"


@dataclass(frozen=True)
class Problem:
    """An object that was not loaded. `is_unreadable` is whether its content itself is at fault."""

    key: str
    reason: str
    is_unreadable: bool


@dataclass(frozen=True)
class BatchResult:
    """What became of a batch: the manifest's rows of what was loaded now, and what was not."""

    loaded: Sequence[Entry] = ()
    already_loaded: int = 0
    problems: Sequence[Problem] = ()


class Counts(NamedTuple):
    """What the staging table has of one object."""

    key: str
    etag: str
    object_id: int
    lines: int
    last_line: int
    events: int
    rejected: int
    first_timestamp: dt.datetime
    last_timestamp: dt.datetime
    one_reason: str


@dataclass(frozen=True)
class Loader:
    """What a load works with. `versions_now` lists the present versions of keys; `form` is that of the schema."""

    cluster: ClickhouseCluster
    storage: ObjectStorage
    visitor_hash_key: SecretStr
    versions_now: Callable[[Sequence[str]], Mapping[str, ObjectVersion]]
    run_id: str
    form: SchemaForm
    settings: Mapping[str, object] = field(default_factory=lambda: READING_SETTINGS)


def lock_name(cluster: ClickhouseCluster) -> str:
    """The lock that `load_batch` needs: one load at a time into one database."""
    return f"load of events into {cluster.database}"


class LinesLostError(Exception):
    """The lines of an object that were read are not those that it has."""


def load_batch(loader: Loader, keys: Sequence[str], lock: Lock, *, again: bool = False) -> BatchResult:
    """Loads the present contents of the keys that are not loaded yet. The lock is that of `lock_name`, held.

    `again` is whether objects that could not be read before are tried once more. Raises what ClickHouse, object
    storage and the lock raise; then nothing is lost, and the next load of the same keys begins anew.
    """
    end_dead_loads(loader.cluster)
    versions = loader.versions_now(keys)
    problems = [
        Problem(key, "is not in the bucket any more", is_unreadable=False) for key in keys if key not in versions
    ]
    known = manifest.read_keys(loader.cluster, sorted(versions))
    settled = {ObjectState.LOADED} if again else manifest.SETTLED
    wanted = [
        version
        for version in sorted(versions.values())
        if version.identity not in known or known[version.identity].state not in settled
    ]
    already_loaded = len(versions) - len(wanted)
    if not wanted:
        return BatchResult((), already_loaded, problems)
    attempt = _Attempt(loader, lock, uuid.uuid4().hex, known)
    try:
        loaded, failed = attempt.load(wanted)
    finally:
        attempt.drop_staging()
    return BatchResult(loaded, already_loaded, [*problems, *failed])


def end_dead_loads(cluster: ClickhouseCluster) -> None:
    """Ends the statements and drops the tables that loads which died have left. Only the holder of the lock may.

    First the tables are dropped, so that no further statement of a dead load can begin, then its statements are ended.
    """
    prefix = {"prefix": staging.PREFIX}
    for host, rows in cluster.map_all_hosts(Query(LEFTOVER_TABLES_STATEMENT, prefix)).result().items():
        for (name,) in rows:
            logger.warning("%s: dropping %s, which a load that died has left.", host, name)
            cluster.only(host).any_host(Query(f"DROP TABLE IF EXISTS {quoted(name)}", retryable=True)).result()
    deadline = time.monotonic() + CLEANING_TIMEOUT_SECONDS
    while True:
        running = Query(f"SELECT count() FROM system.processes WHERE {LEFTOVER_QUERIES}", prefix)  # noqa: S608 - names from code
        if not any(rows[0][0] for rows in cluster.map_all_hosts(running).result().values()):
            return
        if time.monotonic() > deadline:
            raise TimeoutError("A statement of a dead load does not end: look for it in system.processes, and kill it.")
        kill = Query(f"KILL QUERY WHERE {LEFTOVER_QUERIES} ASYNC", prefix, retryable=True)
        cluster.map_all_hosts(kill, timeout_seconds=CLEANING_TIMEOUT_SECONDS).result()
        time.sleep(0.2)


@dataclass
class _Attempt:
    """One attempt to load a batch. Its staging tables are on one host, where all its statements run."""

    loader: Loader
    lock: Lock
    identity: str
    known: Manifest
    chunks: int = 0

    def __post_init__(self) -> None:
        hosts = self.loader.cluster.hosts
        self.host = self.loader.cluster.only(hosts[int(self.identity, 16) % len(hosts)])
        self.table = f"{staging.PREFIX}{self.identity}"
        self.agents = f"{self.table}_agents"

    def load(self, wanted: Sequence[ObjectVersion]) -> tuple[list[Entry], list[Problem]]:
        """Returns the manifest's rows of what was loaded, and what was not."""
        self._run(staging.create_statement(self.table))
        problems: list[Problem] = []
        by_format = {kind: [version for version in wanted if version.format is kind] for kind in Format}
        for kind in (Format.JSON_LINES, Format.PARQUET):
            problems += self._stage(kind, by_format[kind])
        first_log_chunk = self.chunks + 1
        problems += self._stage(Format.ACCESS_LOG, by_format[Format.ACCESS_LOG])
        has_logs = self.chunks >= first_log_chunk
        if has_logs:
            self._parse_agents(first_log_chunk)
        failed = {problem.key for problem in problems}
        entries, more_problems = self._count(
            [version for version in wanted if version.key not in failed], first_log_chunk if has_logs else None
        )
        problems += more_problems
        failed |= {problem.key for problem in more_problems}
        problems += self._changed([version for version in wanted if version.key not in failed])
        failed |= {problem.key for problem in problems}
        good = [entry for entry in entries if entry.key not in failed]
        self._record_unreadable(wanted, [problem for problem in problems if problem.is_unreadable])
        if good:
            good = self._publish(good, first_log_chunk if has_logs else None)
        return good, problems

    def drop_staging(self) -> None:
        """Drops the tables of this attempt. What cannot be dropped now is dropped by the next load."""
        for name in (self.table, self.agents):
            try:
                self._run(f"DROP TABLE IF EXISTS {quoted(name)}", retryable=True)
            except Exception as error:  # noqa: BLE001 - the error of the load itself must not be hidden by this one
                logger.warning("%s was not dropped, the next load does it: %s", name, one_line(error))

    def _stage(self, kind: Format, versions: Sequence[ObjectVersion]) -> list[Problem]:
        """Reads objects of one format into the staging table. An object that cannot be read is found by halving."""
        from clickhouse_driver import errors

        if not versions:
            return []
        self.chunks += 1
        chunk = self.chunks
        rows = access_logs.rows_statement() if kind is Format.ACCESS_LOG else product_events.rows_statement(kind)
        keys = [version.key for version in versions]
        query = ObjectQuery(
            staging.stage_statement(self.table, rows),
            self.loader.storage,
            keys[0] if len(keys) == 1 else "{" + ",".join(keys) + "}",
            {"chunk": chunk, "bucket": self.loader.storage.bucket, **access_logs.patterns()},
            self.loader.settings,
            external_tables=[access_logs.visitor_key_table(self.loader.visitor_hash_key)]
            if kind is Format.ACCESS_LOG
            else (),
        )
        try:
            self.host.any_host(query, timeout_seconds=STATEMENT_TIMEOUT_SECONDS).result()
        except errors.ServerException as error:
            if error.code not in UNREADABLE_CODES and error.code != STORAGE_CODE:
                raise
            self._run(f"ALTER TABLE {quoted(self.table)} DROP PARTITION %(chunk)s", {"chunk": chunk})
            if len(versions) == 1:
                return [Problem(keys[0], one_line(error), is_unreadable=error.code in UNREADABLE_CODES)]
            half = len(versions) // 2
            return self._stage(kind, versions[:half]) + self._stage(kind, versions[half:])
        return []

    def _parse_agents(self, first_log_chunk: int) -> None:
        """Makes the table of the distinct agents of the staged lines."""
        self._run(
            f"CREATE TABLE {quoted(self.agents)} (agent String, browser String, os String, device_type String, "
            "is_bot Bool) ENGINE = MergeTree ORDER BY agent"
        )
        statement = (
            f"SELECT DISTINCT agent FROM {quoted(self.table)} WHERE {staging.IS_EVENT} "  # noqa: S608 - names from code
            "AND chunk >= %(first_log_chunk)s AND (agent > %(after)s OR %(is_first)s) "
            f"ORDER BY agent LIMIT {AGENTS_PER_INSERT}"
        )
        agents: list[str] = []
        is_first = True
        while is_first or len(agents) == AGENTS_PER_INSERT:
            parameters = {
                "first_log_chunk": first_log_chunk,
                "after": agents[-1] if agents else "",
                "is_first": int(is_first),
            }
            agents = [agent for (agent,) in self._rows(statement, parameters)]
            rows = [
                (agent, told.browser, told.os, told.device_type, told.is_bot)
                for agent, told in parse_user_agents(agents)
            ]
            if rows:
                columns = ("agent", "browser", "os", "device_type", "is_bot")
                self.host.any_host(Insert(self.agents, columns, rows)).result()
            is_first = False

    def _count(
        self, versions: Sequence[ObjectVersion], first_log_chunk: int | None
    ) -> tuple[list[Entry], list[Problem]]:
        """The rows of the manifest for what is staged. Raises LinesLostError when lines are missing or doubled."""
        texts = {"table": quoted(self.table), "agents": quoted(self.agents), "is_event": staging.IS_EVENT}
        skipped: dict[str, dict[str, int]] = {}
        for key, rule, lines in self._rows(SKIPPED_STATEMENT.format(**texts)):
            skipped.setdefault(key, {})[rule] = lines
        if first_log_chunk is not None:
            for key, lines in self._rows(BOTS_STATEMENT.format(**texts), {"first_log_chunk": first_log_chunk}):
                skipped.setdefault(key, {})[BOT_RULE] = lines
        found: dict[str, list[Counts]] = {}
        for counts in map(Counts._make, self._rows(COUNTS_STATEMENT.format(**texts))):
            found.setdefault(counts.key, []).append(counts)
        entries, problems = [], []
        for version in versions:
            of_object = found.get(version.key, [])
            if any(one.etag != version.etag for one in of_object):
                problems.append(_changed_problem(version.key))
                continue
            staged = of_object[0] if of_object else None
            entry = _entry(version, staged, skipped.get(version.key, {}), self._next(version))
            if staged is not None and staged.last_line != entry.lines:
                raise LinesLostError(
                    f"{version.key}: {entry.lines} lines were read, and the last one is number {staged.last_line}."
                )
            if entry.lines != entry.rows + entry.rejected_rows + sum(entry.skipped_rows.values()):
                raise LinesLostError(f"{version.key}: its {entry.lines} lines do not add up: {entry}.")
            if (
                staged is not None
                and entry.rejected_rows
                and entry.rejected_rows + entry.skipped_rows.get(BLANK_RULE, 0) == entry.lines
            ):
                reason = f"none of its {entry.lines} lines can be read: {staged.one_reason}"
                problems.append(Problem(version.key, reason, is_unreadable=True))
                continue
            entries.append(entry)
        return entries, problems

    def _changed(self, versions: Sequence[ObjectVersion]) -> list[Problem]:
        now = self.loader.versions_now([version.key for version in versions]) if versions else {}
        return [
            _changed_problem(version.key)
            for version in versions
            if version.key not in now or now[version.key].etag != version.etag
        ]

    def _publish(self, entries: Sequence[Entry], first_log_chunk: int | None) -> list[Entry]:
        """Brings the staged rows of these objects into the tables, and says so in the manifest."""
        run_id = self.loader.run_id
        keys = {entry.key for entry in entries}
        others = [entry for entry in self.known.values() if entry.key in keys]
        leftovers = [entry for entry in others if entry.state is ObjectState.LOADING]
        replaced = [entry for entry in others if entry.state is ObjectState.LOADED]
        self.lock.assert_held()
        loading = [entry.now(ObjectState.LOADING, run_id) for entry in entries]
        manifest.write(self.loader.cluster, loading, f"{self.identity}-loading")
        self._remove(leftovers)
        self._insert(loading, [entry.object_id for entry in (*leftovers, *replaced, *loading)], first_log_chunk)
        self._remove(replaced)
        self.lock.assert_held()
        loaded = [entry.now(ObjectState.LOADED, run_id) for entry in loading]
        identities = {entry.identity for entry in loaded}
        gone = [
            entry.now(ObjectState.REPLACED, run_id)
            for entry in (*leftovers, *replaced)
            if entry.identity not in identities
        ]
        manifest.write(self.loader.cluster, [*loaded, *gone], f"{self.identity}-loaded")
        return loaded

    def _insert(self, entries: Sequence[Entry], superseded: Sequence[int], first_log_chunk: int | None) -> None:
        objects = tuple(entry.key for entry in entries)
        names = ", ".join(staging.EVENT_NAMES)
        into = f"INSERT INTO {EVENTS.name} ({names}) "
        # Inserts into a Distributed table return when the shards have the rows.
        settings = {
            **self.loader.settings,
            "insert_deduplication_token": self.identity,
            "distributed_foreground_insert": 1,
            # Parts are merged anyway; to look for duplicates in each block takes as long as to write it.
            "optimize_on_insert": 0,
        }
        kinds = {entry.format for entry in entries}
        if kinds != {Format.ACCESS_LOG}:
            statement = (
                f"{into}SELECT {names} FROM {quoted(self.table)} "  # noqa: S608 - names from code
                f"WHERE {staging.IS_EVENT} AND chunk < %(first_log_chunk)s AND object IN %(objects)s"
            )
            limit = self.chunks + 1 if first_log_chunk is None else first_log_chunk
            self._run(statement, {"objects": objects, "first_log_chunk": limit}, settings=settings)
        logs = [entry for entry in entries if entry.format == Format.ACCESS_LOG and entry.rows]
        if logs:
            parameters = {
                "objects": objects,
                "teams": tuple({entry.team_id for entry in logs}),
                "first_log_chunk": first_log_chunk,
                "first": _text(min(entry.first_timestamp for entry in logs)),
                "last": _text(max(entry.last_timestamp for entry in logs)),
                # Never empty, and nothing else has this id.
                "superseded": (0, *superseded),
            }
            statement = into + access_logs.page_views_statement(self.table, self.agents)
            settings["insert_deduplication_token"] = f"{self.identity}-page-views"
            self._run(statement, parameters, settings=settings)
        if any(entry.rejected_rows for entry in entries):
            statement = (
                f"INSERT INTO {EVENTS_REJECTED.name} (team_id, object, line, reason, raw, object_id, run_id) "  # noqa: S608 - names from code
                "SELECT team_id, object, line, rejected_because, raw, object_id, %(run_id)s "
                f"FROM {quoted(self.table)} WHERE rejected_because != '' AND object IN %(objects)s"
            )
            self._run(statement, {"objects": objects, "run_id": self.loader.run_id}, settings=settings)

    def _remove(self, entries: Sequence[Entry]) -> None:
        """Removes the rows of these objects from the tables, on every host."""
        if not entries:
            return
        logger.info("Removing the rows of %s", ", ".join(f"{entry.key} {entry.etag}" for entry in entries))
        ids = tuple(entry.object_id for entry in entries)
        with_rows = [entry for entry in entries if entry.rows]
        if with_rows:
            # The bound on the time spares the partitions in which they have no row.
            bounds = {
                "ids": ids,
                "first": _text(min(entry.first_timestamp for entry in with_rows)),
                "last": _text(max(entry.last_timestamp for entry in with_rows)),
            }
            where = (
                "object_id IN %(ids)s AND timestamp >= toDateTime64(%(first)s, 6, 'UTC') "
                "AND timestamp <= toDateTime64(%(last)s, 6, 'UTC')"
            )
            self._delete(EVENTS, where, bounds)
        if any(entry.rejected_rows for entry in entries):
            self._delete(EVENTS_REJECTED, "object_id IN %(ids)s", {"ids": ids})

    def _delete(self, table: Table, where: str, parameters: Mapping[str, object]) -> None:
        name = quoted(table.stored_as(self.loader.form))
        query = Query(f"DELETE FROM {name} WHERE {where}", parameters, LONG_STATEMENT, retryable=True)  # noqa: S608
        self.loader.cluster.map_all_hosts(query, timeout_seconds=CLEANING_TIMEOUT_SECONDS).result()

    def _record_unreadable(self, versions: Sequence[ObjectVersion], problems: Sequence[Problem]) -> None:
        reasons = {problem.key: problem.reason for problem in problems}
        broken = [version for version in versions if version.key in reasons]
        entries = [
            _entry(version, None, {}, self._next(version), reason=reasons[version.key]).now(
                ObjectState.FAILED, self.loader.run_id
            )
            for version in broken
            # Rows of a dead attempt to load it are still to be removed, by a load that can read it.
            if self.known.get(version.identity) is None or self.known[version.identity].state is not ObjectState.LOADING
        ]
        manifest.write(self.loader.cluster, entries, f"{self.identity}-failed")

    def _next(self, version: ObjectVersion) -> int:
        known = self.known.get(version.identity)
        return 0 if known is None else known.version

    def _run(
        self,
        statement: str,
        parameters: Mapping[str, object] | None = None,
        *,
        settings: Mapping[str, object] | None = None,
        retryable: bool | None = None,
    ) -> None:
        query = Query(statement, parameters, settings or {}, retryable)
        self.host.any_host(query, timeout_seconds=STATEMENT_TIMEOUT_SECONDS).result()

    def _rows(self, statement: str, parameters: Mapping[str, object] | None = None) -> Rows:
        query = Query(statement, parameters, self.loader.settings)
        return self.host.any_host(query, timeout_seconds=STATEMENT_TIMEOUT_SECONDS).result()


def _entry(
    version: ObjectVersion,
    counts: Counts | None,
    skipped: Mapping[str, int],
    known_version: int,
    reason: str = "",
) -> Entry:
    """The manifest's row of an object, before it is in any state; without `counts` it has no lines."""
    return Entry(
        key=version.key,
        etag=version.etag,
        version=known_version,
        object_id=counts.object_id if counts else 0,
        team_id=team_of(version.key),
        format=version.format.value,
        state=ObjectState.LOADING,
        lines=counts.lines if counts else 0,
        rows=counts.events - skipped.get(BOT_RULE, 0) if counts else 0,
        rejected_rows=counts.rejected if counts else 0,
        skipped_rows=skipped,
        size_bytes=version.size_bytes,
        first_timestamp=counts.first_timestamp if counts else EPOCH,
        last_timestamp=counts.last_timestamp if counts else EPOCH,
        reason=reason,
    )


def _changed_problem(key: str) -> Problem:
    return Problem(key, "was replaced or removed while it was read, so nothing of it was loaded", is_unreadable=False)


def _text(timestamp: dt.datetime) -> str:
    return f"{timestamp:%Y-%m-%d %H:%M:%S.%f}"
