"""chdb as a server needs it: sessions with settings for one query, errors with ClickHouse's codes, queries known by id.

Belongs here: everything that calls chdb. Does not: sockets and packets (`server`, `packets`).
"""

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

# The engine names its queries itself. The id that a client chose travels in this setting, which nothing else here reads
# (it selects a queue of Redis and NATS tables), and the views below show it where people look for query ids.
QUERY_ID_SETTING = "stream_like_engine_insert_queue"
SESSION_TAG = "session "
# SET refuses to take the first back, and refuses the second, which other nodes send and which means nothing here.
NOT_FOR_SET = {"readonly", "run_query_in_background"}
# More columns than a block can have.
NOT_A_BLOCK = b"\xff" * 9 + b"\x01"
LOOK_AGAIN_MILLISECONDS = 100
# The views hide what the server asks the engine on its own behalf.
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
    """`value` as a string literal of ClickHouse's SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def quoted_name(name: str) -> str:
    """`name` as a quoted identifier of ClickHouse's SQL."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


class Engine:
    """The engine of one data directory, which one process owns."""

    def __init__(self, path: Path, configuration: Path) -> None:
        # chdb decodes nothing here, so there is nothing to encode.
        # As in a server, a statement does not begin with the name of a column.
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
        """A new session with settings, current database and temporary tables of its own."""
        with _engine_errors():
            return EngineSession(self, connect(self.address))

    def kill(self, tag: str) -> None:
        """Stop the queries that run under `tag`; does nothing when none does."""
        self._control_rows(f"KILL QUERY WHERE Settings['{QUERY_ID_SETTING}'] = {literal(tag)} ASYNC")

    def kill_all(self) -> None:
        """Stop every query that a session runs."""
        self._control_rows(f"KILL QUERY WHERE Settings['{QUERY_ID_SETTING}'] != '' ASYNC")

    def close(self) -> None:
        """Flush the logs and stop the engine."""
        with self._control_lock, _engine_errors():
            self._control.query("SYSTEM FLUSH LOGS")
        self._control.close()


class EngineSession:
    """One client's connection to the engine. Not for use by two threads at once."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self._engine = engine
        self._connection = connection
        self._own_tag = f"{SESSION_TAG}{uuid4()}"
        self._overlay: dict[str, str] = {}
        self._before_overlay: dict[str, str | None] = {}
        self._state_statements: list[str] = []
        self.tag = self._own_tag

    def close(self) -> None:
        """End the session: a running stream is cancelled, temporary tables go."""
        self._connection.close()

    def report_progress(self, callback: Callable[[dict[str, int]], None]) -> None:
        """Call `callback` about ten times a second with the totals of a running query, in the thread that runs it."""
        self._connection.set_progress_callback(callback)

    def use(self, database: str) -> None:
        """Change the current database. Raises EngineError (81) when it does not exist."""
        self.execute(f"USE {quoted_name(database)}")

    def prepare(self, query_id: str, settings: dict[str, tuple[str, int]]) -> bool:
        """Make `settings` (name -> value and flags) and the query's id hold for the next statement, and for it alone.

        As in ClickHouse, an unknown setting is an error only when it is marked important. Returns whether the statement
        may only read: the engine would refuse to take that setting back, so the caller must hold it.
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

    def forget_settings(self) -> None:
        """Return to the session's own settings, so that a SET statement changes those."""
        self.overlay_settings({})

    def overlay_settings(self, wanted: dict[str, str]) -> None:
        """Put `wanted` over the session's own settings, in place of what was put there before."""
        if wanted == self._overlay:
            return
        new = [name for name in wanted if name not in self._overlay]
        if new and len(self._overlay) > 1:
            # What is in force could cut short, or forbid, the question for the values before.
            self.overlay_settings({})
            new = list(wanted)
        before: dict[str, str | None] = {**self._before_overlay, **dict.fromkeys(new), **self._changed_settings(new)}
        changes: dict[str, str | None] = {
            name: value for name, value in wanted.items() if self._overlay.get(name) != value
        }
        changes |= {name: before[name] for name in self._overlay if name not in wanted}
        # SET makes all of its changes or none, so after an error the overlay is what it was.
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
        """Run one statement; return its result in Native format (blocks one after the other) and its number of rows."""
        result = self._run(sql, "Native")
        if _CHANGES_SESSION.match(sql):
            self._state_statements.append(sql)
        return result.bytes(), result.rows_read()

    def describe_beside_stream(self, select: str) -> list[tuple[str, str]]:
        """Names and types of a SELECT whose stream is open.

        One chdb connection runs one statement at a time, so this asks another one, made to look like this session.
        """
        with closing(self._engine.session()) as beside:
            for statement in self._state_statements:
                beside.execute(statement)
            beside.overlay_settings(self._overlay)
            return [(name, column_type) for name, column_type, _ in beside.describe(f"({select}\n)")]

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
        """Begin an INSERT whose data, blocks with the columns of `header`, will be appended; close what it returns.

        `statement` goes up to where its data would begin.
        """
        deduplication = self._changed_settings(["insert_deduplicate", "deduplicate_insert"])
        mode = "disable" if {"0", "disable"} & set(deduplication.values()) else "enable_even_for_bad_queries"
        structure = ", ".join(f"{quoted_name(name)} {column_type}" for name, column_type in header)

        def run(path: str) -> int:
            source = f"SELECT * FROM file({literal(path)}, 'Native', {literal(structure)})"
            # As a plain INSERT has it: a block that is the same as one before is the same block.
            return int(
                self._run(f"{statement} {source} SETTINGS deduplicate_insert_select = '{mode}'", "Null").rows_written()
            )

        return Insertion(run)

    def describe(self, source: str) -> list[tuple[str, str, str]]:
        """Name, type and kind of default ("" or DEFAULT, MATERIALIZED, ALIAS, EPHEMERAL) of the columns of `source`."""
        return [(row[0], row[1], row[2]) for row in self._rows(f"{OWN_STATEMENT}DESCRIBE TABLE {source}")]


class Insertion:
    """An INSERT under way: the engine reads its data from a pipe, as a file in Native format.

    chdb's own streaming INSERT loses the errors of the last block, and says that it was written. `run` runs the
    statement on the file at a path and returns the number of rows written.
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
        """Pass on more of the data; blocks and columns may be cut anywhere. Waits while the engine is behind.

        Once the engine has given up, data are dropped, and `finish` raises why.
        """
        self._between_blocks = False
        remaining = memoryview(data)
        while remaining and not self._ended.is_set():
            try:
                remaining = remaining[os.write(self._write_end, remaining) :]
            except BlockingIOError:
                self._writable.poll(LOOK_AGAIN_MILLISECONDS)

    def end_block(self) -> None:
        """Say that the data appended so far are whole blocks."""
        self._between_blocks = True

    def finish(self) -> int:
        """Write what remains and return the number of rows written. Raises EngineError when any part failed."""
        self._end_of_data()
        if self._failure is not None:
            raise self._failure
        return self._rows

    def close(self) -> None:
        """Make the engine drop what it has not yet written, unless `finish` was called."""
        if self._write_end >= 0:
            if self._between_blocks:
                # Here the end of the data would be taken for success; within a block it is an error anyway.
                self.append(NOT_A_BLOCK)
            self._end_of_data()

    def _end_of_data(self) -> None:
        os.close(self._write_end)
        self._write_end = -1
        self._thread.join()
        os.close(self._read_end)
