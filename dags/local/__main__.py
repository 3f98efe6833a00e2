"""`python -m dags.local`: start, show and erase the embedded stack."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import click

from dags.common.settings import Settings, SettingsError
from dags.local import directory, services, stack
from dags.local.plan import KINDS, PlanError, StackPlan, plan_from_settings
from dags.local.status import EXIT_BROKEN, read_status
from dags.local.text import human_bytes, human_seconds, table

EXIT_COMMAND_NOT_FOUND = 127

directory_option = click.option(
    "--directory",
    "path",
    type=click.Path(path_type=Path),
    default=Path(".local"),
    show_default=True,
    help="Directory of the data.",
)
port_type = click.IntRange(1, 65535)


@click.group()
def main() -> None:
    """ClickHouse, S3 and Postgres on this machine, without Docker."""


@main.command(context_settings={"allow_interspersed_args": False})
@directory_option
@click.option(
    "--nodes", type=click.IntRange(1, 16), default=1, show_default=True, help="ClickHouse nodes, one for each shard."
)
@click.option("--clickhouse-port", type=port_type, help="Port of the first node.  [default: CLICKHOUSE_PORT]")
@click.option("--s3-port", type=port_type, help="[default: that of OBJECT_STORAGE_ENDPOINT]")
@click.option("--postgres-port", type=port_type, help="[default: POSTGRES_PORT]")
@click.option(
    "--services", "kinds", default=",".join(KINDS), show_default=True, help="Services to start, separated by commas."
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

    With `-- COMMAND...`, run that command with environment variables that point at the stack, then stop the stack and
    exit with the command's code. If the stack already runs on the directory, the command uses it and leaves it running.
    """
    chosen = tuple(kind.strip() for kind in kinds.split(","))
    unknown = sorted(set(chosen) - set(KINDS))
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(KINDS)}.", param_hint="--services")
    if command and shutil.which(command[0]) is None:
        say(f"Error: the command {command[0]} was not found.")
        sys.exit(EXIT_COMMAND_NOT_FOUND)
    try:
        plan = plan_from_settings(
            # This stack is always local.
            Settings(debug=True),
            path,
            nodes=nodes,
            clickhouse_port=clickhouse_port,
            s3_port=s3_port,
            postgres_port=postgres_port,
            kinds=chosen,
        )
        code = stack.up(plan, command, say=say, show=show)
    except (directory.DirectoryError, PlanError, services.ServiceError, stack.StackError, SettingsError) as error:
        fail(str(error))
    except OSError as error:
        fail(str(directory.explain(error, path)))
    sys.exit(code)


@main.command()
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(path: Path, *, as_json: bool) -> None:
    """Show the services and their addresses. Exit code 0: all run; 3: none runs; 1: some do not answer."""
    try:
        found = read_status(path.resolve())
    except directory.DirectoryError as error:
        fail(str(error))
    except OSError as error:
        fail(str(directory.explain(error, path)))
    if as_json:
        shown = {
            "directory": str(path.resolve()),
            "supervisor_pid": found.supervisor_pid,
            "services": [dataclasses.asdict(service) for service in found.services],
        }
        click.echo(json.dumps(shown, indent=2))
    elif found.services:
        rows = [
            [
                service.service,
                service.address,
                str(service.pid),
                service.state,
                human_bytes(service.data_bytes),
                human_seconds(service.uptime_seconds),
            ]
            for service in found.services
        ]
        click.echo(table(["service", "address", "pid", "state", "data", "uptime"], rows))
    else:
        click.echo(f"No stack runs on {path.resolve()}.")
    sys.exit(found.exit_code)


@main.command()
@directory_option
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def wipe(path: Path, *, yes: bool) -> None:
    """Erase the data of a stack that is not running."""
    path = path.resolve()
    if not path.exists():
        click.echo(f"Nothing to erase: {path} does not exist.")
        return
    if not directory.is_stack_directory(path):
        fail(f"{path} was not created by the local stack (it has no {directory.MARKER}): nothing is erased.")
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
    kept = f"; {path} stays, because it has other files" if path.exists() else ""
    click.echo(f"Erased{kept}.")


def say(line: str) -> None:
    """Print a line to stderr; stdout belongs to the command of `up`."""
    click.echo(line, err=True)


def fail(message: str) -> NoReturn:
    """Exit with an error message."""
    say(f"Error: {message}")
    sys.exit(EXIT_BROKEN)


def show(plan: StackPlan, running: stack.Stack) -> None:
    """Print the services and their addresses."""
    rows = [
        [one.service.name, one.service.address, str(one.process.pid), relative(one.service.directory)]
        for one in running.started
    ]
    say("")
    say(table(["service", "address", "pid", "data"], rows))
    say(f"\nLogs are in {relative(plan.directory / 'logs')}.")


def relative(path: Path) -> str:
    """Return the path relative to the current directory if it is below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    main(prog_name="python -m dags.local")
