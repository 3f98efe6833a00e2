import pkgutil
import re
from pathlib import Path

import pytest
import yaml

from dags import locations

WORKSPACE = Path(__file__).parents[3] / ".dagster_home" / "workspace.yaml"
LEFT_OUT = re.compile(r"^  # (- python_module: \{.*?\})(.*)$", re.MULTILINE)


def listed(workspace: str) -> list[tuple[str, str]]:
    """Module and name of every entry, those left out by a comment too. Raises ValueError for one without a reason."""
    entries = list(yaml.safe_load(workspace)["load_from"])
    for entry, reason in LEFT_OUT.findall(workspace):
        if not re.fullmatch(r"\s*# \S.*", reason):
            raise ValueError(f"{entry} is left out: say why behind it, as in the head of {WORKSPACE.name}")
        entries += yaml.safe_load(entry)
    return [(entry["python_module"]["module_name"], entry["python_module"]["location_name"]) for entry in entries]


def test_the_workspace_lists_every_location_once_under_its_own_name_and_nothing_else() -> None:
    modules = [(f"dags.locations.{module.name}", module.name) for module in pkgutil.iter_modules(locations.__path__)]
    assert modules
    assert sorted(listed(WORKSPACE.read_text())) == sorted(modules), (
        f"add the missing module to {WORKSPACE}, or remove the one that is gone or listed twice"
    )


def test_an_entry_left_out_by_a_comment_counts_as_listed_and_needs_its_reason() -> None:
    entries = "load_from:\n  - python_module: { module_name: a.b, location_name: b }\n"
    left_out = entries + "  # - python_module: { module_name: a.c, location_name: c }"
    assert listed(f"{left_out}  # 2 GB of memory\n") == [("a.b", "b"), ("a.c", "c")]
    with pytest.raises(ValueError, match="say why behind it"):
        listed(f"{left_out}\n")
