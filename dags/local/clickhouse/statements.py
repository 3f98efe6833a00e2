"""What the server must know of a statement's text before the engine runs it.

The engine parses SQL. The protocol needs to know whether data follows, whether there is a FORMAT clause, and whether
the statement reads query ids. Strings, quoted names and comments are never mistaken for SQL.
"""

import re
from dataclasses import dataclass

# Replaced by as many characters, so that positions in the blanked text are positions in the statement.
_OPAQUE = re.compile(
    r"'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|\"(?:[^\"\\]|\\.|\"\")*\"|--[^\n]*|#[ !][^\n]*|/\*.*?\*/"
    r"|\$(\w*)\$.*?\$\1\$",  # a here document
    re.DOTALL,
)
_COMMENT_STARTS = ("--", "/*", "#")
_INSERT = re.compile(r"\s*INSERT\s+INTO\s+(?:TABLE\s+)?(FUNCTION\s+)?", re.IGNORECASE)
_WIRE_DATA = re.compile(r"\b(?:VALUES|FORMAT\s+\w+)\s*;?\s*$", re.IGNORECASE)
_SELECT_KEYWORD = re.compile(r"\b(?:SELECT|WITH|VALUES|FORMAT|FROM)\b", re.IGNORECASE)
_FORMAT_CLAUSE = re.compile(r"\bFORMAT\s+(\w+)(?=\s*(?:;|$|SETTINGS\b))", re.IGNORECASE)
# WITH totals AS (...) names a subquery.
_TOTALS = re.compile(r"\bWITH\s+TOTALS\b(?!\s+AS\b)", re.IGNORECASE)
_INSERT_ANYWHERE = re.compile(r"\bINSERT\s+INTO\b", re.IGNORECASE)
_FIRST_WORD = re.compile(r"[\s(;]*(\w+)")
_QUERY_ID_TABLE = re.compile(r"\bsystem\s*\.\s*(processes|query_log)\b", re.IGNORECASE)
_OUTFILE = re.compile(r"\bINTO\s+OUTFILE\b", re.IGNORECASE)
_KILL_QUERY = re.compile(
    r"(\s*KILL\s+QUERY\b.*?\bWHERE\b)(.*?)(\b(?:SYNC|ASYNC|TEST)\b)?\s*;?\s*$", re.IGNORECASE | re.DOTALL
)
_STREAMED = {"SELECT", "WITH", "FROM"}
# Other statements, such as TRUNCATE or SHOW CREATE, refer to the table itself.
_READS_TABLES = _STREAMED | {"INSERT", "CREATE", "EXPLAIN", "KILL"}


@dataclass(frozen=True)
class InsertStatement:
    """An INSERT whose data follows in blocks: the statement up to its data, its target and its column list."""

    statement: str
    target: str
    columns: str | None


@dataclass(frozen=True)
class Statement:
    """A statement's text for the engine, and what the server needs to know of it."""

    text: str
    keyword: str
    has_totals: bool
    is_multiple: bool
    writes_file: bool

    @property
    def returns_stream(self) -> bool:
        """Whether the engine may return the result block by block."""
        return self.keyword in _STREAMED

    @property
    def only_reads(self) -> bool:
        """Whether the statement may run in read-only mode."""
        return self.keyword in _STREAMED | {"DESC", "DESCRIBE", "EXISTS", "EXPLAIN", "SET", "SHOW", "USE"}


def blank(text: str) -> str:
    """Return `text` with strings, quoted names and comments replaced by as many characters that no rule matches."""
    return _OPAQUE.sub(lambda match: _blank_of(match[0]), text)


def _blank_of(token: str) -> str:
    return " " * len(token) if token.startswith(_COMMENT_STARTS) else "\x00" * len(token)


def analyze(text: str, formats: frozenset[str]) -> Statement:
    """Analyze a statement, and remove a final FORMAT clause with one of `formats` (lower case)."""
    blanked = blank(text)
    for match in reversed(list(_FORMAT_CLAUSE.finditer(blanked))):
        if match[1].lower() in formats and not _INSERT.match(blanked):
            text = text[: match.start()] + text[match.end() :]
            blanked = blanked[: match.start()] + blanked[match.end() :]
            break
    first = _FIRST_WORD.match(blanked)
    keyword = first[1].upper() if first else ""
    if keyword == "WITH" and _INSERT_ANYWHERE.search(blanked):
        keyword = "INSERT"
    separator = blanked.find(";")
    return Statement(
        text=_show_client_query_ids(text, blanked) if keyword in _READS_TABLES else text,
        keyword=keyword,
        has_totals=_TOTALS.search(blanked) is not None,
        is_multiple=separator >= 0 and bool(blanked[separator:].strip("; \t\r\n")),
        writes_file=_OUTFILE.search(blanked) is not None,
    )


def parse_insert(text: str) -> InsertStatement | None:
    """Return the parts of an INSERT whose data follows in blocks, or None for any other statement."""
    blanked = blank(text)
    start = _INSERT.match(blanked)
    end = _WIRE_DATA.search(blanked)
    if not start or not end:
        return None
    target_start = start.end()
    if start[1]:
        opening = blanked.find("(", target_start)
        target_end = _closing(blanked, opening)
        target = text[target_start:target_end]
    else:
        name = re.compile(r"\s*[\w\x00]+(?:\s*\.\s*[\w\x00]+)?").match(blanked, target_start)
        if not name:
            return None
        target_end = name.end()
        target = text[target_start:target_end]
    columns = None
    rest = blanked[target_end:].lstrip()
    column_end = target_end
    if rest.startswith("("):
        opening = blanked.index("(", target_end)
        column_end = _closing(blanked, opening)
        columns = text[opening + 1 : column_end - 1]
    between = blanked[column_end : end.start()]
    # INSERT ... SELECT has its own data, even if it ends in a FORMAT clause.
    if _SELECT_KEYWORD.search(between) or _SELECT_KEYWORD.match((columns or "").lstrip()):
        return None
    return InsertStatement(text[: end.start()], target.strip(), columns)


def _closing(blanked: str, opening: int) -> int:
    """Return the position after the bracket that closes the one at `opening`, or the end of the text."""
    depth = 0
    for index in range(max(opening, 0), len(blanked)):
        if blanked[index] == "(":
            depth += 1
        elif blanked[index] == ")":
            depth -= 1
            if depth == 0:
                return index + 1
    return len(blanked)


def _show_client_query_ids(text: str, blanked: str) -> str:
    """Make a statement read and kill queries by the ids that clients chose (see `engine.QUERY_ID_VIEW`)."""
    for match in reversed(list(_QUERY_ID_TABLE.finditer(blanked))):
        text = f"{text[: match.start()]}system.client_{match[1].lower()}{text[match.end() :]}"
    kill = _KILL_QUERY.match(blank(text))
    if kill:
        # The line break ends a comment in the condition.
        condition = (
            f"(SELECT engine_query_id FROM system.client_processes WHERE {text[slice(*kill.span(2))].strip()}\n)"
        )
        text = f"{text[: kill.end(1)]} query_id IN {condition} {kill[3] or ''}".rstrip()
    return text
