"""The stack's data directory: its marker, who holds it, what is in it, how it is erased.

What belongs here: everything known from the directory alone. What does not: processes and their health (`services`).

The marker file says that a directory is ours, so that nothing else is ever erased, and carries the lock of the running
stack: the kernel releases it with the process, so no lock can be left behind. `stack.json` describes the running stack.
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
# Everything that the stack makes. Only these are ever erased.
OWN_ENTRIES = ("clickhouse", "s3", "postgres", "logs", STATE, MARKER)
# A `status` holds the lock for a moment, too short to be taken for a running stack.
LOCK_TIMEOUT_SECONDS = 1.0
# ClickHouse and Postgres fail in confusing ways on a full disk; this is room for both to start.
MINIMUM_FREE_BYTES = 512 * 1024**2

Phase = Literal["starting", "ready", "stopping"]


class DirectoryError(Exception):
    """The directory cannot be used. The message says why and what to do."""


class HeldError(DirectoryError):
    """Another stack runs on the directory."""


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same id by when it was made (seconds since 1970)."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> "Process | None":
        """The running process with this id, if there is one."""
        import psutil

        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None

    def is_alive(self) -> bool:
        """Whether this very process still runs. A zombie does not."""
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
    """A running stack, as it describes itself in `stack.json`."""

    supervisor: Process
    phase: Phase
    services: tuple[RunningService, ...]
    # Environment variables that point a client at it.
    environment: dict[str, str]


def open_directory(path: Path) -> None:
    """Makes the directory, or checks that it is ours and usable. Raises DirectoryError otherwise."""
    try:
        if not path.exists():
            # Data of other people's databases are nobody else's business.
            path.mkdir(parents=True, mode=0o700)
        elif not path.is_dir():
            raise DirectoryError(f"{path} is not a directory: choose another one with --directory.")
        elif not is_ours(path) and any(path.iterdir()):
            raise DirectoryError(
                f"{path} holds files that are not of the local stack (no {MARKER} in it): "
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
    if free < MINIMUM_FREE_BYTES:
        raise DirectoryError(
            f"The disk of {path} has {free // 1024**2} MiB left; the local stack needs {MINIMUM_FREE_BYTES // 1024**2} "
            "to start. Free some space, or choose a directory on another disk with --directory."
        )


def explain(error: OSError, path: Path) -> DirectoryError:
    """The same error in words that say what to do."""
    if error.errno in (errno.EACCES, errno.EPERM):
        reason = "you may not read and write it: it belongs to another user, perhaps root"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full"
    elif error.errno == errno.EROFS:
        reason = "it is on a read-only file system"
    else:
        reason = error.strerror or str(error)
    return DirectoryError(f"{error.filename or path} cannot be used: {reason}. Choose another one with --directory.")


def is_ours(path: Path) -> bool:
    """Whether the directory was made by the stack."""
    return (path / MARKER).is_file()


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the directory. Raises HeldError, naming the holder, when another process does."""
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
                    who = f"process {state.supervisor.pid}" if state else "another process"
                    raise HeldError(
                        f"The local stack already runs on {path} ({who}). "
                        "Stop it with Ctrl-C or SIGTERM, or choose another directory with --directory."
                    ) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a stack runs on the directory now."""
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
    """Replaces `stack.json` in one step."""
    unfinished = path / f"{STATE}.new"
    unfinished.write_text(json.dumps(dataclasses.asdict(state), indent=2))
    unfinished.replace(path / STATE)


def read_state(path: Path) -> DirectoryState | None:
    """What the last stack wrote of itself; None when it stopped in order or never was. It may be dead by now."""
    try:
        fields = json.loads((path / STATE).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DirectoryError(f"{path / STATE} is damaged ({error}): remove that file.") from None
    return DirectoryState(
        supervisor=Process(**fields["supervisor"]),
        phase=fields["phase"],
        services=tuple(
            RunningService(**{**service, "process": Process(**service["process"])}) for service in fields["services"]
        ),
        environment=fields["environment"],
    )


def remove_state(path: Path) -> None:
    """Removes `stack.json`: the stack has stopped in order."""
    (path / STATE).unlink(missing_ok=True)


def size_bytes(path: Path) -> int:
    """Bytes of all files below a path; files that vanish meanwhile count as nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - twice as fast on many files
    return total


def own_entries(path: Path) -> list[tuple[Path, int]]:
    """What the stack has in its directory, with sizes in bytes."""
    entries = [path / name for name in OWN_ENTRIES if (path / name).exists()]
    return [(entry, size_bytes(entry) if entry.is_dir() else entry.stat().st_size) for entry in entries]


def erase(path: Path) -> None:
    """Removes what the stack made, and the directory itself when nothing else is in it. The caller holds the lock."""
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
