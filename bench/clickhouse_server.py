"""The embedded ClickHouse server, compared with the engine in process and with clickhouse-driver alone.

Run: `python bench/clickhouse_server.py` (a minute or two). It measures:

- `SELECT 1` over one connection, compared with chdb in process;
- a stream of 10 million rows of UInt64, String and DateTime through `Client.execute_iter`, compared with the driver
  reading such blocks from memory, and with chdb producing the blocks in process;
- an INSERT of 1 million such rows into a MergeTree table, compared with the driver writing the same block to a null
  sink, and with chdb inserting the same bytes in process;
- the growth of the server's resident memory at its peak during the stream and the insert.

Each time is the best of three. Ends with one line for each figure: `name value unit aim AIM ok|short`.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clickhouse_driver import Client
from clickhouse_driver.block import RowOrientedBlock
from clickhouse_driver.bufferedreader import BufferedReader
from clickhouse_driver.bufferedwriter import CompressedBufferedWriter
from clickhouse_driver.context import Context
from clickhouse_driver.streams.native import BlockInputStream, BlockOutputStream
from measuring import Figures, highest_memory, node, resident_mebibytes, seconds_of

SELECT_ROWS = 10_000_000
INSERT_ROWS = 1_000_000
BLOCK_ROWS = 65_409  # rows of a block that the engine returns
ROUNDS = 3
Row = tuple[int, str, datetime]
COLUMNS = [("id", "UInt64"), ("name", "String"), ("time", "DateTime('UTC')")]
SELECT = (
    "SELECT number AS id, concat('visitor-', toString(number)) AS name, "
    f"toDateTime(1700000000 + number % 1000000, 'UTC') AS time FROM numbers({SELECT_ROWS})"
)
TABLE = "CREATE TABLE bench (id UInt64, name String, time DateTime('UTC')) ENGINE = MergeTree ORDER BY id"
BLOCK_INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"


def best_seconds(work: Callable[[], Any]) -> float:
    """Return the time of the fastest of a few runs."""
    return min(seconds_of_each(work, ROUNDS))


def seconds_of_each(work: Callable[[], Any], times: int) -> list[float]:
    """Return the time of each of several runs."""
    return [seconds_of(work) for _ in range(times)]


def driver_context() -> Context:
    """Return the context of a connection that the driver's block streams need."""
    context = Context()
    context.client_settings = Client("127.0.0.1").connection.context.client_settings
    context.settings = {}
    context.server_info = SimpleNamespace(used_revision=54453, get_timezone=lambda: "UTC")
    return context


class MemoryReader(BufferedReader):
    """A reader of the driver over chunks in memory."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__(1)
        self.chunks = iter(chunks)

    def read_into_buffer(self) -> None:
        """Take the next chunk."""
        self.buffer = bytearray(next(self.chunks))
        self.current_buffer_size = len(self.buffer)


class NullSink:
    """A sink that discards what the driver writes."""

    def write(self, data: bytes) -> None:
        """Discard `data`."""


def serialize(rows: Sequence[Row], target: Any) -> None:
    """Write one block of rows to `target` with the driver."""
    writer = CompressedBufferedWriter(target, 1 << 20)
    BlockOutputStream(writer, driver_context()).write(RowOrientedBlock(COLUMNS, rows))


def serialized(rows: Sequence[Row]) -> bytes:
    """Return one block of rows as the driver writes it."""
    target = BytesIO()
    serialize(rows, target)
    return target.getvalue()


def consume(rows: Iterable[Any], expected: int) -> None:
    """Iterate over all rows. Raises AssertionError when their number is not `expected`."""
    count = sum(1 for _ in rows)
    assert count == expected, (count, expected)


def main() -> None:  # noqa: PLR0915 - a sequence of measurements
    """Measure and print."""
    figures = Figures()
    figure = figures.add

    start_time = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [(n, f"visitor-{n}", start_time + timedelta(seconds=n % 1_000_000)) for n in range(INSERT_ROWS)]
    names = ", ".join(name for name, _ in COLUMNS)

    with tempfile.TemporaryDirectory() as directory, node(Path(directory) / "node") as (port, pid):
        client = Client("127.0.0.1", port=port)
        client.execute("SELECT 1")

        print("SELECT 1, one connection")
        latencies = seconds_of_each(lambda: client.execute("SELECT 1"), 3000)
        rate = 1 / statistics.mean(latencies)
        figure("select_1_server", rate, "queries/s", at_least=500)
        figure("select_1_latency_median", statistics.median(latencies) * 1000, "ms")
        figure("select_1_latency_99th_percentile", sorted(latencies)[int(len(latencies) * 0.99)] * 1000, "ms")

        print(f"SELECT of {SELECT_ROWS:,} rows", flush=True)
        base = resident_mebibytes(pid)
        with highest_memory(pid) as memory:
            select = best_seconds(lambda: consume(client.execute_iter(SELECT), SELECT_ROWS))
        growth = memory[-1] - base
        figure("select_server", SELECT_ROWS / select, "rows/s")
        figure("select_memory_growth", growth, "MiB", at_most=200)

        print(f"INSERT of {INSERT_ROWS:,} rows", flush=True)
        client.execute(TABLE)
        base = resident_mebibytes(pid)
        with highest_memory(pid) as memory:
            insert = best_seconds(lambda: client.execute(f"INSERT INTO bench ({names}) VALUES", rows))
        growth = memory[-1] - base
        stored = client.execute("SELECT count(), uniqExact(id) FROM bench")[0]
        assert stored == (INSERT_ROWS * ROUNDS, INSERT_ROWS), stored
        figure("insert_server", INSERT_ROWS / insert, "rows/s")
        figure("insert_memory_growth", growth, "MiB", at_most=300)

    print("clickhouse-driver alone", flush=True)
    blocks = [serialized(rows[start : start + BLOCK_ROWS]) for start in range(0, INSERT_ROWS, BLOCK_ROWS)]
    repeats = SELECT_ROWS // INSERT_ROWS

    def deserialize() -> None:
        stream = BlockInputStream(MemoryReader(blocks * repeats), driver_context())
        consume((row for _ in range(len(blocks) * repeats) for row in stream.read().get_rows()), SELECT_ROWS)

    driver_select = best_seconds(deserialize)
    driver_insert = best_seconds(lambda: serialize(rows, NullSink()))
    figure("select_driver_alone", SELECT_ROWS / driver_select, "rows/s")
    figure("insert_driver_alone", INSERT_ROWS / driver_insert, "rows/s")
    ratio = select / driver_select
    figure("select_over_driver", ratio, "times", at_most=1.5)
    ratio = insert / driver_insert
    figure("insert_over_driver", ratio, "times", at_most=1.5)

    print("the engine in process", flush=True)
    body = serialized(rows)[len(BLOCK_INFO) :]
    # Last, because the imported engine slows down everything measured after it.
    from chdb.state.sqlitelike import connect

    with tempfile.TemporaryDirectory() as directory:
        engine: Any = connect(directory)
        in_process = seconds_of_each(lambda: engine.query("SELECT 1", "Native"), 3000)
        figure("select_1_in_process", 1 / statistics.mean(in_process), "queries/s")
        engine_select = best_seconds(lambda: [block.bytes() for block in engine.send_query(SELECT, "Native")])
        figure("select_in_process", SELECT_ROWS / engine_select, "rows/s")
        engine.query(TABLE)

        def insert_in_process() -> None:
            with engine.send_insert(f"INSERT INTO bench ({names})", "Native") as inserter:
                inserter.append(body)
                inserter.finish()

        figure("insert_in_process", INSERT_ROWS / best_seconds(insert_in_process), "rows/s")
        engine.close()

    figures.print_all()


if __name__ == "__main__":
    main()
