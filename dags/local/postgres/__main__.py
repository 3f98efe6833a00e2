"""`python -m dags.local.postgres`: the local Postgres until SIGTERM or Ctrl-C."""

import signal
from pathlib import Path
from types import FrameType

import click

from dags.local.postgres import privileges
from dags.local.postgres.server import (
    SUPERUSER,
    PostgresError,
    ensure_user_and_databases,
    hold,
    prepare,
    start,
    stop,
    wait_for_previous,
)


@click.group()
def main() -> None:
    """The local Postgres."""


@main.command()
@click.option("--parent", type=int, required=True, help="Process whose death ends the command.")
@click.option("--death-signal", type=int, required=True, help="Signal that the command then gets; 0 for none.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_unprivileged(parent: int, death_signal: int, command: tuple[str, ...]) -> None:
    """Replace this process by a command without the rights of root (used by `serve`)."""
    privileges.run_unprivileged(parent, death_signal, command)


@main.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True)
@click.option("--path", type=click.Path(path_type=Path, file_okay=False, resolve_path=True), required=True)
@click.option("--user", default=SUPERUSER, show_default=True, help="Superuser to create if missing; has no password.")
@click.option("--database", "databases", multiple=True, help="Database to create if it is missing; may be repeated.")
def serve(port: int, path: Path, user: str, databases: tuple[str, ...]) -> None:
    """Run Postgres until SIGTERM or SIGINT; print `ready PORT` when it answers."""

    class Stop(Exception):  # noqa: N818 - not an error, it ends a wait
        pass

    interruptible = False
    stop_requested = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal stop_requested
        stop_requested = True
        if interruptible:
            raise Stop

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    server = None
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Not interrupted: it takes seconds, and a killed initdb leaves shared memory behind.
        data = prepare(path, hold(path))
        interruptible = True
        if stop_requested:
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
    raise click.ClickException(f"Postgres exited with code {code}; its messages are above.")


if __name__ == "__main__":
    main()
