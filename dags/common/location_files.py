"""What the file of a location says, read as text: whoever asks needs no code that loads.

Not here: what a location defines, which is known once it is loaded (`inventory.py`).
"""

import ast
from pathlib import Path

# Packages that a location imports from too, and that are nobody's dags.
NOT_DAGS = {"common", "locations"}


def dags_of(location: Path) -> list[str]:
    """The dags that a location's file imports, modules or packages of `dags/`, in the order of their names."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(location.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    return sorted({parts[1] for parts in (module.split(".") for module in modules) if parts[0] == "dags"} - NOT_DAGS)
