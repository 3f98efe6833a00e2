import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dags.tests.deploy import chart
from dags.tests.webserver import WEBSERVER, serving, wait_for
from tools.scaffold.names import RefusedError, team_from
from tools.scaffold.project import (
    ENTRIES_OF_A_TEAM,
    HELM_VALUES,
    apply,
    plan_new_dag,
    plan_new_team,
    plan_removed_team,
)

BIN = Path(sys.executable).parent
LOAD_SECONDS = 120
LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename } } } } }
"""
GROWTH = team_from("growth")
CHANNEL = "#alerts-growth"


def add_team(root: Path) -> None:
    """Add the team without the files that follow from the definitions."""
    assert plan_new_team(root, GROWTH, CHANNEL).write()


def assert_succeeds(root: Path, *command: str | Path, timeout_seconds: float = 300) -> None:
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
    assert apply(plan_new_team(copy, GROWTH, CHANNEL), lambda _: None)
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
@pytest.mark.timeout(600)
def test_the_checks_of_a_new_team_and_the_types_pass_unchanged(copy: Path) -> None:
    assert apply(plan_new_team(copy, GROWTH, CHANNEL), lambda _: None)
    assert apply(plan_new_dag(copy, GROWTH, "signups"), lambda _: None)
    assert_succeeds(copy, sys.executable, "-m", "tools.scaffold", "check-team", "growth")
    assert_succeeds(copy, BIN / "mypy")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_location_of_a_new_team_loads_in_the_web_interface(
    copy: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_team(copy)
    home = tmp_path_factory.mktemp("home")
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(copy / ".dagster_home" / name, home)
    with serving(home, WEBSERVER, {}, root=copy) as webserver:

        def all_loaded() -> dict[str, str] | None:
            entries = webserver.query(LOCATIONS)["locationEntries"]
            if any(entry["loadStatus"] != "LOADED" for entry in entries):
                return None
            return {entry["name"]: entry["locationOrLoadError"]["__typename"] for entry in entries}

        loaded = wait_for(all_loaded, LOAD_SECONDS, "every location is loaded")
    assert loaded["growth"] == "RepositoryLocation"
    assert set(loaded.values()) == {"RepositoryLocation"}


def test_a_second_run_has_nothing_to_do(copy: Path) -> None:
    add_team(copy)
    plan_new_dag(copy, GROWTH, "signups").write()
    before = texts(copy)
    said: list[str] = []
    assert not apply(plan_new_team(copy, GROWTH, CHANNEL), said.append)
    assert not apply(plan_new_dag(copy, GROWTH, "signups"), said.append)
    assert said == ["Nothing to do: everything is there."] * 2
    assert texts(copy) == before


def test_a_removed_team_leaves_every_file_as_before_it_was_added(copy: Path) -> None:
    before = texts(copy)
    add_team(copy)
    assert set(plan_removed_team(copy, GROWTH).write()) == {entries.path for entries in ENTRIES_OF_A_TEAM}
    for path in ("growth_example.py", "tests/test_growth_example.py", "locations/growth.py"):
        (copy / "dags" / path).unlink()
    assert texts(copy) == before
    assert plan_removed_team(copy, GROWTH).texts == {}


def test_a_changed_location_stays_and_a_lost_entry_comes_back(copy: Path) -> None:
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
        ("deploy/helm/values.yaml", r"^      name: ([\w-]+)$"),
    ):
        found = re.findall(pattern, (copy / path).read_text(), re.MULTILINE)
        assert any("growth" in one.lower() for one in found), path
        assert found == sorted(found), path


def test_the_location_is_deployed_with_the_image_of_the_platform(copy: Path) -> None:
    add_team(copy)
    (values,) = chart.read(copy / HELM_VALUES)
    names = [server["name"] for server in chart.code_servers(values)]
    assert names == sorted(names)
    (server,) = [server for server in chart.code_servers(values) if server["name"] == "growth"]
    assert server["image"] == values["shared"]["image"]
    assert server["dagsterApiGrpcArgs"] == ["-m", "dags.locations.growth"]
    hosts = values["dagsterWebserver"]["workspace"]["servers"]
    assert {"host": "growth", "port": 3030, "name": "growth"} in hosts
    assert hosts == sorted(hosts, key=lambda entry: str(entry["host"]))


def test_a_team_is_added_where_nothing_is_deployed_by_helm(copy: Path) -> None:
    (copy / HELM_VALUES).unlink()
    add_team(copy)
    assert not (copy / HELM_VALUES).exists()


@pytest.mark.parametrize(
    ("path", "anchor"),
    [
        ("dags/common/owners.py", "class JobOwners"),
        ("dags/slack_alerts.py", "notification_channel_per_team: Mapping"),
        (".dagster_home/workspace.yaml", "- python_module"),
        ("deploy/helm/values.yaml", "- <<: *code_server"),
    ],
)
def test_a_file_without_the_place_of_an_entry_is_named_and_nothing_is_written(
    copy: Path, path: str, anchor: str
) -> None:
    text = (copy / path).read_text()
    assert anchor in text
    (copy / path).write_text(text.replace(anchor, anchor.replace("_", "").replace("class J", "class MyJ")))
    before = texts(copy)
    with pytest.raises(RefusedError) as caught:
        plan_new_team(copy, GROWTH, CHANNEL)
    assert path in str(caught.value)
    assert "Nothing was written" in str(caught.value)
    assert texts(copy) == before


def test_a_file_that_cannot_be_written_leaves_all_files_as_they_were(copy: Path) -> None:
    plan = plan_new_team(copy, GROWTH, CHANNEL)
    # A directory where the last file is written.
    (copy / f"{list(plan.texts)[-1]}.new").mkdir()
    before = texts(copy)
    with pytest.raises(IsADirectoryError):
        plan.write()
    assert texts(copy) == before
    assert [path for path in copy.rglob("*.new") if path.is_file()] == []


@pytest.mark.parametrize("name", ["events", "slack-alerts", "slack_alerts", "locks"])
def test_the_name_of_an_existing_module_is_refused_for_a_team_and_for_a_dag(copy: Path, name: str) -> None:
    with pytest.raises(RefusedError, match="exists already"):
        plan_new_team(copy, team_from(name), "#alerts-new")
    with pytest.raises(RefusedError, match="exists already"):
        plan_new_dag(copy, team_from("clickhouse"), name.replace("-", "_"))


def test_the_channel_of_another_team_is_refused(copy: Path) -> None:
    with pytest.raises(RefusedError, match="TEAM_INGESTION has '#alerts-ingestion'"):
        plan_new_team(copy, GROWTH, "#alerts-ingestion")


def test_another_channel_of_the_same_team_is_not_overwritten(copy: Path) -> None:
    add_team(copy)
    with pytest.raises(RefusedError, match=r"dags/slack_alerts\.py: TEAM_GROWTH has '#alerts-growth', not '#growth'"):
        plan_new_team(copy, GROWTH, "#growth")


def test_a_dag_for_an_unknown_team_is_refused_with_the_command_that_adds_the_team(copy: Path) -> None:
    with pytest.raises(RefusedError, match="make new-team TEAM=growth CHANNEL=#alerts-growth"):
        plan_new_dag(copy, GROWTH, "signups")


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("channel", ["#alerts-growth", "'#alerts-growth'", "alerts-growth"])
def test_make_accepts_a_channel_with_its_hash_from_a_shell(copy: Path, shell: str, channel: str) -> None:
    # `true` in place of Python skips the set-up.
    make = f"make PYTHON=true BIN={BIN} new-team TEAM=growth CHANNEL={channel}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    result = subprocess.run([shell, "-c", make], cwd=copy, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'JobOwners.TEAM_GROWTH.value: "#alerts-growth",' in (copy / "dags" / "slack_alerts.py").read_text()
