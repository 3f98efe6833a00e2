"""What is run for one team: the policies that speak of it or of everybody, and the tests of its dags.

Policies (`dags/tests/policy`, `dags/tests/locations`) that are parametrised by location or by team run for this one
alone; those that walk everything run too, since a team can break them. The dags of a team are the modules that its
location imports from.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.location_files import pipelines_of
from tools.scaffold import edits, project
from tools.scaffold.names import Team

POLICIES = ("dags/tests/policy", "dags/tests/locations")


def locations_of(root: Path, text: str) -> list[str]:
    """The locations of a team, which may be named `team-growth`, `growth` or as a location. Raises ScaffoldError."""
    asked = Team(text.removeprefix("team-").removeprefix("team_").replace("-", "_"))
    if asked.location in project.locations(root):
        return [asked.location]
    teams = edits.dict_entries((root / project.POLICY).read_text(), project.TEAMS)
    found = [location.strip("'") for location, owner in teams.items() if owner == f"JobOwners.{asked.member}.value"]
    if not found:
        raise project.ScaffoldError(project.unknown_team(root, asked))
    return found


def commands(root: Path, own: Sequence[str]) -> list[list[str]]:
    """The calls of pytest for these locations of a team, each without `python -m`."""
    calls = [["pytest", *POLICIES, "-k", selection(own, project.locations(root))]]
    tests = sorted({path for location in own for path in tests_of(root, location)})
    return [*calls, ["pytest", *tests]] if tests else calls


def selection(own: Sequence[str], every: Sequence[str]) -> str:
    """The expression for pytest's `-k` that leaves out what is parametrised by another location, or by its team."""
    excluded = []
    for other in sorted(set(every) - set(own)):
        excluded += [f"[{other}]", f"[{other}-", f".{other}]", f"[{Team(other).name}]"]
    return " and ".join(f"not {one}" for one in excluded) or "test"


def tests_of(root: Path, location: str) -> list[str]:
    """The tests of the dags that a location imports from."""
    dags = pipelines_of(root / "dags" / "locations" / f"{location}.py")
    paths = [path for dag in dags for path in (f"dags/tests/{dag}", f"dags/tests/test_{dag}.py")]
    return [path for path in paths if (root / path).exists()]


def run_all(calls: Sequence[Sequence[str]], root: Path) -> int:
    """Run every call, also after one that fails; return the first code that is not 0."""
    codes = [subprocess.run([sys.executable, "-m", *call], cwd=root, check=False).returncode for call in calls]
    return next((code for code in codes if code), 0)
