"""The stack's data directory: its marker, its lock, its contents, and how it is erased.

The marker file shows that the stack created the directory, so that nothing else is ever erased. It also carries the
lock of the running stack, which the kernel releases when the process ends. `stack.json` describes the running stack.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

MARKER = "dagster-local-stack"
MARKER_TEXT = "Data of the local stack: see `python -m dags.local --help`. `python -m dags.local wipe` erases it.\n"
STATE = "stack.json"
# Everything that the stack creates. Only these are ever erased.
OWN_ENTRIES = ("clickhouse", "s3", "postgres", "logs", STATE, MARKER)
# `status` holds the lock for a moment; waiting longer than that shows that a stack runs.
LOCK_TIMEOUT_SECONDS = 1.0
# Both ClickHouse and Postgres need space to start, and report a full disk in confusing ways.
MIN_FREE_BYTES = 512 * 1024**2

Phase = Literal["starting", "ready", "stopping"]


class DirectoryError(Exception):
    """The directory cannot be used. The message says why and what to do."""


class HeldError(DirectoryError):
    """Another stack runs on the directory."""


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, identified by its id and creation time (seconds since 1970), because ids are reused."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """Return the running process with this id, if there is one."""
        import psutil

        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def is_alive(self) -> bool:
        """Return whether the process still runs. A zombie does not."""
        import psutil

        try:
            process = psutil.Process(self.pid)
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


@dataclasses.dataclass(frozen=True)
class RunningService:
    """One service of a running stack."""

    name: str
    kind: str
    port: int
    directory: str
    process: Process


@dataclasses.dataclass(frozen=True)
class DirectoryState:
    """A running stack, as `stack.json` describes it."""

    supervisor: Process
    phase: Phase
    services: tuple[RunningService, ...]
    # Environment variables that point a client at the stack.
    environment: dict[str, str]

    @property
    def processes(self) -> list[Process]:
        """The supervisor and the services."""
        return [self.supervisor, *(service.process for service in self.services)]


def open_directory(path: Path) -> None:
    """Create the directory, or check that the stack created it and can use it. Raises DirectoryError otherwise."""
    try:
        if not path.exists():
            # Other users of the machine must not read the data.
            path.mkdir(parents=True, mode=0o700)
        elif not path.is_dir():
            raise DirectoryError(f"{path} is not a directory: choose another one with --directory.")
        elif not is_stack_directory(path) and any(path.iterdir()):
            raise DirectoryError(
                f"{path} has files that the local stack did not create (it has no {MARKER}): "
                "choose an empty or new directory with --directory."
            )
        marker = path / MARKER
        if not marker.exists():
            marker.write_text(MARKER_TEXT)
        probe = path / f".writable-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise explain(error, path) from None
    free = shutil.disk_usage(path).free
    if free < MIN_FREE_BYTES:
        raise DirectoryError(
            f"The disk of {path} has {free // 1024**2} MiB left; the local stack needs {MIN_FREE_BYTES // 1024**2} "
            "to start. Free some space, or choose a directory on another disk with --directory."
        )


def explain(error: OSError, path: Path) -> DirectoryError:
    """Return the error with a message that says what to do."""
    if error.errno in (errno.EACCES, errno.EPERM):
        reason = "you cannot read and write it: it belongs to another user, perhaps root"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full"
    elif error.errno == errno.EROFS:
        reason = "it is on a read-only file system"
    else:
        reason = error.strerror or str(error)
    return DirectoryError(f"{error.filename or path} cannot be used: {reason}. Choose another one with --directory.")


def is_stack_directory(path: Path) -> bool:
    """Return whether the stack created the directory."""
    return (path / MARKER).is_file()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Lock the directory. Raises HeldError, which names the holder, when another process holds the lock."""
    try:
        descriptor = os.open(path / MARKER, os.O_RDWR)
    except OSError as error:
        raise explain(error, path) from None
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    state = read_state(path)
                    holder = f"process {state.supervisor.pid}" if state else "another process"
                    raise HeldError(
                        f"The local stack already runs on {path} ({holder}). "
                        "Stop it with Ctrl-C or SIGTERM, or choose another directory with --directory."
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Return whether a stack runs on the directory."""
    try:
        descriptor = os.open(path / MARKER, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_state(path: Path, state: DirectoryState) -> None:
    """Replace `stack.json` atomically."""
    unfinished = path / f"{STATE}.new"
    unfinished.write_text(json.dumps(dataclasses.asdict(state), indent=2))
    unfinished.replace(path / STATE)


def read_state(path: Path) -> DirectoryState | None:
    """Return what the last stack wrote, or None if it stopped in order or none ever ran. It may be dead by now."""
    try:
        fields = json.loads((path / STATE).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DirectoryError(f"{path / STATE} is damaged ({error}): remove the file.") from None
    return DirectoryState(
        supervisor=Process(**fields["supervisor"]),
        phase=fields["phase"],
        services=tuple(
            RunningService(**{**service, "process": Process(**service["process"])}) for service in fields["services"]
        ),
        environment=fields["environment"],
    )


def remove_state(path: Path) -> None:
    """Remove `stack.json`, because the stack has stopped in order."""
    (path / STATE).unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Return the bytes of all files below a path, without those that vanish meanwhile."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - twice as fast on many files
    return total


def own_entries(path: Path) -> list[tuple[Path, int]]:
    """Return the entries of the directory that the stack created, with sizes in bytes."""
    entries = [path / name for name in OWN_ENTRIES if (path / name).exists()]
    return [(entry, size_bytes(entry) if entry.is_dir() else entry.stat().st_size) for entry in entries]


def erase(path: Path) -> None:
    """Remove what the stack created, and the directory if it is then empty. The caller holds the lock."""
    try:
        for name in OWN_ENTRIES:
            entry = path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.rmdir()
    except OSError as error:
        raise explain(error, path) from None
