"""Each location as a code server loads it: in an interpreter of its own, found by its file."""

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

# Many times what it takes; for longer than that a code server would not be waited for.
BUDGET_SECONDS = 60.0
# Imported where they are used: each would make every location, and every step of every run, start later.
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

# What a deployment may have set, and what may be wrong with it: settings are read when first used.
ENVIRONMENTS: dict[str, Mapping[str, str]] = {
    "nothing set": {},
    "on a laptop": {"DEBUG": "1"},
    "all wrong": {"DEBUG": "1", "CLOUD_DEPLOYMENT": "US", "CLICKHOUSE_PORT": "wrong"},
}

# Tells what importing the module did that it must not do.
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
    raise RuntimeError(f"it imports {local}: the embedded stack is for the laptop alone")
"""


def problem_of_loading(
    module: str, environment: Mapping[str, str], directory: Path = ROOT, budget_seconds: float = BUDGET_SECONDS
) -> str | None:
    """What is wrong with loading a module, found from `directory`; None when nothing is."""
    # Nothing of this process: PATH, HOME and what is given are all there is.
    exact = {"PATH": os.defpath, "HOME": "/", **environment}
    command = [sys.executable, "-c", LOADING, module, *HEAVY]
    try:
        loading = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=budget_seconds, env=exact, cwd=directory
        )
    except subprocess.TimeoutExpired:
        return (
            f"{module} does not load in {budget_seconds:g} seconds: python -X importtime -c 'import {module}' says why"
        )
    if loading.returncode != 0:
        return f"{module} does not load with the environment {dict(environment)}:\n{loading.stderr}"
    return f"{module} prints when it is loaded:\n{loading.stderr}" if loading.stderr else None


def test_there_are_locations() -> None:
    assert len(MODULES) >= 3


@pytest.mark.parametrize("module", MODULES)
def test_a_location_loads_in_a_fresh_interpreter_in_time_and_without_environment_or_input_or_output(
    module: str,
) -> None:
    problem = problem_of_loading(module, {})
    assert problem is None, problem


@pytest.mark.parametrize("environment", list(ENVIRONMENTS))
def test_all_locations_in_one_load_whatever_the_environment(environment: str) -> None:
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
def test_a_location_that_loads_wrongly_is_named_with_the_reason(line: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(f"import dagster as dg\n{line}\ndefs = dg.Definitions()\n")
    found = problem_of_loading("wrong", {}, tmp_path)
    assert found is not None
    assert found.startswith("wrong ")
    assert problem in found


def test_a_location_that_takes_longer_than_the_budget_is_named(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    found = problem_of_loading("slow", {}, tmp_path, budget_seconds=1)
    assert found is not None
    assert found.startswith("slow does not load in 1 seconds: python -X importtime")
