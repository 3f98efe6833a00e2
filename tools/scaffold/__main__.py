"""`python -m tools.scaffold`: the commands behind `make new-team`, `make new-dag` and `make check-team`."""

import sys
from pathlib import Path

import click

from tools.location_files import pipelines_of
from tools.scaffold import project, team_checks
from tools.scaffold.names import channel_from, dag_from, team_from

ROOT = Path(__file__).parents[2]


@click.group()
def main() -> None:
    """Add, check or remove a team, and add a dag."""


@main.command()
@click.argument("team")
@click.argument("channel")
def new_team(team: str, channel: str) -> None:
    """Add a team, such as growth '#alerts-growth': its owner, channel and location, and an example dag with a test."""
    _apply(project.plan_new_team(ROOT, team_from(team), channel_from(channel)), team)


@main.command()
@click.argument("team")
def remove_team(team: str) -> None:
    """Remove the entries of a team, and print what to delete by hand."""
    removed = team_from(team)
    for path in project.plan_removed_team(ROOT, removed).write():
        click.echo(f"wrote {path}")
    own = project.location_path(removed)
    if (ROOT / own).exists():
        pipelines = ", ".join(f"dags/{name}" for name in pipelines_of(ROOT / own))
        click.echo(f"Next: delete {own} and what no other location imports of {pipelines}. See docs/adopt.md.")


@main.command()
@click.argument("team")
@click.argument("name")
def new_dag(team: str, name: str) -> None:
    """Add an example dag with a test to a team's location, such as growth signups."""
    _apply(project.plan_new_dag(ROOT, team_from(team), dag_from(name)), team)


@main.command()
@click.argument("team")
def check_team(team: str) -> None:
    """Run the policies that concern a team, and the tests of its dags."""
    calls = team_checks.commands(ROOT, team_checks.locations_of(ROOT, team))
    for call in calls:
        click.echo(f"pytest {' '.join(argument for argument in call if argument.startswith('dags/'))}")
    sys.exit(team_checks.run_all(calls, ROOT))


def _apply(plan: project.Plan, team: str) -> None:
    if project.apply(plan, click.echo):
        click.echo(f"Next: make check-team TEAM={team}, then make dev. docs/add-a-team.md says more.")


if __name__ == "__main__":
    main(prog_name="python -m tools.scaffold")
