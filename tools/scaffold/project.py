"""The files that a new team or a new dag changes: planned as a whole, then written as a whole."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

import click

from tools.scaffold.edits import Entries, add_entry, add_to_location, find_entries, remove_entry
from tools.scaffold.names import RefusedError, Team

TEMPLATES = Path(__file__).parent / "templates"
HELM_VALUES = "deploy/helm/values.yaml"

OWNERS = Entries("dags/common/owners.py", "class JobOwners", r'^    (TEAM_\w+) = "(.*)"\n')
CHANNELS = Entries(
    "dags/slack_alerts.py",
    "notification_channel_per_team: Mapping",
    r'^    JobOwners\.(TEAM_\w+)\.value: "(.*)",\n',
)
# A location that is commented out counts as listed.
WORKSPACE = Entries(
    ".dagster_home/workspace.yaml",
    "load_from:\n",
    r"^  (?:# )?- python_module: \{ module_name: dags\.locations\.(\w+), .*\n",
)
WEBSERVER = Entries(HELM_VALUES, "    servers:\n", r"^      - \{ host: ([\w-]+), .*\n")
CODE_SERVERS = Entries(
    HELM_VALUES, "  deployments:\n", r"^    - <<: \*code_server\n      name: ([\w-]+)\n(?:      .*\n)*"
)
CODE_SERVER = """\
    - <<: *code_server
      name: $service
      image: { <<: *image, tag: "$tag" }
      dagsterApiGrpcArgs: [-m, dags.locations.$location]
"""
# Name and text of a team's entry.
ENTRIES_OF_A_TEAM = {
    OWNERS: ("$member", '    $member = "$team"\n'),
    CHANNELS: ("$member", '    JobOwners.$member.value: "$channel",\n'),
    WORKSPACE: (
        "$location",
        "  - python_module: { module_name: dags.locations.$location, location_name: $location }\n",
    ),
    WEBSERVER: ("$service", "      - { host: $service, port: 3030, name: $location }\n"),
    CODE_SERVERS: ("$service", CODE_SERVER),
}

# Files that follow from the definitions, where a project has them, and the modules that write them.
DERIVED = {
    ".github/CODEOWNERS": ("tools.ownership", "codeowners", "--write"),
    "dags/tests/policy/snapshot.py": ("dags.tests.policy.snapshot", "--write"),
}


@dataclass
class Plan:
    """The new texts of files, by path from the root."""

    root: Path
    texts: dict[str, str] = field(default_factory=dict)

    def read(self, path: str) -> str:
        """Return the text of a file as changed so far."""
        return self.texts.get(path) or (self.root / path).read_text()

    def put(self, path: str, text: str) -> None:
        """Change or add a file. Python gets the project's format, its imports sorted."""
        if path.endswith(".py"):
            for command in (("check", "--quiet", "--fix", "--select", "I"), ("format", "--quiet")):
                result = run(self.root, "ruff", *command, "--stdin-filename", path, "-", text=text)
                if result.returncode != 0:
                    raise RefusedError(f"{path} cannot be formatted: {result.stderr.strip()}.")
                text = result.stdout
        if not (self.root / path).exists() or self.read(path) != text:
            self.texts[path] = text

    def write(self) -> list[str]:
        """Write all files, or none when one cannot be written; return their paths."""
        written: dict[str, Path] = {}
        try:
            for path, text in self.texts.items():
                beside = self.root / f"{path}.new"
                beside.write_text(text)
                written[path] = beside
            for path, beside in written.items():
                beside.replace(self.root / path)
        finally:
            for beside in written.values():
                beside.unlink(missing_ok=True)
        return sorted(written)


def plan_new_team(root: Path, team: Team, channel: str) -> Plan:
    """Plan what a team lacks: its entries, and its location with an example dag. Raises RefusedError."""
    plan = Plan(root)
    fields = _fields(team, f"{team.location}_example") | {"channel": channel}
    for entries, name, template in _entries(root, fields):
        before = plan.read(entries.path)
        tag = re.search(r'&image \{.*tag: "([^"]+)"', before)
        entry = Template(template).substitute(fields, tag=tag[1] if tag else "")
        plan.put(entries.path, add_entry(before, entries, name, entry))
    _check_value(plan, OWNERS, team.member, team.name)
    _check_value(plan, CHANNELS, team.member, channel)
    # A location that exists is the team's own work by now, and the example in it may be long gone.
    if not (root / location_path(team)).exists():
        for module in (team.location, fields["dag"]):
            _refuse_taken_module(root, "Team", module)
        _add_dag(plan, fields)
        plan.put(location_path(team), _filled("location.py", fields))
    return plan


def plan_removed_team(root: Path, team: Team) -> Plan:
    """Plan to remove a team's entries. Its location and pipelines stay, for people to delete."""
    plan = Plan(root)
    for entries, name, _ in _entries(root, _fields(team, "")):
        plan.put(entries.path, remove_entry(plan.read(entries.path), entries, name))
    return plan


def plan_new_dag(root: Path, team: Team, dag: str) -> Plan:
    """Plan an example dag in a team's location; nothing when it is there. Raises RefusedError."""
    plan, location = Plan(root), location_path(team)
    if not (root / location).exists():
        raise RefusedError(unknown_team(root, team))
    if (root / f"dags/{dag}.py").exists() and f"from dags.{dag} import" in plan.read(location):
        return plan
    _refuse_taken_module(root, "Dag", dag)
    fields = _fields(team, dag)
    definitions = {
        "assets": f"{dag}_daily",
        "asset_checks": f"{dag}_daily_has_events",
        "jobs": f"{dag}_daily_job",
        "schedules": f"{dag}_daily_schedule",
    }
    # A last comma makes the formatter split a call that is on one line.
    plan.put(location, re.sub(r"^(defs = .*[^,(])\)$", r"\1,)", plan.read(location), flags=re.MULTILINE))
    plan.put(location, add_to_location(plan.read(location), location, f"dags.{dag}", definitions))
    _add_dag(plan, fields)
    return plan


def apply(plan: Plan, report: Callable[[str], None]) -> bool:
    """Write a plan, then the files that follow from the definitions; return whether there was anything to do."""
    if not plan.texts:
        report("Nothing to do: everything is there.")
        return False
    for path in plan.write():
        report(f"wrote {path}")
    for file, command in DERIVED.items():
        if (plan.root / file).exists():
            report(f"running python -m {' '.join(command)}")
            result = run(plan.root, *command)
            if result.returncode != 0:
                raise click.ClickException(
                    f"Everything else is written, but python -m {' '.join(command)} failed. Fix the cause, then run "
                    f"make snapshot:\n{(result.stderr or result.stdout).strip()}"
                )
    return True


def location_path(team: Team) -> str:
    """Return the path of a team's location."""
    return f"dags/locations/{team.location}.py"


def locations(root: Path) -> list[str]:
    """Return the names of all locations."""
    return sorted(path.stem for path in (root / "dags" / "locations").glob("*.py") if path.stem != "__init__")


def unknown_team(root: Path, team: Team) -> str:
    """Return the message about a team without a location, with the locations that exist."""
    return (
        f"{team.name} has no location {location_path(team)}. Locations: {', '.join(locations(root))}. Add the team "
        f"with make new-team TEAM={team.location} CHANNEL=#alerts-{team.location.replace('_', '-')}."
    )


def run(root: Path, module: str, *arguments: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a module of Python in the project's directory."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=root, input=text, capture_output=True, text=True, check=False, timeout=300)


def _entries(root: Path, fields: Mapping[str, str]) -> Iterator[tuple[Entries, str, str]]:
    """Yield the entries of a team with the name of its own and the template, where the project has the file."""
    for entries, (name, template) in ENTRIES_OF_A_TEAM.items():
        if entries.path != HELM_VALUES or (root / HELM_VALUES).exists():
            yield entries, Template(name).substitute(fields), template


def _add_dag(plan: Plan, fields: Mapping[str, str]) -> None:
    plan.put(f"dags/{fields['dag']}.py", _filled("dag.py", fields))
    plan.put(f"dags/tests/test_{fields['dag']}.py", _filled("test.py", fields))


def _fields(team: Team, dag: str) -> dict[str, str]:
    # Spread over the hour, so that not all dags start at once; a name always gets the same minute.
    minute = int(hashlib.sha256(dag.encode()).hexdigest(), 16) % 60
    return {
        "dag": dag,
        "location": team.location,
        "member": team.member,
        "minute": str(minute),
        "service": team.location.replace("_", "-"),
        "team": team.name,
        "title": dag.replace("_", " ").capitalize(),
    }


def _filled(template: str, fields: Mapping[str, str]) -> str:
    return Template((TEMPLATES / f"{template}.template").read_text()).substitute(fields)


def _check_value(plan: Plan, entries: Entries, name: str, value: str) -> None:
    for match in find_entries(plan.read(entries.path), entries):
        if match[1] == name and match[2] != value:
            raise RefusedError(f"{entries.path}: {name} has '{match[2]}', not '{value}'. Change it there.")
        if match[1] != name and match[2] == value:
            raise RefusedError(f"{entries.path}: {match[1]} has '{value}'. Choose another.")


def _refuse_taken_module(root: Path, kind: str, name: str) -> None:
    for path in (f"dags/{name}", f"dags/locations/{name}", f"dags/common/{name}", f"dags/tests/test_{name}"):
        for taken in (path, f"{path}.py"):
            if (root / taken).exists():
                raise RefusedError(f"{kind} '{name}': {taken} exists already. Choose another name.")
