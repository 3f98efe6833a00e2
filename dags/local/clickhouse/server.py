"""A TCP server for one engine: accepts connections, runs queries, streams blocks in both directions.

Each connection has a thread. Another thread watches the sockets of running queries, so that a query stops when its
client cancels it or disconnects.
"""

import logging
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from time import monotonic, sleep

from clickhouse_driver.protocol import ClientPacketTypes
from clickhouse_driver.varint import make_varint

from dags.local.clickhouse import packets
from dags.local.clickhouse.columns import UnsupportedTypeError, header_of, skip_columns, split_blocks, with_types
from dags.local.clickhouse.engine import EmbeddedEngine, EngineError, EngineSession, quoted_name
from dags.local.clickhouse.statements import InsertStatement, Statement, analyze, parse_insert
from dags.local.clickhouse.wire import ProtocolError, WireReader, compressed_frames, frames_of
from dags.local.ports import LOOPBACK

logger = logging.getLogger(__name__)

RECEIVE_BYTES = 1 << 18
# How often the sockets of running queries are checked: a cancel takes effect within this time.
WATCH_SECONDS = 0.1
CLOSE_SECONDS = 10.0
LINGER_SECONDS = 1.0
COMPLETE_STAGE = 2

_NOT_IMPLEMENTED, _SYNTAX_ERROR, _AUTHENTICATION_FAILED = 48, 62, 516
_READONLY, _QUERY_ID_IN_USE, _QUERY_WAS_CANCELLED = 164, 216, 394
# The engine takes these for a request to exit, and returns nothing.
_CLIENT_COMMAND = re.compile(r"\s*(?:exit|quit|logout|\\q|:q)\s*;?\s*", re.IGNORECASE)


class Server:
    """Serves an engine on a listening socket until it is closed."""

    def __init__(self, engine: EmbeddedEngine, listener: socket.socket, display_name: str = "local") -> None:
        self.engine = engine
        self.display_name = display_name
        self.port: int = listener.getsockname()[1]
        self._socket = listener
        self._connections: set[Connection] = set()
        self._query_ids: set[str] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch running queries", daemon=True)
        self._watcher.start()

    def serve_forever(self) -> None:
        """Accept connections until `close` is called from another thread."""
        while not self._closing.is_set():
            try:
                client, _ = self._socket.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection(self, client)
                threading.Thread(target=connection.serve, name="connection", daemon=True).start()
            except (OSError, RuntimeError):
                if self._closing.is_set():
                    return
                # No file descriptor or thread is free: existing connections continue, and a later one may succeed.
                logger.exception("cannot accept a connection")
                self._closing.wait(WATCH_SECONDS)

    def add_connection(self, connection: "Connection") -> None:
        """Register a connection that has begun."""
        with self._lock:
            self._connections.add(connection)

    @contextmanager
    def running(self, query_id: str) -> Iterator[None]:
        """Reserve the query id until the end of the block. Raises EngineError (216) when a query with the id runs."""
        with self._lock:
            if query_id in self._query_ids:
                raise EngineError(
                    _QUERY_ID_IN_USE,
                    f"Query with id = {query_id} is already running. (QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING)",
                )
            self._query_ids.add(query_id)
        try:
            yield
        finally:
            with self._lock:
                self._query_ids.discard(query_id)

    def remove_connection(self, connection: "Connection") -> None:
        """Unregister a connection that has ended."""
        with self._lock:
            self._connections.discard(connection)

    def close(self) -> None:
        """Stop accepting connections, stop every query, close every connection."""
        self._closing.set()
        # On some systems closing a listening socket does not wake a thread in accept(); a connection does.
        with socket.create_connection((LOOPBACK, self.port), timeout=1):
            self._socket.close()
        deadline = monotonic() + CLOSE_SECONDS
        while monotonic() < deadline:
            with self._lock:
                remaining = list(self._connections)
            if not remaining:
                break
            self.engine.kill_all()
            for connection in remaining:
                connection.shut_down()
            sleep(WATCH_SECONDS)
        self._watcher.join(CLOSE_SECONDS)

    def _watch(self) -> None:
        while not self._closing.wait(WATCH_SECONDS):
            with self._lock:
                running = [connection for connection in self._connections if connection.running]
            for connection in running:
                try:
                    connection.stop_if_cancelled()
                except EngineError as error:
                    logger.warning("cannot stop a query: %s", error)


class Connection:
    """The connection of one client, whose thread reads and answers packets."""

    def __init__(self, server: Server, client: socket.socket) -> None:
        self._server = server
        self._socket = client
        self._reader = WireReader(lambda: client.recv(RECEIVE_BYTES))
        self._revision = packets.REVISION
        self._compression: str | None = None
        self._progress: dict[str, int] = {}
        self._cancelled = threading.Event()
        self._watch_lock = threading.Lock()
        self._session: EngineSession
        self.running = False

    def serve(self) -> None:
        """Answer the client until it disconnects or violates the protocol."""
        self._server.add_connection(self)
        try:
            with self._socket:
                try:
                    self._serve_packets()
                except (EOFError, ConnectionError):
                    logger.debug("the client disconnected")
                except ProtocolError as error:
                    logger.warning("closing a connection: %s", error)
                    self._reject(packets.write_exception(error.code, str(error)))
        except OSError as error:
            logger.debug("the client disconnected: %s", error)
        except Exception:
            logger.exception("a connection failed")
        finally:
            self._server.remove_connection(self)

    def _serve_packets(self) -> None:
        hello = packets.read_hello(self._reader)
        self._revision = min(hello.revision, packets.REVISION)
        if hello.user != "default":
            message = f"{hello.user}: the embedded server has only the user `default`. (AUTHENTICATION_FAILED)"
            raise ProtocolError(message, _AUTHENTICATION_FAILED)
        engine = self._server.engine
        with closing(engine.session()) as self._session:
            if hello.database:
                try:
                    self._session.use(hello.database)
                except EngineError as error:
                    raise ProtocolError(str(error), error.code) from None
            self._session.report_progress(self._send_progress)
            self._send(packets.write_hello(engine.version, engine.timezone, self._server.display_name))
            while True:
                self._answer(self._reader.varint())

    def _answer(self, packet: int) -> None:
        match packet:
            case ClientPacketTypes.QUERY:
                self._answer_query(packets.read_query(self._reader, self._revision))
            case ClientPacketTypes.PING:
                self._send(packets.PONG)
            case ClientPacketTypes.CANCEL:
                logger.debug("nothing to cancel: the query has ended")
            case ClientPacketTypes.TABLES_STATUS_REQUEST:
                self._send(packets.write_tables_status(packets.read_tables_status_request(self._reader)))
            case _:
                raise ProtocolError(f"unexpected packet {packet}")

    def _answer_query(self, query: packets.QueryPacket) -> None:
        self._cancelled.clear()
        self._progress = {}
        method = query.settings.get("network_compression_method", ("lz4", 0))[0].lower()
        self._compression = (method if method in ("lz4", "lz4hc", "zstd") else "lz4") if query.compression else None
        external_tables: set[str] = set()
        try:
            try:
                self._receive_external_tables(external_tables)
                only_reads = self._session.prepare(query.query_id, query.settings)
                self._run(query, only_reads=only_reads)
            finally:
                for table in external_tables:
                    self._session.execute(f"DROP TEMPORARY TABLE IF EXISTS {quoted_name(table)}")
        except EngineError as error:
            if not (self._cancelled.is_set() and error.code == _QUERY_WAS_CANCELLED):
                self._send(packets.write_exception(error.code, str(error)))
                return
        self._send(packets.END_OF_STREAM)

    def _run(self, query: packets.QueryPacket, *, only_reads: bool) -> None:
        statement = analyze(query.text, self._server.engine.formats)
        if only_reads and not statement.only_reads:
            raise EngineError(_READONLY, "Cannot execute query in readonly mode. (READONLY)")
        if statement.is_multiple:
            raise EngineError(_SYNTAX_ERROR, "Syntax error: one query holds several statements. (SYNTAX_ERROR)")
        if not statement.keyword or _CLIENT_COMMAND.fullmatch(query.text):
            raise EngineError(_SYNTAX_ERROR, "Syntax error: empty query. (SYNTAX_ERROR)")
        if query.stage != COMPLETE_STAGE:
            raise EngineError(
                _NOT_IMPLEMENTED,
                "the embedded server computes only complete results: query its nodes one by one, or set "
                "distributed_group_by_no_merge = 1. (NOT_IMPLEMENTED)",
            )
        if statement.writes_file:
            raise EngineError(_NOT_IMPLEMENTED, "INTO OUTFILE must be executed by the client. (NOT_IMPLEMENTED)")
        if statement.has_totals or query.settings.get("extremes", ("0", 0))[0] in ("1", "true"):
            raise EngineError(
                _NOT_IMPLEMENTED,
                "the embedded server does not return totals or extremes: use WITH ROLLUP. (NOT_IMPLEMENTED)",
            )
        insert = parse_insert(query.text) if statement.keyword == "INSERT" else None
        with self._server.running(self._session.tag):
            if insert:
                self._receive_insert(insert)
            elif statement.returns_stream:
                self._send_stream(statement)
            else:
                self._send_result(statement)

    # Results

    def _send_stream(self, statement: Statement) -> None:
        rows = blocks = size = 0
        select = statement.text.rstrip().rstrip(";")
        types: list[str] | None = None
        with self._watched(), closing(self._session.stream(select)) as stream:
            for body, block_rows in stream:
                if self._cancelled.is_set():
                    return
                if not blocks:
                    types = self._send_header(select, body)
                self._send_block(with_types(body, types) if types else body)
                rows, blocks, size = rows + block_rows, blocks + 1, size + len(body)
        if not blocks:
            # An empty result has names and types too. The line break ends a final comment.
            columns = self._session.describe(f"({select}\n)")
            self._send_block(packets.write_header_block([(name, column_type) for name, column_type, _ in columns]))
        self._send(packets.write_profile_info(rows, blocks, size))

    def _send_header(self, select: str, first_block: bytes) -> list[str] | None:
        """Send names and types as a block without rows before the data, where some clients expect them.

        The engine's Native format omits the time zone of DateTime('Europe/Paris'). Return the types with time zones if
        there is such a column, so that every block can have them.
        """
        try:
            header = header_of(first_block)
        except UnsupportedTypeError as error:
            logger.debug("no header is sent before a result with states of aggregate functions: %s", error)
            return None
        types = None
        if any(column_type == "DateTime" for _, column_type in header):
            described = self._session.describe_during_stream(select)
            types = [column_type for _, column_type in described] if described != header else None
            header = described
        self._send_block(packets.write_header_block(header))
        return types

    def _send_result(self, statement: Statement) -> None:
        if statement.keyword == "SET":
            self._session.restore_settings()
        with self._watched():
            body, rows = self._session.execute(statement.text)
        blocks = split_blocks(body)
        for block in blocks:
            self._send_block(block)
        if blocks:
            self._send(packets.write_profile_info(rows, len(blocks), len(body)))

    # Inserts

    def _receive_external_tables(self, created: set[str]) -> None:
        """Create temporary tables from external tables, up to an empty block; add their names to `created`."""
        failure: EngineError | None = None
        while True:
            packet = self._reader.varint()
            if packet not in (ClientPacketTypes.DATA, packets.SCALAR):
                raise ProtocolError(f"expected a block of data after a query, got packet {packet}")
            name = self._reader.string()
            body = bytearray()
            header = self._receive_block(body.extend)
            if packet == packets.SCALAR:
                continue
            if not header:
                break
            try:
                if failure is None:
                    is_new = name not in created
                    created.add(name)
                    self._fill_external_table(name, header, bytes(body), is_new=is_new)
            except EngineError as error:
                failure = error
        if failure is not None:
            raise failure

    def _fill_external_table(self, name: str, header: list[tuple[str, str]], body: bytes, *, is_new: bool) -> None:
        if is_new:
            columns = ", ".join(f"{quoted_name(column)} {column_type}" for column, column_type in header)
            self._session.execute(f"CREATE TEMPORARY TABLE {quoted_name(name)} ({columns})")
        if body:
            statement = f"INSERT INTO {quoted_name(name)}"
            with closing(self._session.insert(statement, header)) as insertion:
                insertion.append(body)
                insertion.finish()

    def _receive_insert(self, insert: InsertStatement) -> None:
        listed = insert.columns is not None
        columns = self._session.describe(f"(SELECT {insert.columns} FROM {insert.target})" if listed else insert.target)
        header = [(name, kind) for name, kind, default in columns if listed or default not in ("MATERIALIZED", "ALIAS")]
        with closing(self._session.insert(insert.statement, header)) as insertion:
            self._send_block(packets.write_header_block(header))
            while True:
                packet = self._reader.varint()
                if packet == ClientPacketTypes.CANCEL:
                    return
                if packet != ClientPacketTypes.DATA:
                    raise ProtocolError(f"expected data to insert, got packet {packet}")
                self._reader.string()
                if not self._receive_block(insertion.append):
                    break
                insertion.end_block()
            with self._watched():
                rows = insertion.finish()
        self._send(packets.write_progress([0, 0, 0, rows, 0]))

    def _receive_block(self, sink: Callable[[bytes], None]) -> list[tuple[str, str]]:
        """Pass the next block's body to `sink` if it has rows; return its names and types, none at the end of data."""
        reader = WireReader(frames_of(self._reader)) if self._compression else self._reader
        packets.read_block_info(reader)
        columns, rows = reader.varint(), reader.varint()
        if not rows:
            return skip_columns(reader, columns, rows)
        sink(bytes(make_varint(columns)) + bytes(make_varint(rows)))
        reader.copy_to(sink)
        try:
            return skip_columns(reader, columns, rows)
        finally:
            reader.stop_copying()

    # Sending

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _send_block(self, body: bytes) -> None:
        if self._compression:
            self._send(packets.DATA)
            for frame in compressed_frames(packets.BLOCK_PREFIX + body, self._compression):
                self._send(frame)
        elif len(body) > RECEIVE_BYTES:
            # Sent without another copy: a block can have hundreds of megabytes.
            self._send(packets.DATA + packets.BLOCK_PREFIX)
            self._send(body)
        else:
            self._send(packets.DATA + packets.BLOCK_PREFIX + body)

    def _send_progress(self, totals: dict[str, int]) -> None:
        if not self.running or self._cancelled.is_set():
            return
        increments = [max(0, totals[name] - self._progress.get(name, 0)) for name in packets.PROGRESS_VALUES]
        self._progress = totals
        try:
            self._send(packets.write_progress(increments))
        except OSError:
            # The engine calls this and must not get the error; the watcher notices the disconnected client.
            logger.debug("the client disconnected during a query")

    def _reject(self, exception: bytes) -> None:
        """Send a last packet, and wait until the client disconnects: a reset would discard the packet."""
        self._send(exception)
        self._socket.shutdown(socket.SHUT_WR)
        self._socket.settimeout(LINGER_SECONDS)
        deadline = monotonic() + LINGER_SECONDS
        while monotonic() < deadline and self._socket.recv(RECEIVE_BYTES):
            pass

    # Called by other threads

    @contextmanager
    def _watched(self) -> Iterator[None]:
        self.running = True
        try:
            yield
        finally:
            # After this no kill is in progress that could stop the next query.
            with self._watch_lock:
                self.running = False

    def stop_if_cancelled(self) -> None:
        """Stop the running query if its client has sent a cancel or disconnected."""
        with self._watch_lock:
            if self.running and self._client_wants_end():
                self._cancelled.set()
                self._server.engine.kill(self._session.tag)

    def _client_wants_end(self) -> bool:
        try:
            first = self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return not first or first[0] == ClientPacketTypes.CANCEL or self._client_has_closed()

    def _client_has_closed(self) -> bool:
        """Return whether the client closed its side after unread bytes, on systems that report it."""
        closed = getattr(select, "POLLRDHUP", 0)
        poll = select.poll()
        poll.register(self._socket, closed)
        return bool(closed and poll.poll(0))

    def shut_down(self) -> None:
        """Shut the connection down: its thread reads the end of the stream."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError as error:
            logger.debug("the connection had ended: %s", error)
