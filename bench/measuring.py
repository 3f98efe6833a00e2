"""Helpers of the benchmarks: figures with their aims, a ClickHouse node, time and memory."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).parents[1]
# The benchmarks are started by path, and the project is not installed.
sys.path.insert(0, str(ROOT))


@dataclass
class Figures:
    """Figures in the order of measurement. Each is printed when it is added, and all at the end, one per line."""

    lines: list[str] = field(default_factory=list)

    def add(
        self, name: str, value: float, unit: str, *, at_most: float | None = None, at_least: float | None = None
    ) -> None:
        """Add a figure. Without an aim it is for information."""
        print(f"  {name}: {value:.2f} {unit}", flush=True)
        if at_most is not None:
            verdict = f"<={at_most:g} {'ok' if value <= at_most else 'short'}"
        elif at_least is not None:
            verdict = f">={at_least:g} {'ok' if value >= at_least else 'short'}"
        else:
            verdict = "-"
        self.lines.append(f"{name} {value:.2f} {unit} aim {verdict}")

    def print_all(self) -> None:
        """Print one line per figure: `name value unit aim AIM ok|short`."""
        print("", *self.lines, sep="\n", flush=True)


@contextmanager
def node(directory: Path) -> Iterator[tuple[int, int]]:
    """Run a ClickHouse node on a free port until the end of the block; yield the port and the process id."""
    command = [sys.executable, "-m", "dags.local.clickhouse", "--port", "0", "--path", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().split()[1]), process.pid
    finally:
        process.terminate()
        process.wait(60)


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the duration of a call."""
    start = perf_counter()
    work()
    return perf_counter() - start


def resident_mebibytes(pid: int) -> float:
    """Return the current resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def highest_memory(pid: int) -> Iterator[list[float]]:
    """Yield a list whose last element is, after the block, the highest resident memory in MiB."""
    seen = [resident_mebibytes(pid)]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            seen.append(max(seen[-1], resident_mebibytes(pid)))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
