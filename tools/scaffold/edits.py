"""One entry put into the text of a file, in its sorted place: texts in, texts out.

Belongs here: where an entry goes, found by parsing. Not here: which files, and writing them (`project.py`). A text that
has the entry already comes back as it is. Python comes back as it was typed in: `project.py` formats it.
"""

import ast
import re
import tomllib
from collections.abc import Sequence
from typing import NamedTuple

# The order in which a location lists what it registers.
ARGUMENTS = ("assets", "asset_checks", "jobs", "schedules", "sensors", "resources")
WORKSPACE_ENTRY = re.compile(r"^  (?:# )?- python_module: \{ module_name: dags\.locations\.(\w+), .*")


class EditError(ValueError):
    """A text has not the place that an entry goes to, or has another entry there. The message says what to do."""


class Span(NamedTuple):
    """First and last line of an entry, counted from 1."""

    first: int
    last: int


def place(entries: Sequence[tuple[Span, str]], name: str, what: str) -> int:
    """The number of lines before a new entry: behind the entry before it, so that comments stay with what they precede.

    Raises EditError without any entry, saying `what` there is none of.
    """
    if not entries:
        raise EditError(f"it has no {what}")
    before = [span.last for span, one in entries if one < name]
    return max(before) if before else min(span.first for span, _ in entries) - 1


def with_line(text: str, lines_before: int, line: str) -> str:
    """The text with a line more, behind so many lines."""
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:lines_before], f"{line}\n", *lines[lines_before:]])


def enum_members(source: str, class_name: str) -> dict[str, str]:
    """Name and value of every member."""
    return {target: value for _, target, value in _members(source, class_name)}


def add_enum_member(source: str, class_name: str, name: str, value: str) -> str:
    """Add `NAME = "value"` to an enum. Raises EditError."""
    members = _members(source, class_name)
    known = {target: its_value for _, target, its_value in members}
    if name in known:
        if known[name] != value:
            raise EditError(f"{class_name}.{name} is '{known[name]}' and not '{value}': mend it there")
        return source
    line = place([(node, target) for node, target, _ in members], name, f"members of the class {class_name}")
    return with_line(source, line, f'    {name} = "{value}"')


def dict_entries(source: str, variable: str) -> dict[str, str]:
    """Key and value of a dict that stands at the top of a module, as the source has them."""
    return {ast.unparse(key): ast.unparse(value) for key, value in _items(source, variable)}


def add_dict_entry(source: str, variable: str, key: str, value: str) -> str:
    """Add `key: value`, both as source, to a dict at the top of a module. Raises EditError."""
    key, value = (ast.unparse(ast.parse(text, mode="eval")) for text in (key, value))
    found = dict_entries(source, variable)
    if key in found:
        if found[key] != value:
            raise EditError(f"{variable} has {key}: {found[key]}, and not {value}: mend it there")
        return source
    items = _items(source, variable)
    entries = [(Span(one.lineno, its.end_lineno or its.lineno), ast.unparse(one)) for one, its in items]
    return with_line(source, place(entries, key, f"entries of {variable}"), f"    {_quoted(key)}: {_quoted(value)},")


def add_to_location(source: str, module: str, definitions: dict[str, str]) -> str:
    """Import names from `module` and list them in the call of `build_definitions`, each under its argument.

    `definitions` gives the name of each argument, as in `{"jobs": "a_job"}`. Raises EditError.
    """
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    if not imports:
        raise EditError("it has no import to put another one beside: give it the form of the other locations")
    if module in [node.module for node in imports]:
        return source
    for argument, name in definitions.items():
        source = _with_listed(source, argument, name)
    names = ", ".join(sorted(definitions.values()))
    return with_line(source, imports[0].lineno - 1, f"from {module} import {names}")


def add_layer_member(toml: str, module: str) -> str:
    """Add a module to the layer of the dags, the one whose modules are kept apart by `|`. Raises EditError."""
    contracts = tomllib.loads(toml).get("tool", {}).get("importlinter", {}).get("contracts", [])
    layers = [layer for contract in contracts for layer in contract.get("layers", []) if "|" in layer]
    if len(layers) != 1 or toml.count(f'"{layers[0]}"') != 1:
        raise EditError('it has no one layer of dags, as in "events | exchange_rate", in [tool.importlinter]')
    members = {one.strip() for one in layers[0].split("|")}
    return toml if module in members else toml.replace(layers[0], " | ".join(sorted({*members, module})))


def add_workspace_entry(text: str, location: str) -> str:
    """Add a location to workspace.yaml. One that is left out by a comment is there. Raises EditError."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = WORKSPACE_ENTRY.fullmatch(line)
        if match:
            found.append((Span(number, number), match[1]))
    if location in [name for _, name in found]:
        return text
    lines_before = place(found, location, "entries '  - python_module: { module_name: dags.locations.… }'")
    entry = f"  - python_module: {{ module_name: dags.locations.{location}, location_name: {location} }}"
    return with_line(text, lines_before, entry)


def _quoted(source: str) -> str:
    # As the formatter has it; `ast.unparse` prefers the other kind.
    return f'"{source[1:-1]}"' if source.startswith("'") else source


def _members(source: str, class_name: str) -> list[tuple[Span, str, str]]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return [
                (Span(one.lineno, one.end_lineno or one.lineno), one.targets[0].id, str(one.value.value))
                for one in node.body
                if isinstance(one, ast.Assign)
                and isinstance(one.targets[0], ast.Name)
                and isinstance(one.value, ast.Constant)
            ]
    raise EditError(f"it has no class {class_name}")


def _items(source: str, variable: str) -> list[tuple[ast.expr, ast.expr]]:
    for node in ast.parse(source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id == variable and isinstance(node, ast.AnnAssign):
            if isinstance(node.value, ast.Dict):
                items = [(key, value) for key, value in zip(node.value.keys, node.value.values, strict=True) if key]
                if items and items[0][0].lineno > node.value.lineno:
                    return items
            raise EditError(f"{variable} is no dict with an entry on each line")
    raise EditError(f"it has no dict {variable}: Mapping[str, str] = {{…}}")


def _with_listed(source: str, argument: str, name: str) -> str:
    """`name` in the list of an argument of the one call of `build_definitions`."""
    calls = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "build_definitions"
    ]
    if len(calls) != 1:
        raise EditError(f"it calls build_definitions {len(calls)} times: a location does it once")
    keywords = {one.arg: one for one in calls[0].keywords if one.arg}
    given = keywords.get(argument)
    if given is None:
        later = [keywords[one] for one in ARGUMENTS[ARGUMENTS.index(argument) :] if one in keywords]
        if later:
            return _inserted(source, later[0].lineno, later[0].col_offset, f"{argument}=[{name}], ")
        earlier = [node.value for node in keywords.values()]
        if not earlier:
            return _inserted(
                source, calls[0].func.end_lineno, (calls[0].func.end_col_offset or 0) + 1, f"{argument}=[{name}]"
            )
        return _inserted(source, earlier[-1].end_lineno, earlier[-1].end_col_offset, f", {argument}=[{name}]")
    if not isinstance(given.value, ast.List):
        raise EditError(f"the argument {argument} of build_definitions is no list")
    before = [one for one in given.value.elts if isinstance(one, ast.Name) and one.id < name]
    if before:
        return _inserted(source, before[-1].end_lineno, before[-1].end_col_offset, f", {name}")
    comma = ", " if given.value.elts else ""
    return _inserted(source, given.value.lineno, given.value.col_offset + 1, f"{name}{comma}")


def _inserted(source: str, line: int | None, offset: int | None, text: str) -> str:
    """`text` put in at a line, counted from 1, and an offset in bytes, as `ast` counts."""
    lines = source.splitlines(keepends=True)
    encoded = lines[(line or 1) - 1].encode()
    lines[(line or 1) - 1] = (encoded[: offset or 0] + text.encode() + encoded[offset or 0 :]).decode()
    return "".join(lines)
