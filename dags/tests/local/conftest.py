"""Fixtures of the stack's own tests: stacks in processes of their own, as a person starts them."""

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
    """Returns when the condition holds; fails the test when it does not in time."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.05)


def processes_of(path: Path) -> list[str]:
    """Processes that belong to a stack on this directory: named after it, or working in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if str(path) in " ".join(process.cmdline()) or process.cwd().startswith(str(path)):
                found.append(f"{process.pid} {process.cmdline()}")
    return found


class RunningUp:
    """`python -m dags.local up` in a process of its own."""

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
        """Everything it has said so far."""
        return "".join(self.lines)

    def ready(self) -> "RunningUp":
        """Waits until the stack is ready."""

        def is_ready() -> bool:
            assert self.process.poll() is None, f"up ended with code {self.process.returncode}:\n{self.output}"
            state = directory.read_state(self.path)
            # The one of this process: a killed predecessor may have left another.
            return state is not None and state.supervisor.pid == self.process.pid and state.phase == "ready"

        wait_until(is_ready, "the stack is ready")
        return self

    def ended(self) -> int:
        """Waits until it ends, and returns the exit code."""
        code = self.process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        return code

    def pid_of(self, service: str) -> int:
        """Process id of a service."""
        state = directory.read_state(self.path)
        assert state is not None
        return next(one.process.pid for one in state.services if one.name == service)


@pytest.fixture
def stack_directory() -> Iterator[Path]:
    """A path where a stack may be made; nothing of a stack runs on it after the test."""
    with tempfile.TemporaryDirectory(prefix="stack-") as parent:
        path = Path(parent).resolve() / "local"
        yield path
        wait_until(lambda: not processes_of(path), "nothing of the stack runs any more")


StartUp = Callable[..., RunningUp]


@pytest.fixture
def free_ports() -> list[str]:
    """Options of `up` that choose free ports."""
    options = ("--s3-port", "--postgres-port", "--clickhouse-port")
    return [part for option in options for part in (option, str(ports.free_port()))]


@pytest.fixture
def start_up(stack_directory: Path, free_ports: list[str]) -> Iterator[StartUp]:
    """Starts `up` on the stack directory and free ports, with further arguments; all are stopped after the test."""
    begun: list[RunningUp] = []

    def start(*arguments: str, environment: dict[str, str] | None = None) -> RunningUp:
        begun.append(RunningUp(stack_directory, *free_ports, *arguments, environment=environment))
        return begun[-1]

    yield start
    for one in begun:
        if one.process.poll() is None:
            one.process.terminate()
            one.ended()
        assert one.process.stdout is not None
        one.process.stdout.close()
