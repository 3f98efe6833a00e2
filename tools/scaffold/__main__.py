"""`python -m tools.scaffold`: what `make new-team`, `make new-dag` and `make check-team` run."""

import sys
from pathlib import Path

import click

from tools.scaffold import project, team_checks
from tools.scaffold.names import NameRefusedError, channel_from, dag_from, team_from
from tools.scaffold.project import ScaffoldError

ROOT = Path(__file__).parents[2]


@click.group()
def main() -> None:
    """Add a team or a dag, and check a team."""


@main.command()
@click.argument("team")
@click.argument("channel")
def new_team(team: str, channel: str) -> None:
    """Add a team, its Slack channel, its location and an example dag with a test.

    \b
    python -m tools.scaffold new-team growth '#alerts-growth'
    """  # noqa: D301 - click keeps the lines after this character as they are
    try:
        named = team_from(team)
        if project.apply(project.plan_new_team(ROOT, named, channel_from(channel)), click.echo):
            click.echo(f"Next: make check-team TEAM={named.location}, then make dev. More is in docs/add-a-team.md.")
    except (NameRefusedError, ScaffoldError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("team")
@click.argument("name")
def new_dag(team: str, name: str) -> None:
    """Add an example dag with a test to the location of a team.

    \b
    python -m tools.scaffold new-dag growth signups
    """  # noqa: D301 - as above
    try:
        named = team_from(team)
        if project.apply(project.plan_new_dag(ROOT, named, dag_from(name)), click.echo):
            click.echo(f"Next: make check-team TEAM={named.location}")
    except (NameRefusedError, ScaffoldError) as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("team")
def check_team(team: str) -> None:
    """Run the policies that speak of a team, and the tests of its dags."""
    try:
        own = team_checks.locations_of(ROOT, team)
    except ScaffoldError as error:
        raise click.ClickException(str(error)) from error
    calls = team_checks.commands(ROOT, own)
    for call in calls:
        click.echo(f"pytest {' '.join(one for one in call[1:] if one.startswith('dags/'))}")
    sys.exit(team_checks.run_all(calls, ROOT))


if __name__ == "__main__":
    main(prog_name="python -m tools.scaffold")
