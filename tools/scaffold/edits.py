"""One entry added to the text of a file, in its sorted place."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from tools.scaffold.names import RefusedError


class Entries(NamedTuple):
    """The entries of one kind in a file: `pattern` matches one after `heading`, as whole lines; group 1 is its name."""

    path: str
    heading: str
    pattern: str


# Of a location that the formatter has split into lines. `owner` stays first.
ARGUMENTS = Entries(
    "dags/locations", "build_definitions(\n", r"^    (?!owner=)(\w+)=.*\n(?:(?:     .*|    [])}].*|)\n)*"
)


def find_entries(text: str, entries: Entries) -> list[re.Match[str]]:
    """Return every entry. Raises RefusedError when there is none to put another one beside."""
    _, heading, rest = text.partition(entries.heading)
    start = len(text) - len(rest)
    found = list(re.compile(entries.pattern, re.MULTILINE).finditer(text, start)) if heading else []
    if not found:
        raise RefusedError(f"{entries.path} has no '{entries.heading.strip()}' with entries in the usual form.")
    return found


def add_entry(text: str, entries: Entries, name: str, entry: str) -> str:
    """Return the text with an entry behind the one before it, so that a comment stays with what it precedes.

    A text that has an entry of that name comes back as it is.
    """
    found = find_entries(text, entries)
    if name in [match[1] for match in found]:
        return text
    position = max((match.end() for match in found if match[1] < name), default=found[0].start())
    return text[:position] + entry + text[position:]


def remove_entry(text: str, entries: Entries, name: str) -> str:
    """Return the text without an entry. A comment before it stays."""
    for match in find_entries(text, entries):
        if match[1] == name:
            return text[: match.start()] + text[match.end() :]
    return text


def add_to_location(text: str, path: str, module: str, definitions: Mapping[str, str]) -> str:
    """Import names from a module, and list each under its argument, as in `{"jobs": "a_job"}`.

    Raises RefusedError when an argument is not a list.
    """
    imported = f"from {module} import {', '.join(definitions.values())}\nfrom dags."
    text = re.sub(r"^from dags\.", imported, text, count=1, flags=re.MULTILINE)
    for argument, name in definitions.items():
        found = {match[1]: match for match in find_entries(text, ARGUMENTS._replace(path=path))}
        if argument not in found:
            text = add_entry(text, ARGUMENTS, argument, f"    {argument}=[{name}],\n")
            continue
        given = found[argument]
        listed = re.fullmatch(r"( +\w+=\[)(.*?)(\n    )?\],\n", given[0], re.DOTALL)
        if listed is None:
            raise RefusedError(f"{path}: the argument {argument} of build_definitions is not a list.")
        start, names, is_split = listed.groups()
        added = f"\n        {name},\n    ],\n" if is_split else f"{', ' if names else ''}{name}],\n"
        text = text[: given.start()] + start + names + added + text[given.end() :]
    return text
