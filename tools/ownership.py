"""The report of who owns what (`python -m tools.ownership`), and .github/CODEOWNERS."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import dagster as dg

from dags.common.inventory import everything_of, name_of, owner_of
from dags.common.owners import JobOwners, team_of_location
from dags.definitions import load_locations
from dags.slack_alerts import notification_channel_per_team
from tools.location_files import pipelines_of

ROOT = Path(__file__).parents[1]
CODEOWNERS = ROOT / ".github" / "CODEOWNERS"
# The organization on GitHub, which has a team for each member of JobOwners.
ORGANIZATION = "analytics-platform"
# Reviews what no location registers.
DEFAULT_TEAM = JobOwners.TEAM_DATA_PLATFORM.value
NO_OWNER = "no owner"

HEAD = """\
# Who reviews what. The last line that matches a path applies.
# Written by `make snapshot`, and compared with the locations by a test.
"""


def owned(locations: Mapping[str, dg.Definitions]) -> dict[str, dict[str, list[str]]]:
    """Return team -> kind -> names, with every team of JobOwners, and NO_OWNER if a definition has none."""
    found: dict[str, dict[str, list[str]]] = {owner.value: {} for owner in JobOwners}
    for definitions in locations.values():
        for kind, definition in everything_of(definitions):
            found.setdefault(owner_of(definition) or NO_OWNER, {}).setdefault(kind, []).append(name_of(definition))
    return found


def report(team: str, channel: str | None, locations: Sequence[str], names_by_kind: Mapping[str, list[str]]) -> str:
    """Return what a team owns as text, one definition per line."""
    rows = [("channel", [channel or "none"]), ("location", locations or ["none"]), *names_by_kind.items()]
    lines = [f"  {title if n == 0 else '':<12}{name}" for title, names in rows for n, name in enumerate(names)]
    return "\n".join([team, *lines])


def codeowners(root: Path, team_of: Callable[[str], str | None] = team_of_location) -> str:
    """Return the text of CODEOWNERS: a team owns its location, the pipelines that it registers, and their tests.

    Two teams that register the same pipeline own it together.
    """
    teams_by_path: dict[str, list[str]] = {}
    for file in sorted((root / "dags" / "locations").glob("*.py")):
        team = team_of(file.stem)
        if team is not None:
            for path in [f"/dags/locations/{file.name}", *_paths_of_pipelines(root, file)]:
                teams_by_path.setdefault(path, []).append(team)
    everything = {"*": [DEFAULT_TEAM], **teams_by_path}
    width = max(map(len, everything))
    lines = (
        f"{path:<{width}} {' '.join(f'@{ORGANIZATION}/{team}' for team in teams)}" for path, teams in everything.items()
    )
    return HEAD + "\n".join(lines) + "\n"


def _paths_of_pipelines(root: Path, location: Path) -> Iterator[str]:
    """Yield the paths of the pipelines that a location imports, and of their tests, as CODEOWNERS has them."""
    for name in pipelines_of(location):
        candidates = (f"dags/{name}/", f"dags/{name}.py", f"dags/tests/{name}/", f"dags/tests/test_{name}.py")
        yield from (f"/{path}" for path in candidates if (root / path).exists())


@click.group(invoke_without_command=True)
@click.option("--team", type=click.Choice([owner.value for owner in JobOwners]), help="Print this team only.")
@click.pass_context
def main(context: click.Context, *, team: str | None) -> None:
    """Print who owns what: channel, locations, assets, jobs, schedules, sensors and asset checks of each team."""
    if context.invoked_subcommand is None:
        locations = load_locations()
        found = owned(locations)
        for name in [team] if team else found:
            own = [location for location in locations if team_of_location(location) == name]
            click.echo(report(name, notification_channel_per_team.get(name), own, found[name]) + "\n")


@main.command("codeowners")
@click.option("--write", is_flag=True, help="Write the file instead of printing it.")
def codeowners_command(*, write: bool) -> None:
    """Print .github/CODEOWNERS, derived from the locations."""
    text = codeowners(ROOT)
    if not write:
        click.echo(text, nl=False)
        return
    CODEOWNERS.parent.mkdir(exist_ok=True)
    CODEOWNERS.write_text(text)
    click.echo(f"Wrote {CODEOWNERS.relative_to(ROOT)}.")


if __name__ == "__main__":
    main(prog_name="python -m tools.ownership")
