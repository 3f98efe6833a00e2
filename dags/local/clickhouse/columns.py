"""The size of column data in the native format, found by type and without reading the values.

The protocol sends a block without its length, and the engine needs it without the packets around it, so the server must
find the end of each column. JSON columns are read by the column readers of clickhouse-driver.
Layout: https://clickhouse.com/docs/resources/develop-contribute/native-protocol/format
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from clickhouse_driver.columns.service import get_column_by_spec
from clickhouse_driver.context import Context

from dags.local.clickhouse.wire import ProtocolError, WireReader, encode_string

MAX_COLUMNS = 100_000

_WIDTHS = {
    f"{kind}{bits}": bits // 8 for kind in ("Int", "UInt") for bits in (8, 16, 32, 64, 128, 256)
} | {
    "Float32": 4, "Float64": 8, "BFloat16": 2, "Bool": 1, "Nothing": 1, "UUID": 16, "IPv4": 4, "IPv6": 16,
    "Date": 2, "Date32": 4, "DateTime": 4, "DateTime32": 4, "DateTime64": 8, "Time": 4, "Time64": 8,
    "Enum8": 1, "Enum16": 2, "Decimal32": 4, "Decimal64": 8, "Decimal128": 16, "Decimal256": 32,
}  # fmt: skip
# Decimal(P, S) takes the narrowest integer that holds P digits.
_DECIMAL_WIDTHS = ((9, 4), (18, 8), (38, 16), (76, 32))
_GEOMETRIES = {
    "Point": "Tuple(Float64, Float64)",
    "Ring": "Array(Point)",
    "LineString": "Array(Point)",
    "Polygon": "Array(Ring)",
    "MultiLineString": "Array(LineString)",
    "MultiPolygon": "Array(Polygon)",
}
_NEEDS_ADDITIONAL_KEYS = 1 << 9
_NEEDS_GLOBAL_DICTIONARY = 1 << 8
_MAX_INDEX_WIDTH = 3  # as the power of two of its bytes
_QUOTED = re.compile(r"'(?:\\.|[^'\\])*'|`(?:\\.|[^`\\])*`|\"(?:\\.|[^\"\\])*\"")
_QUOTED_OR_NAME = re.compile(r"\s*(?:`(?:\\.|[^`\\])*`|\"(?:\\.|[^\"\\])*\"|[A-Za-z_]\w*)\s+(?=[A-Za-z])")


class UnsupportedTypeError(ProtocolError):
    """The length of data of this type cannot be found outside the engine."""

    def __init__(self, column_type: str) -> None:
        super().__init__(
            f"inserting values of type {column_type} over the native protocol is not supported by the embedded server; "
            "write them with INSERT ... SELECT",
            code=48,
        )


class Layout:
    """How to consume the data of a column type: first a prefix for the whole block, then the rows."""

    def prefix(self, reader: WireReader) -> None:
        """Consume what precedes the data of a block that has rows."""

    def rows(self, reader: WireReader, count: int) -> None:
        """Consume the data of `count` rows."""
        raise NotImplementedError


class _Fixed(Layout):
    def __init__(self, width: int) -> None:
        self.width = width

    def rows(self, reader: WireReader, count: int) -> None:
        reader.skip(self.width * count)


class _String(Layout):
    def rows(self, reader: WireReader, count: int) -> None:
        reader.skip_strings(count)


class _Sequence(Layout):
    """Consecutive columns, all prefixes first: Tuple, and Nullable as (flags, values)."""

    def __init__(self, parts: Sequence[Layout]) -> None:
        self.parts = parts

    def prefix(self, reader: WireReader) -> None:
        for part in self.parts:
            part.prefix(reader)

    def rows(self, reader: WireReader, count: int) -> None:
        for part in self.parts:
            part.rows(reader, count)


class _Array(Layout):
    """The end of each row as UInt64, then the elements of all rows."""

    def __init__(self, element: Layout) -> None:
        self.element = element

    def prefix(self, reader: WireReader) -> None:
        self.element.prefix(reader)

    def rows(self, reader: WireReader, count: int) -> None:
        if count:
            reader.skip(8 * (count - 1))
            self.element.rows(reader, reader.uint64())


class _LowCardinality(Layout):
    """A version; then flags with the width of the indexes, the keys, and an index for each row."""

    def __init__(self, key: Layout) -> None:
        self.key = key

    def prefix(self, reader: WireReader) -> None:
        reader.skip(8)

    def rows(self, reader: WireReader, count: int) -> None:
        if not count:
            return
        flags = reader.uint64()
        if flags & _NEEDS_GLOBAL_DICTIONARY or not flags & _NEEDS_ADDITIONAL_KEYS or flags & 0xFF > _MAX_INDEX_WIDTH:
            raise ProtocolError(f"unexpected LowCardinality flags {flags:#x}", code=117)
        self.key.rows(reader, reader.uint64())
        reader.skip((1 << (flags & 0xFF)) * reader.uint64())


class _ReadByDriver(Layout):
    def __init__(self, column_type: str) -> None:
        context = Context()
        context.settings = {}
        context.client_settings = {"use_numpy": False, "strings_as_bytes": True, "strings_encoding": "utf-8"}
        self.column = get_column_by_spec(column_type, {"context": context})

    def prefix(self, reader: WireReader) -> None:
        self.column.read_state_prefix(reader)

    def rows(self, reader: WireReader, count: int) -> None:
        self.column.read_data(count, reader)


def skip_columns(reader: WireReader, columns: int, rows: int) -> list[tuple[str, str]]:
    """Consume the `columns` of a block with `rows` rows, each its name, type and data; return the names and types.

    Raises ProtocolError for malformed data, UnsupportedTypeError for a type whose length cannot be found.
    """
    if columns > MAX_COLUMNS:
        raise ProtocolError(f"a block of {columns} columns exceeds the limit of {MAX_COLUMNS}")
    header = []
    for _ in range(columns):
        name, column_type = reader.string(), reader.string()
        header.append((name, column_type))
        if rows:
            layout = layout_of(column_type)
            try:
                layout.prefix(reader)
                layout.rows(reader, rows)
            except (EOFError, OSError, ProtocolError):
                raise
            # The driver's readers trust their input, so malformed data can raise anything.
            except Exception as error:
                raise ProtocolError(f"malformed data of type {column_type}: {error}", code=117) from error
    return header


def header_of(body: bytes) -> list[tuple[str, str]]:
    """Return the names and types of a block in Native format. Raises UnsupportedTypeError for other types."""
    reader = _memory_reader(body)
    columns, rows = reader.varint(), reader.varint()
    header = skip_columns(reader, columns - 1, rows) if columns > 1 else []
    return [*header, (reader.string(), reader.string())] if columns else header


def with_types(body: bytes, types: Sequence[str]) -> bytes:
    """Return the block with `types` as its column types; the data must have their layout."""
    reader = _memory_reader(body)
    columns, rows = reader.varint(), reader.varint()
    parts, copied = [], 0
    for column_type in types[:columns]:
        reader.binary_string()
        before_type = reader.position
        if reader.string() != column_type:
            parts += [body[copied:before_type], encode_string(column_type)]
            copied = reader.position
        if rows:
            layout = layout_of(column_type)
            layout.prefix(reader)
            layout.rows(reader, rows)
    return b"".join([*parts, body[copied:]])


def _memory_reader(body: bytes) -> WireReader:
    chunks = iter((body, b""))
    return WireReader(lambda: next(chunks))


def split_blocks(body: bytes) -> list[bytes]:
    """Split Native format, which is a sequence of block bodies, into its blocks."""
    reader = _memory_reader(body)
    blocks, start = [], 0
    while start < len(body):
        columns, rows = reader.varint(), reader.varint()
        skip_columns(reader, columns, rows)
        blocks.append(body[start : reader.position])
        start = reader.position
    return blocks


def layout_of(column_type: str) -> Layout:
    """Return the layout of a type: a new one for a type with JSON, because the driver's readers keep state."""
    return _parse(column_type) if "JSON" in column_type else _parse_once(column_type)


def _parse(column_type: str) -> Layout:
    name, arguments = _split_type(column_type)
    if name == "JSON":
        return _ReadByDriver(column_type)
    try:
        return _layout(name, arguments, column_type)
    except RecursionError:
        raise ProtocolError(f"type {column_type[:80]}... is nested too deeply", code=117) from None


_parse_once = lru_cache(maxsize=1024)(_parse)


def _layout(name: str, arguments: list[str], column_type: str) -> Layout:  # noqa: C901, PLR0911, PLR0912 - a table
    if name in _WIDTHS:
        return _Fixed(_WIDTHS[name])
    if name in _GEOMETRIES:
        return _nested(_GEOMETRIES[name])
    match name, arguments:
        case "String", []:
            return _String()
        case "FixedString", [width] if width.isdigit():
            return _Fixed(int(width))
        case "Decimal", [precision, _] if precision.isdigit():
            for digits, width_bytes in _DECIMAL_WIDTHS:
                if int(precision) <= digits:
                    return _Fixed(width_bytes)
        case "Nullable", [inner]:
            return _Sequence((_Fixed(1), _nested(inner)))
        case "Array", [inner]:
            return _Array(_nested(inner))
        case "Map", [key, value]:
            return _Array(_Sequence((_nested(key), _nested(value))))
        case "Tuple", elements:
            # A tuple without elements still writes one byte per row.
            return _Sequence([_nested(_without_name(element)) for element in elements]) if elements else _Fixed(1)
        case "Nested", elements:
            return _Array(_Sequence([_nested(_without_name(element)) for element in elements]))
        case "LowCardinality", [inner]:
            inner_name, inner_arguments = _split_type(inner)
            # The null of LowCardinality(Nullable(T)) is a key of its own, not a flag.
            return _LowCardinality(_nested(inner_arguments[0] if inner_name == "Nullable" else inner))
        case "SimpleAggregateFunction", [_, inner]:
            return _nested(inner)
        case interval, [] if interval.startswith("Interval"):
            return _Fixed(8)
    raise UnsupportedTypeError(column_type)


def _nested(column_type: str) -> Layout:
    return _parse(column_type)


def _split_type(column_type: str) -> tuple[str, list[str]]:
    """Split `Map(String, UInt8)` into ("Map", ["String", "UInt8"])."""
    name, bracket, rest = column_type.strip().partition("(")
    if not bracket:
        return name, []
    inner = rest.removesuffix(")")
    depth, commas = 0, []
    for index, character in enumerate(_QUOTED.sub(lambda match: " " * len(match[0]), inner)):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            commas.append(index)
        if depth < 0:
            break
    if depth or inner == rest:
        raise ProtocolError(f"malformed type {column_type[:80]!r}", code=50)
    arguments = [inner[start + 1 : end].strip() for start, end in pairwise([-1, *commas, len(inner)])]
    return name, [argument for argument in arguments if argument]


def _without_name(element: str) -> str:
    """Return `UInt8` for `a UInt8`; an element of an unnamed tuple stays unchanged."""
    return _QUOTED_OR_NAME.sub("", element, count=1) if _QUOTED_OR_NAME.match(element) else element
