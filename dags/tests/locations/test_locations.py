import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from dags import locations

ROOT = Path(__file__).parents[3]
MODULES = [f"dags.locations.{module.name}" for module in pkgutil.iter_modules(locations.__path__)]

# Loads what is named, as a code server does, and tells what importing it did that it must not do.
LOADING = """
import importlib, sys, threading
import dagster as dg

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.putenv"):
        raise RuntimeError(f"importing {sys.argv[1]} caused {event} {arguments}")

sys.addaudithook(refuse)
defs = importlib.import_module(sys.argv[1]).defs
dg.Definitions.validate_loadable(defs)
heavy = {"boto3", "moto", "chdb", "currency_converter", "pandas", "psycopg2"} & set(sys.modules)
if heavy:
    raise RuntimeError(f"importing {sys.argv[1]} imports {sorted(heavy)}: import them in the functions that use them")
local = [name for name in sys.modules if name.startswith("dags.local")]
if local:
    raise RuntimeError(f"importing {sys.argv[1]} imports {local}: the embedded stack is for the laptop alone")
"""


def test_there_are_locations() -> None:
    assert len(MODULES) >= 3


@pytest.mark.parametrize("module", [*MODULES, "dags.definitions"])
def test_a_location_loads_in_a_fresh_interpreter_without_input_output_and_with_a_wrong_environment(module: str) -> None:
    # Settings are read on first use: a wrong environment must not keep a location from loading.
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/",
        "CLICKHOUSE_PORT": "wrong",
        "DEBUG": "1",
        "CLOUD_DEPLOYMENT": "US",
    }
    result = subprocess.run(
        [sys.executable, "-c", LOADING, module],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "loading prints warnings"
