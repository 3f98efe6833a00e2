"""Time and memory that code locations take to load, compared with Dagster alone.

Run: `python bench/load.py` (about five minutes). Each round measures everything once:

- a new interpreter imports `dagster`, each location's module, or `dags.definitions`, which has all of them: seconds of
  the import, and the peak resident memory of the process. The result is the best of the rounds, because other load on
  the machine only adds to it;
- `dagster dev` from its start until every location is loaded: with this project's locations, and with as many that
  define nothing, each on a new instance. Again the best of the rounds.

Ends with one line for each figure: `name value unit aim AIM ok|short`.
"""

import argparse
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import ROOT, Figures

from dags import locations
from dags.tests import webserver

MODULES = [f"{locations.__name__}.{module.name}" for module in pkgutil.iter_modules(locations.__path__)]
DAGSTER, ALL = "dagster", "dags.definitions"

IMPORTING = r"""
import json, pathlib, re, sys, time
started = time.perf_counter()
__import__(sys.argv[1])
seconds = time.perf_counter() - started
# Not getrusage, which includes the memory of the parent process at the fork.
(kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
print(json.dumps([seconds, int(kibibytes) / 2**10]))
"""
EMPTY = "import dagster as dg\n\ndefs = dg.Definitions()\n"
STATUS = """
{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename } } } } }
"""
POLL_SECONDS = 0.05
MAX_LOAD_SECONDS = 300


def importing(module: str) -> tuple[float, float]:
    """Return the seconds and MiB of a new interpreter that imports the module."""
    output = subprocess.check_output(
        [sys.executable, "-c", IMPORTING, module], text=True, cwd=ROOT, env={**os.environ, "DEBUG": "1"}
    )
    seconds, mebibytes = json.loads(output)
    return seconds, mebibytes


def measure_imports(figures: Figures, rounds: int) -> None:
    """Measure the import of each location, compared with Dagster alone."""
    modules = [DAGSTER, *MODULES, ALL]
    # The first import of a module compiles it.
    for module in modules:
        importing(module)
    measured: dict[str, list[tuple[float, float]]] = {module: [] for module in modules}
    for _ in range(rounds):
        for module in modules:
            measured[module].append(importing(module))
    best = {module: tuple(map(min, zip(*found, strict=True))) for module, found in measured.items()}
    seconds_alone, mebibytes_alone = best[DAGSTER]
    figures.add("import_dagster", seconds_alone, "s")
    figures.add("import_dagster_memory", mebibytes_alone, "MiB")
    for module in [*MODULES, ALL]:
        name = "all_locations" if module == ALL else module.rsplit(".", 1)[-1]
        seconds, mebibytes = best[module]
        figures.add(f"import_{name}", seconds, "s")
        figures.add(f"import_{name}_memory", mebibytes, "MiB")
        figures.add(f"import_{name}_to_dagster", seconds / seconds_alone, "times", at_most=1.5)
        figures.add(f"import_{name}_memory_to_dagster", mebibytes / mebibytes_alone, "times")


def loading(modules: Sequence[str], directory: Path) -> float:
    """Return the seconds from the start of `dagster dev` until all of these modules of `directory` are loaded."""
    with tempfile.TemporaryDirectory() as path:
        home = Path(path)
        shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", home)
        entries = [
            f"  - python_module: {{ module_name: {module}, location_name: {module.rsplit('.', 1)[-1]}, "
            f"working_directory: {directory} }}\n"
            for module in modules
        ]
        (home / "workspace.yaml").write_text("load_from:\n" + "".join(entries))
        started = time.perf_counter()
        with webserver.serving(home, webserver.DEVELOPMENT, {}) as server:
            while not all_loaded(server, len(modules)):
                assert time.perf_counter() - started < MAX_LOAD_SECONDS, (home / "server.log").read_text()
                time.sleep(POLL_SECONDS)
            return time.perf_counter() - started


def all_loaded(server: webserver.Webserver, count: int) -> bool:
    """Return whether `count` locations are loaded. A location that fails to load ends the measurement."""
    entries = server.query(STATUS)["locationEntries"]
    loaded = [entry for entry in entries if entry["loadStatus"] == "LOADED"]
    broken = [entry["name"] for entry in loaded if entry["locationOrLoadError"]["__typename"] == "PythonError"]
    assert not broken, f"these locations do not load: {broken}"
    return len(loaded) == count


def measure_dev(figures: Figures, rounds: int) -> None:
    """Measure the workspace, compared with one of as many empty locations."""
    with tempfile.TemporaryDirectory() as path:
        empty = [f"empty_{number}" for number in range(len(MODULES))]
        for module in empty:
            (Path(path) / f"{module}.py").write_text(EMPTY)
        workspace_seconds, empty_seconds = [], []
        for _ in range(rounds):
            empty_seconds.append(loading(empty, Path(path)))
            workspace_seconds.append(loading(MODULES, ROOT))
    figures.add("locations", len(MODULES), "locations")
    figures.add("dagster_dev_empty_locations", min(empty_seconds), "s")
    figures.add("dagster_dev_workspace", min(workspace_seconds), "s")
    ratio = min(workspace_seconds) / min(empty_seconds)
    figures.add("dagster_dev_workspace_to_empty", ratio, "times", at_most=1.25)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--imports", type=int, default=10, help="rounds of imports")
    parser.add_argument("--starts", type=int, default=5, help="rounds of dagster dev")
    arguments = parser.parse_args()
    figures = Figures()
    measure_imports(figures, arguments.imports)
    measure_dev(figures, arguments.starts)
    figures.print_all()


if __name__ == "__main__":
    main()
