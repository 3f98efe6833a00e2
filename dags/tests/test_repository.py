"""The files around the code: lock, local instance, workspace, README and set-up, compared with the code."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dags.common.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()


def locked_requirements() -> list[tuple[Requirement, list[str]]]:
    """Return every requirement of the lock with its hashes."""
    entries = LOCK.replace("\\\n", " ").splitlines()
    return [
        (Requirement(entry.split(" --hash=")[0]), re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
        for entry in entries
    ]


def direct_requirements() -> list[Requirement]:
    """Return every requirement of pyproject.toml, including optional ones."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def location_names() -> list[str]:
    """Return the names of the locations that the workspace loads."""
    workspace: dict[str, Any] = yaml.safe_load((ROOT / ".dagster_home" / "workspace.yaml").read_text())
    return [entry["python_module"]["location_name"] for entry in workspace["load_from"]]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))


def test_the_lock_contains_no_package_index_and_no_url() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*(--(?!hash)|-[a-z]\b)", LOCK, re.MULTILINE), "the lock contains options of pip"


def test_every_locked_package_has_one_exact_version_and_hashes() -> None:
    locked = locked_requirements()
    assert locked
    for requirement, hashes in locked:
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"{requirement} is not pinned: run `make lock`"
        assert hashes, f"{requirement} has no hash: run `make lock`"


def test_every_direct_dependency_is_locked_within_its_range() -> None:
    versions: dict[str, list[Version]] = {}
    for requirement, _ in locked_requirements():
        pin = next(iter(requirement.specifier))
        versions.setdefault(canonicalize_name(requirement.name), []).append(Version(pin.version))
    for requirement in direct_requirements():
        locked = versions.get(canonicalize_name(requirement.name), [])
        assert locked, f"{requirement} of pyproject.toml is not in requirements.lock: run `make lock`"
        for version in locked:
            assert version in requirement.specifier, (
                f"the lock has {version}, but pyproject.toml requires {requirement}: run `make lock`"
            )


@pytest.fixture
def instance_home(tmp_path: Path) -> Path:
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    return tmp_path


def test_the_local_instance_queues_and_monitors_runs_and_sends_no_telemetry(instance_home: Path) -> None:
    with dg.DagsterInstance.from_config(str(instance_home)) as instance:
        concurrency = instance.get_concurrency_config()
        assert type(instance.run_coordinator).__name__ == "QueuedRunCoordinator"
        assert concurrency.run_queue_config is not None
        assert concurrency.run_queue_config.max_concurrent_runs == 10
        assert concurrency.run_queue_config.tag_concurrency_limits == [{"key": "dagster/backfill", "limit": 6}]
        assert concurrency.pool_config.default_pool_limit == 1
        assert concurrency.pool_config.pool_granularity is not None
        assert concurrency.pool_config.pool_granularity.value == "run"
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_runtime_seconds == 6 * 60 * 60
        assert instance.run_retries_enabled
        assert not instance.telemetry_enabled


def test_the_local_instance_stores_its_data_beside_its_configuration(instance_home: Path) -> None:
    @dg.op
    def nothing() -> None: ...

    @dg.job
    def nothing_job() -> None:
        nothing()

    with dg.DagsterInstance.from_config(str(instance_home)) as instance:
        run_id = nothing_job.execute_in_process(instance=instance).run_id
    with dg.DagsterInstance.from_config(str(instance_home)) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.SUCCESS


def test_dagster_loads_every_location_of_the_workspace() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", ".dagster_home/workspace.yaml"],
        cwd=ROOT,
        env={**os.environ, "DEBUG": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    assert location_names()
    for name in location_names():
        assert f"Validation successful for code location {name}" in output, output


def test_the_readme_names_exactly_the_make_commands() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named == make_targets()


def variables_of_the_table(readme: str) -> list[str]:
    """Return the names in the first column of the table under the heading Environment."""
    section = readme.split("\n## Environment\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return [name for row in rows for name in re.findall(r"`([A-Z0-9_]+)`", row)]


def differences_of_the_table(readme: str, known: list[str]) -> list[str]:
    named = variables_of_the_table(readme)
    return [
        *(f"add {name} to the table of README.md" for name in known if name not in named),
        *(
            f"remove {name} from README.md: dags/common/settings.py has no such field"
            for name in set(named) - set(known)
        ),
        *(f"{name} is twice in the table of README.md" for name in set(named) if named.count(name) > 1),
    ]


def test_the_environment_table_of_the_readme_lists_the_settings() -> None:
    known = [name.upper() for name in Settings.model_fields]
    assert known
    differences = differences_of_the_table(README, known)
    assert not differences, "\n".join(differences)


def test_a_missing_unknown_or_repeated_variable_of_the_table_is_named() -> None:
    readme = (
        "\n## Environment\n\n`D` is\n\n| variable | meaning |\n|---|---|\n| `A`, `B` | `C` |\n| `B` | |\n\n## More\n"
    )
    assert differences_of_the_table(readme, ["A", "B"]) == ["B is twice in the table of README.md"]
    assert "add C to the table of README.md" in differences_of_the_table(readme, ["A", "B", "C"])
    (strange, _) = differences_of_the_table(readme, ["B"])
    assert strange == "remove A from README.md: dags/common/settings.py has no such field"


@pytest.fixture
def bare_project(tmp_path: Path) -> Path:
    """Return a directory with the files that set-up reads, and a lock without packages."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "environment.py", tmp_path / "tools")
    for name in ("pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements.lock").write_text("# nothing\n")
    return tmp_path


def set_up(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "setup", f"PYTHON={sys.executable}", *arguments],
        cwd=project,
        # Otherwise this `make` inherits the options of the `make test` that runs it.
        env={name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_set_up_creates_the_environment_once(bare_project: Path) -> None:
    first, second = set_up(bare_project), set_up(bare_project)
    assert first.returncode == 0, first.stderr
    assert "Made .venv" in first.stdout
    assert second.returncode == 0, second.stderr
    assert second.stdout == ""


def test_set_up_starts_again_after_an_interruption_and_after_a_change_of_the_lock(bare_project: Path) -> None:
    assert set_up(bare_project).returncode == 0
    leftover = bare_project / ".venv" / "leftover"
    leftover.touch()
    (bare_project / ".venv" / "complete").unlink()
    assert "Made .venv" in set_up(bare_project).stdout
    assert not leftover.exists(), "an incomplete environment was kept"
    (bare_project / "requirements.lock").write_text("# nothing, differently\n")
    assert "Made .venv" in set_up(bare_project).stdout


def test_a_failed_installation_is_reported_again(bare_project: Path) -> None:
    (bare_project / "requirements.lock").write_text("./no-such-package.whl --hash=sha256:" + "0" * 64 + "\n")
    for _ in range(2):
        result = set_up(bare_project)
        assert result.returncode != 0
        assert "could not install the locked packages" in result.stderr


def test_a_missing_interpreter_is_named_with_the_remedy(bare_project: Path) -> None:
    result = set_up(bare_project, "PYTHON=/nowhere/python3.11")
    assert result.returncode != 0
    assert "'/nowhere/python3.11' does not run" in result.stderr
    assert "make PYTHON=/path/to/python3.11 setup" in result.stderr


def test_an_interpreter_that_is_too_old_is_refused_with_the_rule(bare_project: Path) -> None:
    pyproject = bare_project / "pyproject.toml"
    pyproject.write_text(
        re.sub(r'requires-python = "[^"]+"', 'requires-python = ">=3.90,<3.99"', pyproject.read_text())
    )
    result = set_up(bare_project)
    assert result.returncode != 0
    assert "this project needs 3.90 or newer, below 3.99" in result.stderr


def lint_commands() -> list[str]:
    """Return the commands of `make lint`."""
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in recipe.splitlines()]


def test_the_pre_commit_hooks_are_the_commands_of_make_lint() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert local["repo"] == "local", "other repositories pin their own versions: use the tools of .venv"
    assert [hook["entry"] for hook in local["hooks"]] == lint_commands()
    assert {hook["language"] for hook in local["hooks"]} == {"system"}


def test_the_hosted_ci_runs_the_ci_script() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "make helm-check ARGS=--require-chart"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    (version,) = [
        step["with"]["python-version"] for step in workflow["jobs"]["ci"]["steps"] if "setup-python" in str(step)
    ]
    assert f"python{version}" in MAKEFILE
