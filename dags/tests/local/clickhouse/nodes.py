"""Nodes of the local ClickHouse as processes, which are always ended."""

import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
from clickhouse_driver import Client

PROJECT = Path(__file__).parents[4]
START_SECONDS = 60
STOP_SECONDS = 30


@dataclass(frozen=True)
class RunningNode:
    """A node that accepts connections."""

    process: subprocess.Popen[str]
    port: int
    path: Path

    def client(self, **options: Any) -> Client:
        """Return a client of this node; `options` are those of `clickhouse_driver.Client`."""
        return Client("127.0.0.1", port=self.port, connect_timeout=10, send_receive_timeout=120, **options)

    def query(self, sql: str, *arguments: Any, **options: Any) -> Any:
        """Run one statement on a new connection."""
        with self.client() as client:
            return client.execute(sql, *arguments, **options)

    def resident_bytes(self) -> int:
        """Return the resident memory of the process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def sockets(self) -> int:
        """Return the number of connected clients."""
        established = psutil.Process(self.process.pid).net_connections("tcp")
        return sum(connection.status == psutil.CONN_ESTABLISHED for connection in established)

    def threads(self) -> int:
        """Return the number of threads of the process."""
        return int(psutil.Process(self.process.pid).num_threads())

    def kill(self) -> None:
        """Kill the process, as a crash does."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def terminate(self) -> int:
        """Stop the process with SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def command_of_node(path: Path, *options: str, port: int = 0) -> list[str]:
    """Return the command that runs a node on the data in `path`."""
    return [sys.executable, "-m", "dags.local.clickhouse", "--port", str(port), "--path", str(path), *options]


@contextmanager
def running_node(path: Path, *options: str, port: int = 0) -> Iterator[RunningNode]:
    """Run a node on the data in `path`, and kill it at the end of the block unless it has ended."""
    log = path.with_suffix(".log")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("a") as errors,
        subprocess.Popen(
            command_of_node(path, *options, port=port), cwd=PROJECT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
            word, _, number = (process.stdout.readline() if readable else "").partition(" ")
            assert word == "ready", f"the node on {path} did not start:\n{log.read_text()}"
            yield RunningNode(process, int(number), path)
        finally:
            if process.poll() is None:
                process.kill()


def wait_until(description: str, condition: Any, seconds: float = 10.0) -> None:
    """Return once `condition()` is true; fail with `description` after `seconds`."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"{description}: not within {seconds} seconds"
        sleep(0.05)
