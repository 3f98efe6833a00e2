"""Which files a new team or a new dag changes, and how: computed as a whole, then written as a whole.

Belongs here: the list of files. Not here: how an entry gets its place in one (`edits.py`), and names (`names.py`).
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from tools.scaffold import deployment, edits
from tools.scaffold.edits import EditError
from tools.scaffold.names import NameRefusedError, Team

TEMPLATES = Path(__file__).parent / "templates"

OWNERS = "dags/common/owners.py"
POLICY = "dags/slack_alerts.py"
PYPROJECT = "pyproject.toml"
WORKSPACE = ".dagster_home/workspace.yaml"
DEPLOYMENT = "deploy/helm/values.yaml"
CHANNELS, TEAMS = "notification_channel_per_team", "team_per_location"

# What is derived from the code is written by its own command, where that exists: (a file that tells so, the command).
DERIVED = (
    (".github/CODEOWNERS", ("tools.ownership", "codeowners", "--write")),
    ("dags/tests/policy/snapshot.py", ("dags.tests.policy.snapshot", "--write")),
)


class ScaffoldError(Exception):
    """Nothing was written, or what is derived from the code could not be. The message says why, and the remedy."""


@dataclass
class Plan:
    """The new texts of files, by path from the root. Asked for a file, it gives the text as changed so far."""

    root: Path
    texts: dict[str, str] = field(default_factory=dict)

    def read(self, path: str) -> str:
        """The text of a file that must be there."""
        if path in self.texts:
            return self.texts[path]
        if not (self.root / path).is_file():
            raise ScaffoldError(f"{path} is not there: run this in the project's directory. Nothing was written.")
        return (self.root / path).read_text()

    def exists(self, path: str) -> bool:
        """Whether there is such a file or directory, or will be."""
        return path in self.texts or (self.root / path).exists()

    def edit(self, path: str, edit: Callable[[str], str]) -> None:
        """Change a file. Raises ScaffoldError, naming it, when the place of the change is not found."""
        before = self.read(path)
        try:
            after = edit(before)
        except (EditError, SyntaxError) as error:
            raise ScaffoldError(f"{path}: {error}. Nothing was written.") from error
        if after != before:
            self.texts[path] = _formatted(self.root, path, after)

    def create(self, path: str, text: str) -> None:
        """Add a file. Raises ScaffoldError when there is one."""
        if self.exists(path):
            raise ScaffoldError(f"{path} is there already: choose another name. Nothing was written.")
        self.texts[path] = _formatted(self.root, path, text)

    def write(self) -> list[str]:
        """Write all files, or none when one cannot be written; return their paths."""
        beside: dict[str, Path] = {}
        try:
            for path, text in self.texts.items():
                temporary = self.root / f"{path}.new"
                temporary.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(text)
                beside[path] = temporary
            for path, temporary in beside.items():
                temporary.replace(self.root / path)
        finally:
            for temporary in beside.values():
                temporary.unlink(missing_ok=True)
        return sorted(self.texts)


def plan_new_team(root: Path, team: Team, channel: str) -> Plan:
    """Everything that a team needs. Nothing is in the plan when all of it is there. Raises ScaffoldError."""
    plan = Plan(root)
    owner = f"JobOwners.{team.member}.value"
    _refuse_channel_of_another(plan, owner, channel)
    plan.edit(OWNERS, lambda text: edits.add_enum_member(text, "JobOwners", team.member, team.name))
    plan.edit(POLICY, lambda text: edits.add_dict_entry(text, CHANNELS, owner, f'"{channel}"'))
    plan.edit(POLICY, lambda text: edits.add_dict_entry(text, TEAMS, f'"{team.location}"', owner))
    plan.edit(WORKSPACE, lambda text: edits.add_workspace_entry(text, team.location))
    if plan.exists(DEPLOYMENT):
        plan.edit(DEPLOYMENT, lambda text: deployment.add_location(text, team.location))
    # A location that is there is the team's own work by now, and the example in it may be long gone.
    if not plan.exists(_location_path(team.location)):
        _refuse_module_of_another(plan, "Team", team.location)
        dag = f"{team.location}_example"
        _add_dag(plan, team, dag)
        plan.create(_location_path(team.location), _filled("location.py", _fields(team, dag)))
    return plan


def plan_new_dag(root: Path, team: Team, dag: str) -> Plan:
    """An example dag in the location of a team. Nothing is in the plan when it is there. Raises ScaffoldError."""
    plan = Plan(root)
    location = _location_path(team.location)
    if not plan.exists(location):
        raise ScaffoldError(unknown_team(root, team))
    module = f"dags.{dag}"
    if plan.exists(f"dags/{dag}.py") and f"from {module} import" in plan.read(location):
        return plan
    _refuse_module_of_another(plan, "Dag", dag)
    definitions = {
        "assets": f"{dag}_daily",
        "asset_checks": f"{dag}_daily_has_events",
        "jobs": f"{dag}_daily_job",
        "schedules": f"{dag}_daily_schedule",
    }
    plan.edit(location, lambda text: edits.add_to_location(text, module, definitions))
    _add_dag(plan, team, dag)
    return plan


def apply(plan: Plan, report: Callable[[str], None]) -> bool:
    """Write a plan, then what is derived from the code; return whether there was anything to do.

    Raises ScaffoldError when a command that derives something fails: everything else is written then.
    """
    if not plan.texts:
        report("Nothing to do: it is all there.")
        return False
    for path in plan.write():
        report(f"wrote {path}")
    for marker, command in DERIVED:
        if (plan.root / marker).exists():
            shown = f"python -m {' '.join(command)}"
            report(f"running {shown}")
            result = _run(plan.root, "-m", *command)
            if result.returncode != 0:
                raise ScaffoldError(
                    f"Everything else is written, but `{shown}` failed. Mend the cause, and run it again:\n"
                    f"{(result.stderr or result.stdout).strip()}"
                )
    return True


def locations(root: Path) -> list[str]:
    """The names of all locations."""
    return sorted(path.stem for path in (root / "dags" / "locations").glob("*.py") if path.stem != "__init__")


def unknown_team(root: Path, team: Team) -> str:
    """What to say of a team that has no location of its name, with those that have one."""
    return (
        f"{team.name} has no location dags/locations/{team.location}.py, only these teams have: "
        f"{', '.join(locations(root))}. Add it with "
        f"make new-team TEAM={team.location} CHANNEL=#alerts-{team.location.replace('_', '-')}."
    )


def _add_dag(plan: Plan, team: Team, dag: str) -> None:
    fields = _fields(team, dag)
    plan.create(f"dags/{dag}.py", _filled("dag.py", fields))
    plan.create(f"dags/tests/test_{dag}.py", _filled("test.py", fields))
    plan.edit(PYPROJECT, lambda text: edits.add_layer_member(text, dag))


def _fields(team: Team, dag: str) -> dict[str, str]:
    # Spread over the hour, so that the dags of all teams do not start at once; the same whenever it is made.
    minute = int(hashlib.sha256(dag.encode()).hexdigest(), 16) % 60
    return {
        "dag": dag,
        "location": team.location,
        "member": team.member,
        "minute": str(minute),
        "team": team.name,
        "title": dag.replace("_", " ").capitalize(),
    }


def _location_path(location: str) -> str:
    return f"dags/locations/{location}.py"


def _refuse_channel_of_another(plan: Plan, owner: str, channel: str) -> None:
    try:
        channels = edits.dict_entries(plan.read(POLICY), CHANNELS)
    except (EditError, SyntaxError) as error:
        raise ScaffoldError(f"{POLICY}: {error}. Nothing was written.") from error
    for other, taken in channels.items():
        if other != owner and taken.strip("'\"") == channel:
            raise ScaffoldError(f"{channel} is the channel of {other}: choose another. Nothing was written.")


def _refuse_module_of_another(plan: Plan, what: str, name: str) -> None:
    for path in (
        f"dags/{name}",
        f"dags/{name}.py",
        _location_path(name),
        f"dags/common/{name}.py",
        f"dags/common/{name}",
    ):
        if plan.exists(path):
            raise NameRefusedError(f"{what} '{name}': {path} is there already: choose another name.")


def _filled(template: str, fields: Mapping[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.template").read_text()).substitute(fields)


def _formatted(root: Path, path: str, text: str) -> str:
    """Python in the project's format, imports sorted; anything else as it is."""
    if not path.endswith(".py"):
        return text
    for arguments in (("check", "--quiet", "--fix", "--select", "I"), ("format", "--quiet")):
        result = _run(root, "-m", "ruff", *arguments, "--stdin-filename", path, "-", text=text)
        if result.returncode != 0:
            raise ScaffoldError(f"{path} cannot be formatted: {result.stderr.strip()}. Nothing was written.")
        text = result.stdout
    return text


def _run(root: Path, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], cwd=root, input=text, capture_output=True, text=True, check=False, timeout=300
    )
