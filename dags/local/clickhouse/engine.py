"""Everything that calls chdb: sessions with settings per query, errors with ClickHouse's codes, queries with ids."""

import json
import os
import re
import select
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from chdb import ChdbError
from chdb.state.sqlitelike import Connection, connect

from dags.local.clickhouse.packets import SETTING_IS_IMPORTANT

# The engine generates its own query ids. The id that a client chose is stored in this setting, which has no other use
# here (it selects a queue of Redis and NATS tables), and the views below show it as the query id.
QUERY_ID_SETTING = "stream_like_engine_insert_queue"
SESSION_TAG = "session "
# SET cannot revert the first, and rejects the second, which other nodes send and which has no meaning here.
NOT_FOR_SET = {"readonly", "run_query_in_background"}
# More columns than a block can have.
NOT_A_BLOCK = b"\xff" * 9 + b"\x01"
POLL_MILLISECONDS = 100
# The views hide the statements of the server itself.
OWN_STATEMENT = "/* server */ "
QUERY_ID_VIEW = f"""
CREATE OR REPLACE VIEW system.client_{{table}} AS
WITH Settings['{QUERY_ID_SETTING}'] AS client_query_id
SELECT * REPLACE (
    if(client_query_id = '' OR startsWith(client_query_id, '{SESSION_TAG}'), query_id, client_query_id) AS query_id
), {{table}}.query_id AS engine_query_id
FROM system.{{table}} WHERE NOT startsWith(query, '{OWN_STATEMENT}')
"""
_SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_ERROR = re.compile(r"Code: (\d+)\. DB::Exception: ")
_CHANGES_SESSION = re.compile(r"\s*(?:SET|USE|CREATE\s+TEMPORARY|DROP\s+TEMPORARY)\b", re.IGNORECASE)
_UNKNOWN_SETTING = 115
_UNKNOWN_EXCEPTION = 1002


class EngineError(Exception):
    """A statement failed; `code` is ClickHouse's error code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def _engine_errors() -> Iterator[None]:
    try:
        yield
    except (ChdbError, RuntimeError) as error:
        text = str(error)
        found = list(_ERROR.finditer(text))
        if not found:
            raise EngineError(_UNKNOWN_EXCEPTION, text) from None
        # The engine repeats "Code: N. DB::Exception: " when an error crosses its own layers.
        raise EngineError(int(found[-1][1]), text[found[-1].end() :]) from None


def literal(value: str) -> str:
    """Return `value` as a string literal of ClickHouse's SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quoted_name(name: str) -> str:
    """Return `name` as a quoted identifier of ClickHouse's SQL."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


class EmbeddedEngine:
    """The engine of a data directory, which only one process may use."""

    def __init__(self, path: Path, configuration: Path) -> None:
        # chdb does not decode the address, so nothing is encoded.
        # As in a server, a statement cannot begin with a column name.
        self.address = f"{path}?config-file={configuration}&implicit_select=0"
        self._control_lock = threading.Lock()
        with _engine_errors():
            self._control = connect(self.address)
            self._control.query("SYSTEM FLUSH LOGS")
            for table in ("processes", "query_log"):
                self._control.query(QUERY_ID_VIEW.format(table=table))
        version, self.timezone = self._control_rows("SELECT version(), timezone()")[0]
        major, minor, patch = (int(part) for part in version.split(".")[:3])
        self.version = (major, minor, patch)
        self.settings = frozenset(name for (name,) in self._control_rows("SELECT name FROM system.settings"))
        self.formats = frozenset(name.lower() for (name,) in self._control_rows("SELECT name FROM system.formats"))

    def _control_rows(self, sql: str) -> list[list[str]]:
        with self._control_lock, _engine_errors():
            return [line.split("\t") for line in str(self._control.query(sql, "TSVRaw")).splitlines()]

    def session(self) -> "EngineSession":
        """Open a session with its own settings, current database and temporary tables."""
        with _engine_errors():
            return EngineSession(self, connect(self.address))

    def kill(self, tag: str) -> None:
        """Stop the queries that run under `tag`, if any."""
        self._control_rows(f"KILL QUERY WHERE Settings['{QUERY_ID_SETTING}'] = {literal(tag)} ASYNC")

    def kill_all(self) -> None:
        """Stop every query of every session."""
        self._control_rows(f"KILL QUERY WHERE Settings['{QUERY_ID_SETTING}'] != '' ASYNC")

    def close(self) -> None:
        """Flush the logs and stop the engine."""
        with self._control_lock, _engine_errors():
            self._control.query("SYSTEM FLUSH LOGS")
        self._control.close()


class EngineSession:
    """One client's connection to the engine. Not thread-safe."""

    def __init__(self, engine: EmbeddedEngine, connection: Connection) -> None:
        self._engine = engine
        self._connection = connection
        self._own_tag = f"{SESSION_TAG}{uuid4()}"
        self._overlay: dict[str, str] = {}
        self._before_overlay: dict[str, str | None] = {}
        self._state_statements: list[str] = []
        self.tag = self._own_tag

    def close(self) -> None:
        """End the session: cancel a running stream and drop temporary tables."""
        self._connection.close()

    def report_progress(self, callback: Callable[[dict[str, int]], None]) -> None:
        """Call `callback` about ten times a second with the totals of a running query, in the query's thread."""
        self._connection.set_progress_callback(callback)

    def use(self, database: str) -> None:
        """Change the current database. Raises EngineError (81) when it does not exist."""
        self.execute(f"USE {quoted_name(database)}")

    def prepare(self, query_id: str, settings: dict[str, tuple[str, int]]) -> bool:
        """Apply `settings` (name -> value and flags) and the query's id to the next statement only.

        As in ClickHouse, an unknown setting is an error only if it is marked important. Return whether the statement is
        read-only, which the caller must enforce because the engine cannot revert that setting.
        """
        wanted = {}
        for name, (value, flags) in settings.items():
            if name in NOT_FOR_SET:
                continue
            if name in self._engine.settings:
                wanted[name] = value
            elif flags & SETTING_IS_IMPORTANT or not _SETTING_NAME.fullmatch(name):
                raise EngineError(_UNKNOWN_SETTING, f"Unknown setting '{name}'. (UNKNOWN_SETTING)")
        self.tag = wanted[QUERY_ID_SETTING] = query_id or self._own_tag
        self.overlay_settings(wanted)
        return settings.get("readonly", ("0", 0))[0].lower() not in ("0", "false")

    def restore_settings(self) -> None:
        """Restore the session's own settings, so that a SET statement changes them."""
        self.overlay_settings({})

    def overlay_settings(self, wanted: dict[str, str]) -> None:
        """Apply `wanted` over the session's own settings, in place of the previous overlay."""
        if wanted == self._overlay:
            return
        new = [name for name in wanted if name not in self._overlay]
        if new and len(self._overlay) > 1:
            # The current overlay could limit or forbid the query for the previous values.
            self.overlay_settings({})
            new = list(wanted)
        before: dict[str, str | None] = {**self._before_overlay, **dict.fromkeys(new), **self._changed_settings(new)}
        changes: dict[str, str | None] = {
            name: value for name, value in wanted.items() if self._overlay.get(name) != value
        }
        changes |= {name: before[name] for name in self._overlay if name not in wanted}
        # SET applies all changes or none, so an error leaves the overlay unchanged.
        self._set(changes)
        self._overlay = wanted
        self._before_overlay = {name: before[name] for name in wanted}

    def _changed_settings(self, names: list[str]) -> dict[str, str]:
        if not names:
            return {}
        listed = ", ".join(literal(name) for name in names)
        select = f"SELECT name, value FROM system.settings WHERE changed AND name IN ({listed})"
        no_limits = "SETTINGS limit = 0, offset = 0, max_result_rows = 0, max_columns_to_read = 0, max_rows_to_read = 0"
        return dict(self._rows(f"{OWN_STATEMENT}{select} {no_limits}"))

    def _set(self, changes: dict[str, str | None]) -> None:
        assignments = [f"{name} = {'DEFAULT' if value is None else literal(value)}" for name, value in changes.items()]
        if assignments:
            self._run(f"{OWN_STATEMENT}SET {', '.join(assignments)}", "Null")

    def _run(self, sql: str, output_format: str) -> Any:
        with _engine_errors():
            return self._connection.query(sql, output_format)

    def _rows(self, sql: str) -> list[list[str]]:
        return [json.loads(line) for line in self._run(sql, "JSONCompactEachRow").bytes().splitlines()]

    def execute(self, sql: str) -> tuple[bytes, int]:
        """Run one statement; return its result in Native format (consecutive blocks) and its number of rows."""
        result = self._run(sql, "Native")
        if _CHANGES_SESSION.match(sql):
            self._state_statements.append(sql)
        return result.bytes(), result.rows_read()

    def describe_during_stream(self, select: str) -> list[tuple[str, str]]:
        """Return the names and types of a SELECT whose stream is open.

        A chdb connection runs one statement at a time, so this uses another one with the state of this session.
        """
        with closing(self._engine.session()) as other:
            for statement in self._state_statements:
                other.execute(statement)
            other.overlay_settings(self._overlay)
            return [(name, column_type) for name, column_type, _ in other.describe(f"({select}\n)")]

    def stream(self, sql: str) -> Generator[tuple[bytes, int], None, None]:
        """Run a SELECT; yield each block in Native format with its number of rows. Closing the generator cancels it."""
        with _engine_errors():
            stream: Any = self._connection.send_query(sql, "Native")
        try:
            while True:
                with _engine_errors():
                    block = stream.fetch()
                if block is None:
                    return
                yield block.bytes(), block.rows_read()
        finally:
            with _engine_errors():
                stream.cancel()

    def insert(self, statement: str, header: list[tuple[str, str]]) -> "Insertion":
        """Begin an INSERT of blocks with the columns of `header`; the caller appends the data and closes the result.

        `statement` ends where its data would begin.
        """
        deduplication = self._changed_settings(["insert_deduplicate", "deduplicate_insert"])
        mode = "disable" if {"0", "disable"} & set(deduplication.values()) else "enable_even_for_bad_queries"
        structure = ", ".join(f"{quoted_name(name)} {column_type}" for name, column_type in header)

        def run(path: str) -> int:
            source = f"SELECT * FROM file({literal(path)}, 'Native', {literal(structure)})"
            # A plain INSERT deduplicates identical blocks; INSERT SELECT does so only with this setting.
            return int(
                self._run(f"{statement} {source} SETTINGS deduplicate_insert_select = '{mode}'", "Null").rows_written()
            )

        return Insertion(run)

    def describe(self, source: str) -> list[tuple[str, str, str]]:
        """Return name, type and default kind ("" or DEFAULT, MATERIALIZED, ALIAS, EPHEMERAL) of each column."""
        return [(row[0], row[1], row[2]) for row in self._rows(f"{OWN_STATEMENT}DESCRIBE TABLE {source}")]


class Insertion:
    """A running INSERT: the engine reads its data from a pipe, as a file in Native format.

    chdb's streaming INSERT loses the errors of the last block, and reports it as written. `run` runs the statement on
    the file at a path and returns the number of rows written.
    """

    def __init__(self, run: Callable[[str], int]) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._writable = select.poll()
        self._writable.register(self._write_end, select.POLLOUT)
        self._ended = threading.Event()
        self._failure: Exception | None = None
        self._rows = 0
        self._between_blocks = True
        self._thread = threading.Thread(target=self._insert, args=(run,), name="insert", daemon=True)
        self._thread.start()

    def _insert(self, run: Callable[[str], int]) -> None:
        try:
            self._rows = run(f"/dev/fd/{self._read_end}")
        except Exception as error:  # noqa: BLE001 - `finish` raises it
            self._failure = error
        finally:
            self._ended.set()

    def append(self, data: bytes) -> None:
        """Append data, which may end anywhere in a block. Waits while the pipe is full.

        After the engine has failed, data is dropped, and `finish` raises the error.
        """
        self._between_blocks = False
        remaining = memoryview(data)
        while remaining and not self._ended.is_set():
            try:
                remaining = remaining[os.write(self._write_end, remaining) :]
            except BlockingIOError:
                self._writable.poll(POLL_MILLISECONDS)

    def end_block(self) -> None:
        """Mark the data appended so far as complete blocks."""
        self._between_blocks = True

    def finish(self) -> int:
        """Write the rest and return the number of rows written. Raises EngineError when any part failed."""
        self._end_of_data()
        if self._failure is not None:
            raise self._failure
        return self._rows

    def close(self) -> None:
        """Make the engine discard what it has not written yet, unless `finish` was called."""
        if self._write_end >= 0:
            if self._between_blocks:
                # After a complete block the end of the data would mean success; within a block it is an error.
                self.append(NOT_A_BLOCK)
            self._end_of_data()

    def _end_of_data(self) -> None:
        os.close(self._write_end)
        self._write_end = -1
        self._thread.join()
        os.close(self._read_end)
