"""Markdown for the metadata of assets: tables, and texts that strangers wrote."""

from collections.abc import Iterable, Sequence

_RULES = {"l": "---", "r": "---:"}


def markdown_table(head: Sequence[str], alignment: str, rows: Iterable[Sequence[object]]) -> str:
    """The rows below their head, `alignment` being "l" or "r" for each column; an empty text without rows.

    Cells go in as they are: give what somebody else wrote as `code`.
    """
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    rules = "|".join(_RULES[one] for one in alignment)
    return "\n".join([f"| {' | '.join(head)} |", f"|{rules}|", *lines]) if lines else ""


def code(text: str) -> str:
    """The text as code, without what would end the cell or the line; nothing for an empty one."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    shown = printable.replace("|", "\\|").replace("`", "'")
    return f"`{shown}`" if shown else ""
