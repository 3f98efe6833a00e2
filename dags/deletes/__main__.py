"""The command `python -m dags.deletes`: request deletions, and see their state."""

import json
import sys
from pathlib import Path
from uuid import UUID

import click

from dags.common import deletion_requests
from dags.common.deletion_requests import DeletionRequest, RequestKind, RequestState, UnknownRequestError
from dags.common.postgres import Postgres, make_postgres
from dags.common.settings import SettingsError, get_settings

BY = click.option("--by", "requested_by", required=True, help="The requester: a person or a system.")
REASON = click.option("--reason", default="", help="The reason, such as the number of a ticket.")
TEAM = click.option("--team", "team_id", type=int, required=True, help="The team that the data belongs to.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def main(context: click.Context) -> None:
    """Request deletions, and see their state. docs/deletes.md says what "deleted" means.

    A request is a row in the table deletion_requests in Postgres. deletes_job processes the pending requests, after
    each squash of the person overrides and on Wednesdays.

    \b
    python -m dags.deletes request person --team 2 --by alice 018f3c1e-0000-4000-8000-000000000001
    python -m dags.deletes list --state pending
    python -m dags.deletes show 1

    Postgres comes from the POSTGRES_* variables; with DEBUG=1 it is the local stack's. Missing tables are created.
    """  # noqa: D301 - click keeps the lines after this character as they are
    try:
        postgres = make_postgres(get_settings())
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    context.obj = postgres


@main.group()
def request() -> None:
    """Request a deletion of data up to now. Prints the ids of the requests.

    \b
    python -m dags.deletes request person --team 2 --by alice 018f3c1e-0000-4000-8000-000000000001
    python -m dags.deletes request team   --team 2 --by alice
    python -m dags.deletes request event  --team 2 --by alice "signed up"
    python -m dags.deletes request uuid   --team 2 --by alice --file uuids.txt
    """  # noqa: D301 - as above


@request.command()
@TEAM
@BY
@REASON
@click.argument("person_ids", type=click.UUID, nargs=-1, required=True)
@click.pass_obj
def person(postgres: Postgres, team_id: int, requested_by: str, reason: str, person_ids: tuple[UUID, ...]) -> None:
    """Delete the events of persons, given their ids."""
    _request(postgres, RequestKind.PERSON, team_id, [str(one) for one in person_ids], requested_by, reason)


@request.command()
@TEAM
@BY
@REASON
@click.pass_obj
def team(postgres: Postgres, team_id: int, requested_by: str, reason: str) -> None:
    """Delete everything of a team: events, overrides, rejected lines and digests."""
    _request(postgres, RequestKind.TEAM, team_id, [""], requested_by, reason)


@request.command()
@TEAM
@BY
@REASON
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def event(postgres: Postgres, team_id: int, requested_by: str, reason: str, names: tuple[str, ...]) -> None:
    """Delete the events of a team that have one of these names."""
    _request(postgres, RequestKind.EVENT, team_id, list(names), requested_by, reason)


@request.command()
@TEAM
@BY
@REASON
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with one uuid per line.",
)
@click.argument("uuids", type=click.UUID, nargs=-1)
@click.pass_obj
def uuid(
    postgres: Postgres, team_id: int, requested_by: str, reason: str, path: Path | None, uuids: tuple[UUID, ...]
) -> None:
    """Delete single events by uuid, whatever their timestamp."""
    wanted = [*uuids]
    for number, line in enumerate(path.read_text().splitlines() if path else [], start=1):
        try:
            wanted += [UUID(line.strip())] if line.strip() else []
        except ValueError as error:
            raise click.ClickException(
                f"{path}, line {number}: '{line[:60]}' is not a uuid. Nothing was requested."
            ) from error
    if not wanted:
        raise click.UsageError("Give uuids as arguments, or a file with uuids.")
    _request(postgres, RequestKind.UUID, team_id, [str(one) for one in wanted], requested_by, reason)


@main.command("list")
@click.option("--state", type=click.Choice([state.value for state in RequestState]), help="Only this state.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Number of requests, the oldest first."
)
@click.pass_obj
def list_requests(postgres: Postgres, state: str | None, limit: int) -> None:
    """Print requests, one per line."""
    deletion_requests.apply_migrations(postgres)
    wanted = None if state is None else RequestState(state)
    found = deletion_requests.list_requests(postgres, state=wanted, limit=limit)
    for one in found:
        click.echo(_line(one))
    if not found:
        click.echo("There is no request.")


@main.command()
@click.argument("request_id", type=int)
@click.pass_obj
def show(postgres: Postgres, request_id: int) -> None:
    """Print a request with its evidence."""
    deletion_requests.apply_migrations(postgres)
    found = deletion_requests.list_requests(postgres, ids=[request_id])
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
@click.option("--why", required=True, help="The reason that the requester gets to read.")
@click.pass_obj
def refuse(postgres: Postgres, request_id: int, why: str) -> None:
    """Refuse a pending request: nothing is deleted for it."""
    deletion_requests.apply_migrations(postgres)
    try:
        deletion_requests.refuse(postgres, request_id, why)
    except UnknownRequestError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Request {request_id} is refused.")


def _request(
    postgres: Postgres, kind: RequestKind, team_id: int, keys: list[str], requested_by: str, reason: str
) -> None:
    deletion_requests.apply_migrations(postgres)
    ids = deletion_requests.request_deletion(postgres, kind, team_id, keys, requested_by=requested_by, reason=reason)
    for request_id in ids:
        click.echo(str(request_id))


def _line(one: DeletionRequest) -> str:
    note = f"  {one.note}" if one.note else ""
    what = f"{one.kind} {one.key}".strip()
    return (
        f"{one.id}  {one.state}  team {one.team_id}  {what}  requested {one.requested_at:%Y-%m-%d %H:%M:%S %Z} "
        f"by {one.requested_by}{note}"
    )


if __name__ == "__main__":
    sys.exit(main())
