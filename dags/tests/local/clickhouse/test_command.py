"""The command that runs a node: its output, how it stops, and errors at start."""

import signal
import socket
import subprocess
from pathlib import Path
from time import sleep

import pytest

from dags.tests.local.clickhouse.nodes import PROJECT, START_SECONDS, RunningNode, command_of_node, running_node
from dags.tests.local.clickhouse.raw import RawClient, block
from dags.tests.local.clickhouse.test_session import LONG_QUERY


def run(path: Path, *options: str, port: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a node that must fail to start."""
    return subprocess.run(
        command_of_node(path, *options, port=port),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


def assert_fails_to_start(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that the command failed with a message of one line that contains `words`."""
    assert result.returncode != 0
    assert "ready" not in result.stdout
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_named_with_the_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(tmp_path / "node", port=port)
    assert_fails_to_start(result, str(port), "--port")
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_data_directory_in_use_is_named_with_the_remedy(node: RunningNode) -> None:
    result = run(node.path)
    assert_fails_to_start(result, str(node.path), "in use", "--path")
    assert len(result.stderr.strip().splitlines()) == 1
    assert node.query("SELECT 1") == [(1,)]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    assert_fails_to_start(run(tmp_path / "file" / "node"), str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--cluster-nodes", "localhost"), "127.0.0.1:19000"),
        (("--cluster-nodes", "127.0.0.1:0"), "127.0.0.1:0"),
        (("--cluster-nodes", "127.0.0.1:1,127.0.0.1:2", "--shard", "3"), "--shard"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: tuple[str, ...], word: str) -> None:
    assert_fails_to_start(run(tmp_path / "node", *options), word)


def test_a_failed_start_leaves_nothing_behind(tmp_path: Path) -> None:
    run(tmp_path / "node", "--cluster-nodes", "localhost")
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_busy_node_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with running_node(tmp_path / "node") as node:
        node.query("CREATE TABLE target (a UInt64) ENGINE = MergeTree ORDER BY a")
        with (
            RawClient(node.port) as aggregating,
            RawClient(node.port) as streaming,
            RawClient(node.port) as unread,
            RawClient(node.port) as inserting,
            RawClient(node.port) as idle,
            RawClient(node.port, greet=False),
        ):
            aggregating.send_query(LONG_QUERY)
            aggregating.receive()
            streaming.send_query("SELECT number FROM numbers(1000000000000)")
            streaming.receive()
            unread.send_query("SELECT repeat('x', 1000) FROM numbers(1000000000000)")
            inserting.send_query("INSERT INTO target VALUES")
            inserting.receive()
            inserting.send(block([("a", "UInt64", bytes(8))], 1))
            idle.ping()
            sleep(0.3)
            node.process.send_signal(number)
            assert node.process.wait(15) == 0
        assert "Traceback" not in node.path.with_suffix(".log").read_text()
    with running_node(tmp_path / "node") as again:
        assert again.query("SELECT count() FROM target") == [(0,)]


def test_the_node_listens_on_loopback_only(node: RunningNode) -> None:
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in addresses - {address for address in addresses if str(address).startswith("127.")}:
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((str(address), node.port), timeout=5)


def test_backups_go_to_the_nodes_own_directory(node: RunningNode, database: str) -> None:
    node.query(f"CREATE TABLE {database}.saved (a Int8) ENGINE = MergeTree ORDER BY a")
    node.query(f"INSERT INTO {database}.saved VALUES", [(7,)])
    file = node.path / "backups" / database
    node.query(f"BACKUP TABLE {database}.saved TO File('{file}')")
    assert file.exists()
    node.query(f"DROP TABLE {database}.saved SYNC")
    node.query(f"RESTORE TABLE {database}.saved FROM File('{file}')")
    assert node.query(f"SELECT a FROM {database}.saved") == [(7,)]  # noqa: S608 - names of the test
