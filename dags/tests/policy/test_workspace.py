import pkgutil
from pathlib import Path

import yaml

from dags import locations

WORKSPACE = Path(__file__).parents[3] / ".dagster_home" / "workspace.yaml"


def test_the_workspace_lists_every_location_and_nothing_else() -> None:
    entries = [entry["python_module"] for entry in yaml.safe_load(WORKSPACE.read_text())["load_from"]]
    listed = {entry["module_name"]: entry["location_name"] for entry in entries}
    modules = {f"dags.locations.{module.name}": module.name for module in pkgutil.iter_modules(locations.__path__)}
    assert modules
    assert len(entries) == len(listed), f"{WORKSPACE.name} lists a module twice"
    assert listed == modules, f"add the missing module to {WORKSPACE}, or remove the one that is gone"
