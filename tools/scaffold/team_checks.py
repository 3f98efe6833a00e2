"""The checks of one team: the policies that concern it or everything, and the tests of its pipelines."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dags.common.owners import team_of_location
from tools.location_files import pipelines_of
from tools.scaffold import project
from tools.scaffold.names import RefusedError, Team

POLICIES = ("dags/tests/policy", "dags/tests/locations")


def locations_of(root: Path, text: str) -> list[str]:
    """Return the locations of a team, given as `team-growth`, `growth` or a location's name. Raises RefusedError."""
    team = Team(text.removeprefix("team-").removeprefix("team_").replace("-", "_"))
    names = project.locations(root)
    found = [name for name in names if name == team.location or team_of_location(name) == team.name]
    if not found:
        raise RefusedError(project.unknown_team(root, team))
    return found


def commands(root: Path, own: Sequence[str]) -> list[list[str]]:
    """Return the calls of pytest for these locations, each without `python -m`."""
    policies = ["pytest", *POLICIES, "-k", selection(own, project.locations(root))]
    tests = sorted({path for location in own for path in tests_of(root, location)})
    return [policies, ["pytest", *tests]] if tests else [policies]


def selection(own: Sequence[str], every: Sequence[str]) -> str:
    """Return the expression for pytest's `-k` that leaves out the parameters of other locations and their teams."""
    excluded = []
    for other in sorted(set(every) - set(own)):
        excluded += [f"[{other}]", f"[{other}-", f".{other}]", f"[{Team(other).name}]"]
    return " and ".join(f"not {parameter}" for parameter in excluded) or "test"


def tests_of(root: Path, location: str) -> list[str]:
    """Return the tests of the pipelines that a location imports."""
    names = pipelines_of(root / "dags" / "locations" / f"{location}.py")
    paths = [path for name in names for path in (f"dags/tests/{name}", f"dags/tests/test_{name}.py")]
    return [path for path in paths if (root / path).exists()]


def run_all(calls: Sequence[Sequence[str]], root: Path) -> int:
    """Run every call, even after one fails; return the first exit code that is not 0."""
    codes = [subprocess.run([sys.executable, "-m", *call], cwd=root, check=False).returncode for call in calls]
    return next((code for code in codes if code), 0)
