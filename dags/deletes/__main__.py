"""Ask for deletions, and look at what became of them: `python -m dags.deletes --help`.

Belongs here: the command. Not here: the table (`dags/common/deletion_requests.py`) and the deleting (`delete.py`).
"""

import json
import sys
from pathlib import Path
from uuid import UUID

import click

from dags.common import deletion_requests
from dags.common.deletion_requests import DeletionRequest, RequestKind, RequestState, UnknownRequestError
from dags.common.postgres import Postgres, make_postgres
from dags.common.settings import SettingsError, get_settings

BY = click.option("--by", "requested_by", required=True, help="Who asks: a person or a system.")
REASON = click.option("--reason", default="", help="Why, such as the number of a ticket.")
TEAM = click.option("--team", "team_id", type=int, required=True, help="Team whose data it is.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Ask for deletions, and look at what became of them. What "deleted" means is in docs/deletes.md.

    Postgres comes from the POSTGRES_* variables. With DEBUG=1 it is that of the local stack. The tables are made when
    they are missing.
    """
    try:
        postgres = make_postgres(get_settings())
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    context.obj = postgres


@main.group()
def request() -> None:
    """Ask that something be deleted, up to now. The ids of the requests are printed."""


@request.command()
@TEAM
@BY
@REASON
@click.argument("person_ids", type=click.UUID, nargs=-1, required=True)
@click.pass_obj
def person(postgres: Postgres, team_id: int, requested_by: str, reason: str, person_ids: tuple[UUID, ...]) -> None:
    """The events of these persons."""
    _ask(postgres, RequestKind.PERSON, team_id, [str(one) for one in person_ids], requested_by, reason)


@request.command()
@TEAM
@BY
@REASON
@click.pass_obj
def team(postgres: Postgres, team_id: int, requested_by: str, reason: str) -> None:
    """Everything of a team."""
    _ask(postgres, RequestKind.TEAM, team_id, [""], requested_by, reason)


@request.command()
@TEAM
@BY
@REASON
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def event(postgres: Postgres, team_id: int, requested_by: str, reason: str, names: tuple[str, ...]) -> None:
    """The events of a team that have these names."""
    _ask(postgres, RequestKind.EVENT, team_id, list(names), requested_by, reason)


@request.command()
@TEAM
@BY
@REASON
@click.option(
    "--file", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A file with one uuid a line."
)
@click.argument("uuids", type=click.UUID, nargs=-1)
@click.pass_obj
def uuid(
    postgres: Postgres, team_id: int, requested_by: str, reason: str, path: Path | None, uuids: tuple[UUID, ...]
) -> None:
    """Single events by their uuid, whatever time they bear."""
    wanted = [*uuids]
    for number, line in enumerate(path.read_text().splitlines() if path else [], start=1):
        try:
            wanted += [UUID(line.strip())] if line.strip() else []
        except ValueError as error:
            raise click.ClickException(
                f"{path}, line {number}: '{line[:60]}' is no uuid. Nothing was asked."
            ) from error
    if not wanted:
        raise click.UsageError("Give uuids, or a file with some.")
    _ask(postgres, RequestKind.UUID, team_id, [str(one) for one in wanted], requested_by, reason)


@main.command("list")
@click.option("--state", type=click.Choice([state.value for state in RequestState]), help="Only those of this state.")
@click.option("--most", type=click.IntRange(min=1), default=100, show_default=True, help="So many, the oldest first.")
@click.pass_obj
def list_requests(postgres: Postgres, state: str | None, most: int) -> None:
    """Print requests, one a line."""
    deletion_requests.prepare(postgres)
    found = deletion_requests.requests(postgres, state=None if state is None else RequestState(state), most=most)
    for one in found:
        click.echo(_line(one))
    if not found:
        click.echo("There is no request.")


@main.command()
@click.argument("request_id", type=int)
@click.pass_obj
def show(postgres: Postgres, request_id: int) -> None:
    """Print a request with its evidence."""
    deletion_requests.prepare(postgres)
    found = deletion_requests.requests(postgres, ids=[request_id])
    if not found:
        raise click.ClickException(f"There is no deletion request {request_id}.")
    (one,) = found
    click.echo(_line(one))
    click.echo(f"reason: {one.reason or 'none given'}")
    if one.finished_at is not None:
        click.echo(f"finished: {one.finished_at:%Y-%m-%d %H:%M:%S %Z}")
    if one.evidence is not None:
        click.echo(json.dumps(one.evidence, indent=2, sort_keys=True))


@main.command()
@click.argument("request_id", type=int)
@click.option("--why", required=True, help="What the asker is told.")
@click.pass_obj
def refuse(postgres: Postgres, request_id: int, why: str) -> None:
    """End a pending request without doing it."""
    deletion_requests.prepare(postgres)
    try:
        deletion_requests.refuse(postgres, request_id, why)
    except UnknownRequestError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Request {request_id} is refused.")


def _ask(postgres: Postgres, kind: RequestKind, team_id: int, keys: list[str], requested_by: str, reason: str) -> None:
    deletion_requests.prepare(postgres)
    ids = deletion_requests.ask(postgres, kind, team_id, keys, requested_by=requested_by, reason=reason)
    for request_id in ids:
        click.echo(str(request_id))


def _line(one: DeletionRequest) -> str:
    note = f"  {one.note}" if one.note else ""
    what = f"{one.kind} {one.key}".strip()
    return (
        f"{one.id}  {one.state}  team {one.team_id}  {what}  asked {one.requested_at:%Y-%m-%d %H:%M:%S %Z} "
        f"by {one.requested_by}{note}"
    )


if __name__ == "__main__":
    sys.exit(main())
