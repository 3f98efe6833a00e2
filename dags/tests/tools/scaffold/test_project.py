import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dags.tests.tools.scaffold.test_deployment import VALUES, deployments
from dags.tests.webserver import WEBSERVER, serving, wait_for
from tools.scaffold.names import NameRefusedError, team_from
from tools.scaffold.project import DEPLOYMENT, ScaffoldError, apply, plan_new_dag, plan_new_team

BIN = Path(sys.executable).parent
LOAD_SECONDS = 120
LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename } } } } }
"""
GROWTH = team_from("growth")
CHANNEL = "#alerts-growth"


def add_team(root: Path) -> None:
    assert apply(plan_new_team(root, GROWTH, CHANNEL), lambda _: None)


def assert_succeeds(root: Path, *command: str | Path, timeout_seconds: float = 170) -> None:
    result = subprocess.run(
        [*map(str, command)], cwd=root, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def texts(root: Path) -> dict[Path, str]:
    """Every file that an edit could reach."""
    return {
        path: path.read_text()
        for pattern in ("*.toml", "dags/**/*.py", ".dagster_home/*.yaml", "deploy/**/*")
        for path in root.glob(pattern)
        if path.is_file()
    }


def test_a_new_team_and_a_second_dag_pass_lint_and_load(copy: Path) -> None:
    add_team(copy)
    assert apply(plan_new_dag(copy, GROWTH, "signups"), lambda _: None)
    assert_succeeds(copy, BIN / "ruff", "check", ".")
    assert_succeeds(copy, BIN / "ruff", "format", "--check", ".")
    assert_succeeds(copy, BIN / "lint-imports")
    program = (
        "import dags.definitions; from dags.locations.growth import defs; "
        "assert [job.name for job in defs.jobs] == ['growth_example_daily_job', 'signups_daily_job'], defs.jobs"
    )
    assert_succeeds(copy, sys.executable, "-c", program)


@pytest.mark.slow
def test_the_checks_of_a_new_team_and_the_types_pass_unchanged(copy: Path) -> None:
    add_team(copy)
    assert apply(plan_new_dag(copy, GROWTH, "signups"), lambda _: None)
    assert_succeeds(copy, sys.executable, "-m", "tools.scaffold", "check-team", "growth")
    assert_succeeds(copy, BIN / "mypy")


@pytest.mark.slow
def test_the_location_of_a_new_team_shows_in_the_web_interface(
    copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_team(copy)
    home = tmp_path_factory.mktemp("home")
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(copy / ".dagster_home" / name, home)
    with serving(home, WEBSERVER, {}, root=copy) as webserver:

        def all_loaded() -> dict[str, str] | None:
            entries = webserver.ask(LOCATIONS)["locationEntries"]
            if any(entry["loadStatus"] != "LOADED" for entry in entries):
                return None
            return {entry["name"]: entry["locationOrLoadError"]["__typename"] for entry in entries}

        loaded = wait_for(all_loaded, LOAD_SECONDS, "every location is loaded")
    assert loaded["growth"] == "RepositoryLocation"
    assert set(loaded.values()) == {"RepositoryLocation"}


def test_a_second_time_there_is_nothing_to_do(copy: Path) -> None:
    add_team(copy)
    apply(plan_new_dag(copy, GROWTH, "signups"), lambda _: None)
    before = texts(copy)
    said: list[str] = []
    assert not apply(plan_new_team(copy, GROWTH, CHANNEL), said.append)
    assert not apply(plan_new_dag(copy, GROWTH, "signups"), said.append)
    assert said == ["Nothing to do: it is all there."] * 2
    assert texts(copy) == before


def test_what_a_team_has_made_of_its_location_stays_and_a_lost_entry_comes_back(copy: Path) -> None:
    add_team(copy)
    workspace = copy / ".dagster_home" / "workspace.yaml"
    location = copy / "dags" / "locations" / "growth.py"
    location.write_text(location.read_text() + "# Our own.\n")
    (copy / "dags" / "growth_example.py").unlink()
    whole = workspace.read_text()
    workspace.write_text(re.sub(r".*locations\.growth.*\n", "", whole))
    plan = plan_new_team(copy, GROWTH, CHANNEL)
    assert plan.texts == {".dagster_home/workspace.yaml": whole}


def test_entries_are_in_their_sorted_places(copy: Path) -> None:
    add_team(copy)
    for path, pattern in (
        ("dags/common/owners.py", r"^    (TEAM_\w+) ="),
        (".dagster_home/workspace.yaml", r"^  - .*locations\.(\w+),"),
        ("dags/slack_alerts.py", r"^    JobOwners\.(\w+)\.value: "),
        ("dags/slack_alerts.py", r'^    "(\w+)": JobOwners'),
    ):
        found = re.findall(pattern, (copy / path).read_text(), re.MULTILINE)
        assert any("growth" in one.lower() for one in found), path
        assert found == sorted(found), path


def test_a_deployment_gets_an_entry_where_there_is_one(copy: Path) -> None:
    values = copy / DEPLOYMENT
    values.parent.mkdir(parents=True, exist_ok=True)
    values.write_text(VALUES)
    add_team(copy)
    assert [one["name"] for one in deployments(values.read_text())] == [
        "analytics-platform",
        "growth",
        "revenue-analytics",
    ]


@pytest.mark.parametrize(
    ("path", "anchor"),
    [
        ("dags/common/owners.py", "class JobOwners"),
        ("dags/slack_alerts.py", "notification_channel_per_team: Mapping"),
        ("dags/slack_alerts.py", "team_per_location: Mapping"),
        (".dagster_home/workspace.yaml", "- python_module"),
        ("pyproject.toml", " | "),
    ],
)
def test_without_an_anchor_the_file_is_named_and_nothing_is_written(copy: Path, path: str, anchor: str) -> None:
    text = (copy / path).read_text()
    assert anchor in text
    (copy / path).write_text(
        text.replace(anchor, anchor.replace("_", "").replace("|", "/").replace("class J", "class MyJ"))
    )
    before = texts(copy)
    with pytest.raises(ScaffoldError) as caught:
        plan_new_team(copy, GROWTH, CHANNEL)
    assert path in str(caught.value)
    assert "Nothing was written" in str(caught.value)
    assert texts(copy) == before


def test_a_disk_that_takes_one_file_less_leaves_all_as_they_were(copy: Path) -> None:
    plan = plan_new_team(copy, GROWTH, CHANNEL)
    # In the way of the last file: a directory cannot be written over.
    (copy / "pyproject.toml.new").mkdir()
    before = texts(copy)
    with pytest.raises(OSError, match="pyproject"):
        plan.write()
    assert texts(copy) == before
    assert [path for path in copy.rglob("*.new") if path.is_file()] == []


@pytest.mark.parametrize("name", ["events", "exchange-rate", "slack_alerts", "locks"])
def test_the_name_of_a_module_is_refused_for_a_team_and_for_a_dag(copy: Path, name: str) -> None:
    with pytest.raises(NameRefusedError, match="is there already"):
        plan_new_team(copy, team_from(name), "#alerts-new")
    with pytest.raises(NameRefusedError, match="is there already"):
        plan_new_dag(copy, team_from("clickhouse"), name.replace("-", "_"))


def test_the_channel_of_another_team_is_refused(copy: Path) -> None:
    with pytest.raises(ScaffoldError, match=r"#alerts-ingestion is the channel of JobOwners\.TEAM_INGESTION"):
        plan_new_team(copy, GROWTH, "#alerts-ingestion")


def test_another_channel_of_a_team_is_not_written_over(copy: Path) -> None:
    add_team(copy)
    with pytest.raises(ScaffoldError, match=r"dags/slack_alerts.py: .*'#alerts-growth', and not '#growth'"):
        plan_new_team(copy, GROWTH, "#growth")


def test_a_dag_of_an_unknown_team_is_refused_with_the_command_that_adds_it(copy: Path) -> None:
    with pytest.raises(ScaffoldError, match="make new-team TEAM=growth CHANNEL=#alerts-growth"):
        plan_new_dag(copy, GROWTH, "signups")


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("channel", ["#alerts-growth", "'#alerts-growth'", "alerts-growth"])
def test_make_takes_a_channel_with_its_sign_from_a_shell(copy: Path, shell: str, channel: str) -> None:
    # `true` in place of Python skips the set-up.
    make = f"make PYTHON=true BIN={BIN} new-team TEAM=growth CHANNEL={channel}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run([shell, "-c", make], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'JobOwners.TEAM_GROWTH.value: "#alerts-growth",' in (copy / "dags" / "slack_alerts.py").read_text()
