"""Imports run one way, as the contracts in pyproject.toml say."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def broken_contracts(root: Path) -> str | None:
    """What `make lint` says of the imports under a directory with `dags` and pyproject.toml; None if all is well."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    linted = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    if linted.returncode == 0:
        return None
    return f"{linted.stdout}{linted.stderr}\nMove what is needed down to dags/common, or what needs it up."


def test_layers_hold() -> None:
    problem = broken_contracts(ROOT)
    assert problem is None, problem


def test_an_import_against_the_layers_is_named(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "dags", tmp_path / "dags", ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    (tmp_path / "dags" / "common" / "tags.py").write_text("import dags.locations.shared\n")
    problem = broken_contracts(tmp_path)
    assert problem is not None
    assert "dags.common.tags -> dags.locations.shared" in problem
    assert "Move what is needed down" in problem
