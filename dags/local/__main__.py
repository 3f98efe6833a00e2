"""The command `python -m dags.local`: start, look at and erase the embedded stack.

What belongs here: options, tables, questions and exit codes. What does not: doing any of it (`stack`, `directory`).
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import NoReturn

import click

from dags.common.settings import Settings, SettingsError
from dags.local import directory, ports, services, stack

EXIT_BROKEN = 1
EXIT_NOT_RUNNING = 3
EXIT_COMMAND_NOT_FOUND = 127

directory_option = click.option(
    "--directory",
    "path",
    type=click.Path(path_type=Path),
    default=Path(".local"),
    show_default=True,
    help="Where the data live.",
)
port_type = click.IntRange(1, 65535)


@click.group()
def main() -> None:
    """ClickHouse, S3 and Postgres on this machine, without Docker."""


@main.command(context_settings={"allow_interspersed_args": False})
@directory_option
@click.option(
    "--nodes", type=click.IntRange(1, 16), default=1, show_default=True, help="ClickHouse nodes, one a shard."
)
@click.option("--clickhouse-port", type=port_type, help="Of the first node; others follow.  [default: CLICKHOUSE_PORT]")
@click.option("--s3-port", type=port_type, help="[default: that of OBJECT_STORAGE_ENDPOINT]")
@click.option("--postgres-port", type=port_type, help="[default: POSTGRES_PORT]")
@click.option(
    "--services",
    "kinds",
    default=",".join(stack.KINDS),
    show_default=True,
    help="Start only these, separated by commas.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def up(
    path: Path,
    nodes: int,
    clickhouse_port: int | None,
    s3_port: int | None,
    postgres_port: int | None,
    kinds: str,
    command: tuple[str, ...],
) -> None:
    """Start the stack and keep it running until Ctrl-C or SIGTERM.

    With `-- COMMAND...`, run that command beside it, with the variables that point at it, then stop the stack and exit
    with the command's code. When the stack already runs on the directory, the command uses it and leaves it running.
    """
    chosen = tuple(kind.strip() for kind in kinds.split(","))
    unknown = sorted(set(chosen) - set(stack.KINDS))
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: known are {', '.join(stack.KINDS)}.", param_hint="--services")
    if command and shutil.which(command[0]) is None:
        say(f"Error: the command {command[0]} was not found.")
        sys.exit(EXIT_COMMAND_NOT_FOUND)
    try:
        plan = stack.plan_from_settings(
            # This stack is local by definition.
            Settings(debug=True),
            path,
            nodes=nodes,
            clickhouse_port=clickhouse_port,
            s3_port=s3_port,
            postgres_port=postgres_port,
            kinds=chosen,
        )
        code = stack.up(plan, command, say=say, show=show)
    except (directory.DirectoryError, services.ServiceError, stack.StackError, SettingsError) as error:
        fail(str(error))
    except OSError as error:
        fail(str(directory.explain(error, path)))
    sys.exit(code)


@main.command()
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def status(path: Path, *, as_json: bool) -> None:
    """Show what runs where. Exit code 0: all runs; 3: nothing runs; 1: something is broken."""
    try:
        code, rows, supervisor = look(path.resolve())
    except directory.DirectoryError as error:
        fail(str(error))
    except OSError as error:
        fail(str(directory.explain(error, path)))
    if as_json:
        click.echo(
            json.dumps({"directory": str(path.resolve()), "supervisor_pid": supervisor, "services": rows}, indent=2)
        )
    elif rows:
        shown = [
            [
                str(row["service"]),
                str(row["address"]),
                str(row["pid"]),
                str(row["state"]),
                human_bytes(int(str(row["data_bytes"]))),
                human_seconds(float(str(row["uptime_seconds"]))),
            ]
            for row in rows
        ]
        click.echo(table(["service", "address", "pid", "state", "data", "uptime"], shown))
    else:
        click.echo(f"No stack runs on {path.resolve()}.")
    sys.exit(code)


def look(path: Path) -> tuple[int, list[dict[str, object]], int | None]:
    """Exit code of `status`, a row for each service, and the supervisor's pid when it lives."""
    state = directory.read_state(path) if directory.is_ours(path) else None
    if state is None or not (state.supervisor.is_alive() or any(one.process.is_alive() for one in state.services)):
        return EXIT_NOT_RUNNING, [], None
    environment = state.environment
    credentials = services.Credentials(
        postgres_user=environment["POSTGRES_USER"],
        postgres_database=environment["POSTGRES_DATABASE"],
        s3_region=environment["OBJECT_STORAGE_REGION"],
    )
    rows: list[dict[str, object]] = []
    for one in state.services:
        if one.process.is_alive():
            problem = services.probe(one.kind, one.port, credentials)
            health = "running" if problem is None else f"not answering: {problem}"
        else:
            health = "dead"
        rows.append(
            {
                "service": one.name,
                "address": f"{ports.LOOPBACK}:{one.port}",
                "pid": one.process.pid,
                "state": health,
                "data_bytes": directory.size_bytes(Path(one.directory)),
                "uptime_seconds": round(max(time.time() - one.process.created, 0), 1),
            }
        )
    if not state.supervisor.is_alive():
        # Its services are about to notice.
        return EXIT_BROKEN, rows, None
    healthy = state.phase == "ready" and all(row["state"] == "running" for row in rows)
    return (0 if healthy else EXIT_BROKEN), rows, state.supervisor.pid


@main.command()
@directory_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def wipe(path: Path, *, yes: bool) -> None:
    """Erase the data of a stack that does not run."""
    path = path.resolve()
    if not path.exists():
        click.echo(f"Nothing to erase: {path} does not exist.")
        return
    if not directory.is_ours(path):
        fail(f"{path} was not made by the local stack (no {directory.MARKER} in it): nothing is erased.")
    try:
        with directory.lock(path):
            stack.stop_leftovers(path, say)
            click.echo(f"This erases, in {path}:")
            for entry, size in directory.own_entries(path):
                click.echo(f"  {entry.name}  {human_bytes(size)}")
            if not yes:
                click.confirm("Erase them?", abort=True)
            directory.erase(path)
    except directory.DirectoryError as error:
        fail(str(error))
    kept = f"; {path} holds other files and stays" if path.exists() else ""
    click.echo(f"Erased{kept}.")


def say(line: str) -> None:
    """Shows a line to the person at the terminal; stdout is left to the command of `up`."""
    click.echo(line, err=True)


def fail(message: str) -> NoReturn:
    """Ends the command with an error message."""
    say(f"Error: {message}")
    sys.exit(EXIT_BROKEN)


def show(plan: stack.Plan, running: stack.Stack) -> None:
    """Shows what runs where."""
    rows = [
        [one.service.name, one.service.address, str(one.process.pid), relative(one.service.directory)]
        for one in running.started
    ]
    say("")
    say(table(["service", "address", "pid", "data"], rows))
    say(f"\nLogs are in {relative(plan.directory / 'logs')}.")


def relative(path: Path) -> str:
    """A path as short as it can be said from here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Left-aligned columns."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
    return "\n".join(lines)


def human_bytes(size: int) -> str:
    """A size such as `12.3 MiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:  # noqa: PLR2004 - the step between units
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def human_seconds(seconds: float) -> str:
    """A duration such as `2 h 3 min`."""
    whole = int(seconds)
    if whole < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{whole} s"
    if whole < 3600:  # noqa: PLR2004 - seconds of an hour
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


if __name__ == "__main__":
    main(prog_name="python -m dags.local")
