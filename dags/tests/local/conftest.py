"""Fixtures of the tests of the stack, which run stacks as processes."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dags.local import directory, ports, services

WAIT_SECONDS = 90


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return once the condition is true; fail the test after a timeout."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting until {what}"
        time.sleep(0.05)


def processes_of(path: Path) -> list[str]:
    """Return the processes of a stack on this directory: those that name it or work in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if str(path) in " ".join(process.cmdline()) or process.cwd().startswith(str(path)):
                found.append(f"{process.pid} {process.cmdline()}")
    return found


class RunningUp:
    """`python -m dags.local up` as a process."""

    def __init__(self, path: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.path = path
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dags.local", "up", "--directory", str(path), *arguments],
            cwd=services.PROJECT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        """Its output so far."""
        return "".join(self.lines)

    def ready(self) -> "RunningUp":
        """Wait until the stack is ready."""

        def is_ready() -> bool:
            assert self.process.poll() is None, f"up ended with code {self.process.returncode}:\n{self.output}"
            state = directory.read_state(self.path)
            # Of this process: a killed supervisor may have left another.
            return state is not None and state.supervisor.pid == self.process.pid and state.phase == "ready"

        wait_until(is_ready, "the stack is ready")
        return self

    def ended(self) -> int:
        """Wait until it ends, and return the exit code."""
        code = self.process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        return code

    def pid_of(self, service: str) -> int:
        """Return the process id of a service."""
        state = directory.read_state(self.path)
        assert state is not None
        return next(running.process.pid for running in state.services if running.name == service)


@pytest.fixture
def stack_directory() -> Iterator[Path]:
    """A path for a stack; waits after the test until no process of the stack is left."""
    with tempfile.TemporaryDirectory(prefix="stack-") as parent:
        path = Path(parent).resolve() / "local"
        yield path
        wait_until(lambda: not processes_of(path), "no process of the stack is left")


StartUp = Callable[..., RunningUp]


@pytest.fixture
def free_ports() -> list[str]:
    """Options of `up` with free ports."""
    options = ("--s3-port", "--postgres-port", "--clickhouse-port")
    return [part for option in options for part in (option, str(ports.free_port()))]


@pytest.fixture
def start_up(stack_directory: Path, free_ports: list[str]) -> Iterator[StartUp]:
    """Start `up` on the stack directory and free ports, with further arguments; stop all after the test."""
    begun: list[RunningUp] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> RunningUp:
        begun.append(RunningUp(stack_directory, *free_ports, *arguments, environment=environment))
        return begun[-1]

    yield start
    for up in begun:
        if up.process.poll() is None:
            up.process.terminate()
            up.ended()
        assert up.process.stdout is not None
        up.process.stdout.close()
