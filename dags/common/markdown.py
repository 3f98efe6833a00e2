"""Markdown for metadata: tables, and escaped text from outside."""

from collections.abc import Iterable, Sequence

_RULES = {"l": "---", "r": "---:"}


def markdown_table(head: Sequence[str], alignment: str, rows: Iterable[Sequence[object]]) -> str:
    """Return a table, or an empty text if there are no rows. `alignment` is "l" or "r" for each column.

    Cells are not escaped: pass text from outside through `code`.
    """
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    rules = "|".join(_RULES[one] for one in alignment)
    return "\n".join([f"| {' | '.join(head)} |", f"|{rules}|", *lines]) if lines else ""


def code(text: str) -> str:
    """Return the text as code, escaped so that it cannot end the cell or the line; an empty text stays empty."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    shown = printable.replace("|", "\\|").replace("`", "'")
    return f"`{shown}`" if shown else ""
