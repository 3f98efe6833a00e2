"""Imports run one way, derived from the folders: what LAYERS does not name is a pipeline."""

import shutil
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[3]

PIPELINES = "the pipelines"
# From the top. A package imports from the layers below its own, and from no other package of its own layer.
LAYERS = (
    ("dags.tests",),
    ("dags.local", "tools"),
    ("dags.definitions",),
    ("dags.locations",),
    # It deletes from the tables of every other pipeline.
    ("dags.deletes",),
    (PIPELINES,),
    ("dags.alerts", "dags.metrics"),
    ("dags.common",),
)
LAYER_OF_PACKAGE = {package: number for number, layer in enumerate(LAYERS) for package in layer}


def import_problems(graph: grimp.ImportGraph) -> list[str]:
    """Return the imports against the layers, each with its place and the remedy."""
    problems = []
    for module in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(module)):
            importer, package = package_of(module), package_of(imported)
            if imported != "dags" and importer != package and layer_of(importer) >= layer_of(package):
                (first, *_) = graph.get_import_details(importer=module, imported=imported)
                problems.append(
                    f"{module}, line {first['line_number']}, imports {imported}: imports run from locations to "
                    "pipelines to common, and pipelines do not import each other. Move what is needed to dags/common."
                )
    return problems


def package_of(module: str) -> str:
    """Return `dags.events` for `dags.events.assets`, and `tools` for all of `tools`."""
    return ".".join(module.split(".")[: 2 if module.startswith("dags.") else 1])


def layer_of(package: str) -> int:
    return LAYER_OF_PACKAGE.get(package, LAYER_OF_PACKAGE[PIPELINES])


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code to plant an import in; `grimp` finds it first."""
    for package in ("dags", "tools"):
        ignored = shutil.ignore_patterns("__pycache__", "test_*")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
        # Else Python takes the one that is loaded.
        monkeypatch.delitem(sys.modules, package, raising=False)
    for pipeline in ("one_pipeline", "another_pipeline"):
        (tmp_path / "dags" / f"{pipeline}.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_imports_run_one_way() -> None:
    graph = grimp.build_graph("dags", "tools", cache_dir=None)
    assert {"dags.deletes", "dags.slack_alerts", "tools.ownership"} <= graph.modules
    problems = import_problems(graph)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("path", "imported"),
    [
        ("dags/common/tags.py", "dags.locations.shared"),
        ("dags/common/tags.py", "dags.one_pipeline"),
        ("dags/alerts/values.py", "dags.slack_alerts"),
        ("dags/one_pipeline.py", "dags.another_pipeline"),
        ("dags/one_pipeline.py", "dags.deletes.registry"),
        ("dags/one_pipeline.py", "dags.definitions"),
        ("dags/locations/shared.py", "dags.local.ports"),
        ("dags/local/ports.py", "tools.ownership"),
    ],
)
def test_an_import_against_the_layers_is_named_with_its_place(planted: Path, path: str, imported: str) -> None:
    (planted / path).write_text(f"import {imported}\n")
    module = path.removesuffix(".py").replace("/", ".")
    (problem,) = import_problems(grimp.build_graph("dags", "tools", cache_dir=None))
    assert problem.startswith(f"{module}, line 1, imports {imported}: ")
    assert problem.endswith("Move what is needed to dags/common.")
