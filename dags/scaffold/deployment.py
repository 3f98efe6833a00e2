"""One entry put into the values of Dagster's Helm chart: a location's own process in the cluster.

Text in, text out, so that comments and quotes stay as they are.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dags.scaffold.edits import EditError, Span, place, with_line

WHERE = "dagster-user-deployments.deployments"
ANCHOR = re.compile(r"(?:^|\s)&\w")


@dataclass(frozen=True)
class _Entry:
    name: str
    node: yaml.Node
    span: Span
    lines: Sequence[str]


def add_deployment(text: str, location: str) -> str:
    """Add a location to `dagster-user-deployments.deployments`, in its place by name and behind anchors.

    The entry is a copy of a neighbour's, without comments, in which whatever is just that location's name, module or
    team becomes the new one's. The name of an entry has dashes, as a Kubernetes service must.
    Raises EditError.
    """
    name = location.replace("_", "-")
    entries = _entries(text)
    if name in [entry.name for entry in entries]:
        return text
    lines_before = place([(entry.span, entry.name) for entry in entries], name, f"list {WHERE}")
    # An anchor that is defined twice would change what refers to it.
    models = [entry for entry in entries if not any(ANCHOR.search(line) for line in entry.lines)]
    if not models:
        raise EditError(f"every entry of {WHERE} defines an anchor: copy one by hand, without it")
    model = next((entry for entry in reversed(models) if entry.name < name), models[0])
    # Nor may what refers to an anchor come before it.
    defined_until = max((entry.span.last for entry in entries if entry not in models), default=0)
    return with_line(text, max(lines_before, defined_until), "\n".join(_copy(model, name)))


def _entries(text: str) -> list[_Entry]:
    node: Any = yaml.compose(text)
    for key in WHERE.split("."):
        node = _value_of(node, key)
    if not isinstance(node, yaml.SequenceNode) or node.flow_style:
        return []
    lines = text.splitlines()
    entries = []
    for item in node.value:
        span = _span(lines, item)
        own_lines = lines[span.first - 1 : span.last]
        entries.append(_Entry(str(getattr(_value_of(item, "name"), "value", "")), item, span, own_lines))
    return entries


def _copy(model: _Entry, name: str) -> list[str]:
    """The lines of the entry with the names of another location."""
    old, new = model.name.replace("-", "_"), name.replace("-", "_")
    renamed = {
        model.name: name,
        old: new,
        f"dags.locations.{old}": f"dags.locations.{new}",
        f"team-{model.name}": f"team-{name}",
    }
    lines = list(model.lines)
    # From the end, so that what comes before stays where it was parsed.
    for scalar in sorted(_scalars(model.node), key=lambda one: one.start_mark.index, reverse=True):
        if scalar.value in renamed:
            number = scalar.start_mark.line - model.span.first + 1
            start, end = scalar.start_mark.column, scalar.end_mark.column
            shown = lines[number][start:end].replace(scalar.value, renamed[scalar.value])
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
