"""What the source of a location says, without loading it."""

import ast
from pathlib import Path

# A location imports these too, and they are no team's.
NOT_PIPELINES = {"common", "locations"}


def pipelines_of(location: Path) -> list[str]:
    """Return the modules and packages of `dags/` that a location's file imports, sorted, without what all share."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(location.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    names = {parts[1] for parts in (module.split(".") for module in modules) if parts[0] == "dags"}
    return sorted(names - NOT_PIPELINES)
