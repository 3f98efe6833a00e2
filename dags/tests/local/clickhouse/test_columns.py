"""The end of a block is found for every type; malformed data is a ProtocolError, never a hang."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dags.local.clickhouse.columns import (
    MAX_COLUMNS,
    UnsupportedTypeError,
    header_of,
    layout_of,
    skip_columns,
    split_blocks,
)
from dags.local.clickhouse.configuration import write_configuration
from dags.local.clickhouse.engine import EmbeddedEngine, EngineSession
from dags.local.clickhouse.wire import ProtocolError, WireReader
from dags.tests.local.clickhouse.test_wire import chunks

EXPRESSIONS = [
    *(f"CAST(number AS {kind}{bits})" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64, 128, 256)),
    *(f"CAST(number AS {kind})" for kind in ("Float32", "Float64", "BFloat16", "Bool", "Date", "Date32", "DateTime")),
    "toDateTime64(number, 9, 'UTC')",
    "toString(number)",
    "repeat('x', number * 40)",
    "CAST(toString(number) AS FixedString(7))",
    "CAST(number % 2 AS Enum8('a)' = 0, 'b, ''c' = 1))",
    "CAST(number % 2 AS Enum16('a' = 0, 'b' = 1))",
    "generateUUIDv4()",
    "CAST(number AS IPv4)",
    "CAST('::1' AS IPv6)",
    *(f"CAST(number AS Decimal{bits}(1))" for bits in (32, 64, 128, 256)),
    "if(number % 2, NULL, number)",
    "if(number % 2, NULL, toString(number))",
    "NULL",
    "toLowCardinality(toString(number))",
    "CAST(if(number % 2, NULL, toString(number)) AS LowCardinality(Nullable(String)))",
    "range(number)",
    "arrayMap(x -> arrayMap(y -> toLowCardinality(toString(y)), range(x)), range(number % 5))",
    "[]",
    "map(toString(number), [number])",
    "CAST((number, 'x') AS Tuple(`a b` UInt8, `c)` LowCardinality(String)))",
    "CAST([(1, 'x')] AS Nested(a UInt8, b String))",
    "tuple()",
    "CAST((1., 2.) AS Point)",
    "CAST([[(1., 2.)]] AS Polygon)",
    "CAST([[[(1., 2.)]]] AS MultiPolygon)",
    "CAST([(1., 2.)] AS LineString)",
    "CAST([[(1., 2.)]] AS MultiLineString)",
    "toIntervalDay(number)",
    "CAST(number AS SimpleAggregateFunction(sum, UInt64))",
    'CAST(format(\'{{"a": {}, "b": "x"}}\', number) AS JSON)',
]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineSession]:
    path: Path = tmp_path_factory.mktemp("engine")
    engine = EmbeddedEngine(path / "data", write_configuration(path, [], 1))
    session = engine.session()
    yield session
    session.close()
    engine.close()


def native(session: EngineSession, sql: str) -> bytes:
    return session.execute(sql)[0]


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_the_end_of_a_column_is_found(session: EngineSession, expression: str, rows: int) -> None:
    body = native(session, f"SELECT {expression} AS value, 'after' AS last FROM numbers({rows})")  # noqa: S608 - names of the test
    for size in (7, 1 << 16):
        reader = WireReader(chunks(body + b"rest", size))
        columns, count = (reader.varint(), reader.varint()) if rows else (0, 0)
        header = skip_columns(reader, columns, count)
        assert [name for name, _ in header] == (["value", "last"] if rows else [])
        if rows:
            assert reader.read(4) == b"rest"


def test_blocks_are_split_and_headers_read(session: EngineSession) -> None:
    body = native(session, "SELECT number, toString(number) AS text FROM numbers(100) SETTINGS max_block_size = 30")
    blocks = split_blocks(body)
    assert b"".join(blocks) == body
    assert len(blocks) == 4
    assert header_of(blocks[0]) == [("number", "UInt64"), ("text", "String")]


def test_the_header_is_known_when_only_the_end_of_the_last_column_is_unknown(session: EngineSession) -> None:
    body = native(session, "SELECT 1 AS one, sumState(number) AS state FROM numbers(3)")
    assert header_of(body) == [("one", "UInt8"), ("state", "AggregateFunction(sum, UInt64)")]


@pytest.mark.parametrize(
    "column_type",
    [
        "AggregateFunction(sum, UInt64)",
        "Variant(String, UInt8)",
        "Dynamic",
        "Unheard",
        "Array(Unheard)",
        "Array(Int8, Int8)",
    ],
)
def test_a_type_without_known_layout_is_named_with_the_remedy(column_type: str) -> None:
    with pytest.raises(UnsupportedTypeError, match=r"INSERT \.\.\. SELECT") as caught:
        layout_of(column_type)
    assert caught.value.code == 48


@pytest.mark.parametrize("column_type", ["Array(", "Tuple(a Int8", "Enum8('a", "Array(" * 5000 + "Int8" + ")" * 5000])
def test_a_malformed_type_is_an_error(column_type: str) -> None:
    with pytest.raises(ProtocolError):
        layout_of(column_type)


@pytest.mark.parametrize("columns", [MAX_COLUMNS + 1, 2**63])
def test_a_block_with_too_many_columns_is_rejected(columns: int) -> None:
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        skip_columns(WireReader(chunks(b"", 1)), columns, 1)


TYPES = st.recursive(
    st.sampled_from(
        ["Int8", "String", "Float64", "Date", "FixedString(3)", "UUID", "Decimal(9, 2)", "Nothing", "JSON", "Point"]
    ),
    lambda inner: st.one_of(
        inner.map(lambda kind: f"Array({kind})"),
        inner.map(lambda kind: f"Nullable({kind})"),
        inner.map(lambda kind: f"LowCardinality({kind})"),
        st.tuples(inner, inner).map(lambda kinds: f"Map({kinds[0]}, {kinds[1]})"),
        st.lists(inner, max_size=3).map(lambda kinds: f"Tuple({', '.join(kinds)})"),
    ),
    max_leaves=5,
)


@settings(max_examples=500, deadline=None)
@given(TYPES, st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), st.binary(max_size=200))
def test_arbitrary_data_of_any_type_ends_in_a_protocol_error_or_the_end_of_the_stream(
    kind: str, rows: int, data: bytes
) -> None:
    encoded = kind.encode()
    reader = WireReader(chunks(b"\x01a" + bytes([len(encoded) & 0x7F]) + encoded[:127] + data, 64))
    try:
        header = skip_columns(reader, 1, rows)
    except (ProtocolError, EOFError):
        return
    assert header == [("a", kind[:127])]


@given(st.text(alphabet="ArayTuple(),'`\"\\ Nested Map1a", max_size=60))
def test_arbitrary_type_names_are_parsed_or_rejected(column_type: str) -> None:
    try:
        layout: Any = layout_of(column_type)
    except ProtocolError:
        return
    assert layout is not None
