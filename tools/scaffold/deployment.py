"""What a location needs in the values of Dagster's Helm chart: a process of its own, and that the web server knows it.

Text in, text out, so that comments and quotes stay as they are.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tools.scaffold.edits import EditError, Span, place, with_line

# Lists of the values that have an entry for each location, and the key of an entry that is a service's name.
DEPLOYMENTS = ("dagster-user-deployments.deployments", "name")
SERVERS = ("dagsterWebserver.workspace.servers", "host")
ANCHOR = re.compile(r"(?:^|\s)&\w")


@dataclass(frozen=True)
class _Entry:
    name: str
    node: yaml.Node
    span: Span
    lines: Sequence[str]


def add_location(text: str, location: str) -> str:
    """Add a location to the deployments, and to the servers of the web server's workspace where these are listed.

    Each entry is put in its place by name and behind anchors. It is a copy of a neighbour's, without comments, in which
    whatever is just that location's name, module or team becomes the new one's. Raises EditError.
    """
    text = _added(text, location, *DEPLOYMENTS)
    return _added(text, location, *SERVERS) if _entries(text, *SERVERS) else text


def _added(text: str, location: str, where: str, service_key: str) -> str:
    # As a Kubernetes service must be named.
    name = location.replace("_", "-")
    entries = _entries(text, where, service_key)
    if name in [entry.name for entry in entries]:
        return text
    lines_before = place([(entry.span, entry.name) for entry in entries], name, f"list {where}")
    # An anchor that is defined twice would change what refers to it.
    models = [entry for entry in entries if not any(ANCHOR.search(line) for line in entry.lines)]
    if not models:
        raise EditError(f"every entry of {where} defines an anchor: copy one by hand, without it")
    model = next((entry for entry in reversed(models) if entry.name < name), models[0])
    # Nor may what refers to an anchor come before it.
    defined_until = max((entry.span.last for entry in entries if entry not in models), default=0)
    return with_line(text, max(lines_before, defined_until), "\n".join(_copy(model, name, service_key)))


def _entries(text: str, where: str, service_key: str) -> list[_Entry]:
    node: Any = yaml.compose(text)
    for key in where.split("."):
        node = _value_of(node, key)
    if not isinstance(node, yaml.SequenceNode) or node.flow_style:
        return []
    lines = text.splitlines()
    entries = []
    for item in node.value:
        span = _span(lines, item)
        own_lines = lines[span.first - 1 : span.last]
        entries.append(_Entry(str(getattr(_value_of(item, service_key), "value", "")), item, span, own_lines))
    return entries


def _copy(model: _Entry, name: str, service_key: str) -> list[str]:
    """The lines of the entry with the names of another location."""
    old, new = model.name.replace("-", "_"), name.replace("-", "_")
    renamed = {
        model.name: name,
        # Of one word, the service's name and the location's are the same, and the new ones may not be.
        old: new,
        f"dags.locations.{old}": f"dags.locations.{new}",
        f"team-{model.name}": f"team-{name}",
    }
    service = _value_of(model.node, service_key)
    lines = list(model.lines)
    # From the end, so that what comes before stays where it was parsed.
    for scalar in sorted(_scalars(model.node), key=lambda one: one.start_mark.index, reverse=True):
        # What an alias stands for is elsewhere.
        is_here = model.span.first <= scalar.start_mark.line + 1 <= model.span.last
        if is_here and scalar.value in renamed:
            number = scalar.start_mark.line - model.span.first + 1
            start, end = scalar.start_mark.column, scalar.end_mark.column
            wanted = name if scalar is service else renamed[scalar.value]
            shown = lines[number][start:end].replace(scalar.value, wanted)
            lines[number] = lines[number][:start] + shown + lines[number][end:]
    return [line for line in lines if not line.lstrip().startswith("#")]


def _value_of(node: Any, key: str) -> Any:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _span(lines: Sequence[str], item: yaml.Node) -> Span:
    # The end, as parsed, is where the next thing begins.
    first, last = item.start_mark.line + 1, max(item.end_mark.line, item.start_mark.line + 1)
    while last > first and (not lines[last - 1].strip() or lines[last - 1].lstrip().startswith("#")):
        last -= 1
    return Span(first, last)


def _scalars(node: yaml.Node) -> Iterable[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
        return
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            yield from _scalars(part)
