"""Who owns what: the command `python -m dags.common.owners`, and the file with which GitHub asks a team for review.

Belongs here: what is derived from the definitions and the alert policy. Not here: walking them
(`common/inventory.py`), and whether everything has an owner (`dags/tests/policy`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import dagster as dg

from dags.common.inventory import everything_of, name_of, owner_of
from dags.common.location_files import dags_of
from dags.common.owners import JobOwners
from dags.definitions import load_locations
from dags.slack_alerts import notification_channel_per_team, team_per_location

ROOT = Path(__file__).parents[1]
CODEOWNERS = ROOT / ".github" / "CODEOWNERS"
# The account on GitHub that has the repository, and in it a team for each of JobOwners.
ACCOUNT = "analytics-platform"
# Owns what no location registers.
TEAM_OF_THE_REST = JobOwners.TEAM_DATA_PLATFORM.value
NOBODY = "nobody"

HEAD = """\
# Who reviews what: the last line that matches a path counts.
# Written by `make snapshot`; compared with the locations by a test.
"""


def owned(locations: Mapping[str, dg.Definitions]) -> dict[str, dict[str, list[str]]]:
    """Team -> kind -> names, with each team of JobOwners, and `nobody` if anything has no owner."""
    found: dict[str, dict[str, list[str]]] = {owner.value: {} for owner in JobOwners}
    for definitions in locations.values():
        for kind, one in everything_of(definitions):
            found.setdefault(owner_of(one) or NOBODY, {}).setdefault(kind, []).append(name_of(one))
    return found


def report(
    team: str, names_by_kind: Mapping[str, list[str]], channels: Mapping[str, str], team_of_location: Mapping[str, str]
) -> str:
    """What one team owns, a line a thing."""
    rows = [
        ("channel", [channels.get(team, "none")]),
        ("location", [location for location, its in team_of_location.items() if its == team] or ["none"]),
        *names_by_kind.items(),
    ]
    lines = [f"  {title if n == 0 else '':<12}{name}" for title, names in rows for n, name in enumerate(names)]
    return "\n".join([team, *lines])


def codeowners(root: Path, team_of_location: Mapping[str, str]) -> str:
    """The text of CODEOWNERS: each location's file, the dags that it registers and their tests are its team's.

    A dag that two locations register is of both their teams.
    """
    teams_by_path: dict[str, list[str]] = {}
    for file in sorted((root / "dags" / "locations").glob("*.py")):
        team = team_of_location.get(file.stem)
        if team is not None:
            for path in [f"/dags/locations/{file.name}", *_paths_of_dags(root, file)]:
                teams_by_path.setdefault(path, []).append(team)
    everything = {"*": [TEAM_OF_THE_REST], **teams_by_path}
    width = max(map(len, everything))
    lines = (
        f"{path:<{width}} {' '.join(f'@{ACCOUNT}/{team}' for team in teams)}" for path, teams in everything.items()
    )
    return HEAD + "\n".join(lines) + "\n"


def _paths_of_dags(root: Path, location: Path) -> Iterator[str]:
    """The dags that a location's file imports, and their tests, as paths of CODEOWNERS."""
    for dag in dags_of(location):
        candidates = (f"dags/{dag}/", f"dags/{dag}.py", f"dags/tests/{dag}/", f"dags/tests/test_{dag}.py")
        yield from (f"/{path}" for path in candidates if (root / path).exists())


@click.group(invoke_without_command=True)
@click.option("--team", type=click.Choice([owner.value for owner in JobOwners]), help="Of this team alone.")
@click.pass_context
def main(context: click.Context, *, team: str | None) -> None:
    """Print who owns what: by team its channel, locations, assets, jobs, schedules, sensors and asset checks."""
    if context.invoked_subcommand is None:
        found = owned(load_locations())
        for one in [team] if team else found:
            click.echo(report(one, found[one], notification_channel_per_team, team_per_location) + "\n")


@main.command("codeowners")
@click.option("--write", is_flag=True, help="Write .github/CODEOWNERS, in place of printing it.")
def codeowners_command(*, write: bool) -> None:
    """Print .github/CODEOWNERS as it follows from the locations."""
    text = codeowners(ROOT, team_per_location)
    if not write:
        click.echo(text, nl=False)
        return
    CODEOWNERS.parent.mkdir(exist_ok=True)
    CODEOWNERS.write_text(text)
    click.echo(f"Wrote {CODEOWNERS.relative_to(ROOT)}.")


if __name__ == "__main__":
    main(prog_name="python -m dags.common.owners")
