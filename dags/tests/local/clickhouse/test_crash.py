"""A node that is killed during inserts keeps every acknowledged insert and duplicates none."""

import random
import threading
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep

import pytest
from clickhouse_driver.errors import Error

from dags.tests.local.clickhouse.nodes import RunningNode, running_node, wait_until

WRITERS = 2
ROWS_IN_BATCH = 500
SEED = 20_260_131


@dataclass
class Writer:
    """A writer of consecutive batches, which sends an unacknowledged batch again with the same token."""

    number: int
    batch: int = 0
    acknowledged: set[int] = field(default_factory=set)

    def write_until_the_node_dies(self, node: RunningNode) -> None:
        """Write batches; return when the connection breaks. Raises for an error that the server itself reports."""
        try:
            with node.client(compression=self.number % 2 == 0) as client:
                while True:
                    rows = [(self.number, self.batch, row) for row in range(ROWS_IN_BATCH)]
                    token = {"insert_deduplication_token": f"{self.number} {self.batch}"}
                    assert client.execute("INSERT INTO batches VALUES", rows, settings=token) in (0, ROWS_IN_BATCH)
                    self.acknowledged.add(self.batch)
                    self.batch += 1
        except (Error, OSError, EOFError):
            if node.process.poll() is None:
                wait_until(
                    "the node is dead, or else this error is the server's own", lambda: node.process.poll() is not None
                )


def crash(path: Path, writers: list[Writer], seconds: float) -> None:
    """Run a node, write, kill it."""
    with running_node(path) as node:
        threads = [threading.Thread(target=writer.write_until_the_node_dies, args=(node,)) for writer in writers]
        for thread in threads:
            thread.start()
        sleep(seconds)
        node.kill()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def assert_kept_once(node: RunningNode, writers: list[Writer]) -> None:
    for writer in writers:
        rows = node.query(
            "SELECT batch, count(), uniqExact(row) FROM batches WHERE writer = %(writer)s "
            "GROUP BY batch ORDER BY batch",
            {"writer": writer.number},
        )
        wrong = [row for row in rows if row[1:] != (ROWS_IN_BATCH, ROWS_IN_BATCH)]
        assert not wrong, f"writer {writer.number}: batches with a wrong number of rows: {wrong}"
        missing = writer.acknowledged - {batch for batch, _, _ in rows}
        assert not missing, f"writer {writer.number}: acknowledged and lost: {sorted(missing)}"


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_acknowledged_inserts_survive_kills_and_retried_ones_are_not_duplicated(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "node"
    with running_node(path) as node:
        node.query(
            "CREATE TABLE batches (writer UInt8, batch UInt32, row UInt32) "
            "ENGINE = MergeTree ORDER BY (writer, batch, row) "
            "SETTINGS non_replicated_deduplication_window = 10000"
        )
    generator = random.Random(SEED)  # noqa: S311 - reproducible
    writers = [Writer(number) for number in range(WRITERS)]
    for _ in range(rounds):
        written = sum(len(writer.acknowledged) for writer in writers)
        # A kill before the first acknowledgement proves nothing.
        while sum(len(writer.acknowledged) for writer in writers) == written:
            crash(path, writers, generator.uniform(0.3, 1.0))
    with running_node(path) as node:
        assert_kept_once(node, writers)
        assert all(writer.acknowledged for writer in writers)
        # A restarted node merges and accepts new inserts.
        node.query("OPTIMIZE TABLE batches FINAL")
        assert_kept_once(node, writers)
        assert node.query("INSERT INTO batches VALUES", [(99, 0, 0)]) == 1


def test_the_query_log_works_again_after_a_kill(tmp_path: Path) -> None:
    for turn in range(2):
        with running_node(tmp_path / "node") as node:
            assert node.query("SELECT %(turn)s", {"turn": turn}, query_id=f"turn {turn}") == [(turn,)]
            node.query("SYSTEM FLUSH LOGS")
            seen = node.query(
                "SELECT count() FROM system.query_log WHERE query_id = %(id)s AND type = 'QueryFinish'",
                {"id": f"turn {turn}"},
            )
            assert seen == [(1,)]
            node.kill()
