"""Each location loads in a fresh interpreter, as in a code server."""

import os
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dags import locations

ROOT = Path(__file__).parents[3]
MODULES = [f"dags.locations.{module.name}" for module in pkgutil.iter_modules(locations.__path__)]

# Many times the usual seconds. Dagster does not wait longer for a code server.
BUDGET_SECONDS = 60.0
# Imported in the functions that use them: each would slow the start of every location and of every step.
HEAVY = [
    "boto3",
    "botocore",
    "chdb",
    "clickhouse_driver",
    "currency_converter",
    "dagster_k8s",
    "dagster_slack",
    "kubernetes",
    "matplotlib",
    "moto",
    "numpy",
    "pandas",
    "psycopg2",
    "pyarrow",
    "requests",
    "slack_sdk",
    "sqlalchemy",
    "ua_parser",
    "urllib3",
]

# Settings are read on first use, so no environment stops a location from loading.
ENVIRONMENTS: dict[str, Mapping[str, str]] = {
    "nothing set": {},
    "on a laptop": {"DEBUG": "1"},
    "all wrong": {"DEBUG": "1", "CLOUD_DEPLOYMENT": "US", "CLICKHOUSE_PORT": "wrong"},
}

# Raises if importing the module does what it must not do.
LOADING = """
import importlib, sys
import dagster as dg

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.putenv"):
        raise RuntimeError(f"it causes {event} {arguments}: do it in a function that a run or a tick calls")

module, heavy = sys.argv[1], set(sys.argv[2:])
before = set(sys.modules)
sys.addaudithook(refuse)
dg.Definitions.validate_loadable(importlib.import_module(module).defs)
imported = set(sys.modules) - before
if heavy & imported:
    raise RuntimeError(f"it imports {sorted(heavy & imported)}: import them in the functions that use them")
local = sorted(name for name in imported if name.startswith("dags.local"))
if local:
    raise RuntimeError(f"it imports {local}: the embedded stack is for a laptop only")
"""


def problem_of_loading(
    module: str, environment: Mapping[str, str], directory: Path = ROOT, budget_seconds: float = BUDGET_SECONDS
) -> str | None:
    """Return the problem of loading a module from `directory`; None if there is none."""
    # Nothing else of this process's environment.
    exact = {"PATH": os.defpath, "HOME": "/", **environment}
    command = [sys.executable, "-c", LOADING, module, *HEAVY]
    try:
        loading = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=budget_seconds, env=exact, cwd=directory
        )
    except subprocess.TimeoutExpired:
        return (
            f"{module} does not load in {budget_seconds:g} seconds: python -X importtime -c 'import {module}' shows why"
        )
    if loading.returncode != 0:
        return f"{module} does not load with the environment {dict(environment)}:\n{loading.stderr}"
    return f"{module} prints when it is loaded:\n{loading.stderr}" if loading.stderr else None


def test_there_are_locations() -> None:
    assert len(MODULES) >= 3


@pytest.mark.parametrize("module", MODULES)
def test_a_location_loads_in_a_fresh_interpreter_in_time_without_environment_and_io(
    module: str,
) -> None:
    problem = problem_of_loading(module, {})
    assert problem is None, problem


@pytest.mark.parametrize("environment", list(ENVIRONMENTS))
def test_the_merged_locations_load_in_any_environment(environment: str) -> None:
    problem = problem_of_loading("dags.definitions", ENVIRONMENTS[environment])
    assert problem is None, problem


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "it causes socket"),
        ("import subprocess; subprocess.run(['true'])", "it causes subprocess.Popen"),
        ("import os; os.environ['CRANE'] = '1'", "it causes os.putenv"),
        ("import os; os.environ['DEBUG']", "KeyError: 'DEBUG'"),
        ("import psycopg2", "it imports ['psycopg2']: import them in the functions that use them"),
        ("import sys; print('hello', file=sys.stderr)", "prints when it is loaded:\nhello"),
        ("from wrong import other", "ImportError"),
    ],
)
def test_a_location_that_does_not_load_is_named_with_the_reason(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(f"import dagster as dg\n{line}\ndefs = dg.Definitions()\n")
    found = problem_of_loading("wrong", {}, tmp_path)
    assert found is not None
    assert found.startswith("wrong ")
    assert problem in found


def test_a_location_that_loads_too_slowly_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    found = problem_of_loading("slow", {}, tmp_path, budget_seconds=1)
    assert found is not None
    assert found.startswith("slow does not load in 1 seconds: python -X importtime")
