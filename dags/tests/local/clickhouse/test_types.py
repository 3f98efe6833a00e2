"""Values of every type that clickhouse-driver supports are the same after writing and reading."""

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException

from dags.tests.local.clickhouse.nodes import RunningNode
from dags.tests.local.clickhouse.raw import RawClient, block, string_column

TOKYO = ZoneInfo("Asia/Tokyo")
BERLIN = ZoneInfo("Europe/Berlin")
IDENTIFIER = UUID("01234567-89ab-cdef-0123-456789abcdef")
INTEGER_BITS = (8, 16, 32, 64, 128, 256)
WEIRD_ENUM = r"Enum8('a, b' = -128, 'it\'s' = 0, '(x)' = 1, '[y] = 2' = 127)"

# (type, SQL expression, the value in Python)
SCALARS: list[tuple[str, str, Any]] = [
    *((f"UInt{bits}", f"'{2**bits - 1}'", 2**bits - 1) for bits in INTEGER_BITS),
    *((f"Int{bits}", f"'{-(2 ** (bits - 1))}'", -(2 ** (bits - 1))) for bits in INTEGER_BITS),
    ("Float32", "-1.5", -1.5),
    ("Float64", "1e308", 1e308),
    ("Float64", "'-inf'", -math.inf),
    ("Bool", "true", True),
    ("Bool", "false", False),
    ("Date", "'1970-01-01'", date(1970, 1, 1)),
    ("Date", "'2149-06-06'", date(2149, 6, 6)),
    ("Date32", "'1900-01-01'", date(1900, 1, 1)),
    ("Date32", "'2299-12-31'", date(2299, 12, 31)),
    ("DateTime", "'2026-03-29 02:30:00'", datetime(2026, 3, 29, 2, 30)),  # noqa: DTZ001 - the type has no zone
    ("DateTime('UTC')", "'2106-02-07 06:28:15'", datetime(2106, 2, 7, 6, 28, 15, tzinfo=UTC)),
    ("DateTime('Asia/Tokyo')", "'2026-01-31 23:59:59'", datetime(2026, 1, 31, 23, 59, 59, tzinfo=TOKYO)),
    ("DateTime64(0, 'UTC')", "'2026-01-31 01:02:03'", datetime(2026, 1, 31, 1, 2, 3, tzinfo=UTC)),
    ("DateTime64(3, 'Europe/Berlin')", "'2026-07-01 01:02:03.456'", datetime(2026, 7, 1, 1, 2, 3, 456000, BERLIN)),
    ("DateTime64(6)", "'2026-01-31 01:02:03.456789'", datetime(2026, 1, 31, 1, 2, 3, 456789)),  # noqa: DTZ001
    ("DateTime64(6, 'UTC')", "'1900-01-01 00:00:00'", datetime(1900, 1, 1, tzinfo=UTC)),
    ("DateTime64(9, 'Asia/Tokyo')", "'2026-01-31 01:02:03.456789'", datetime(2026, 1, 31, 1, 2, 3, 456789, TOKYO)),
    ("String", "''", ""),
    ("String", "'Grüße, 世界 🙂'", "Grüße, 世界 🙂"),
    ("String", r"'a\0b\'c\\d\ne\tf'", "a\0b'c\\d\ne\tf"),
    ("String", "repeat('ab', 50000)", "ab" * 50_000),
    ("FixedString(4)", "'ab\\0d'", "ab\0d"),
    ("Enum8('a' = -1, 'b' = 2)", "'b'", "b"),
    ("Enum16('low' = -32768, 'high' = 32767)", "'low'", "low"),
    *(
        (WEIRD_ENUM, f"{number}::Int8", name)
        for number, name in ((-128, "a, b"), (0, "it's"), (1, "(x)"), (127, "[y] = 2"))
    ),
    ("UUID", f"'{IDENTIFIER}'", IDENTIFIER),
    ("IPv4", "'192.0.2.1'", IPv4Address("192.0.2.1")),
    ("IPv6", "'2001:db8::1'", IPv6Address("2001:db8::1")),
    ("Decimal32(2)", "'-9999999.99'", Decimal("-9999999.99")),
    ("Decimal64(10)", "'1.0842000001'", Decimal("1.0842000001")),
    ("Decimal(38, 20)", "'-1.00000000000000000001'", Decimal("-1.00000000000000000001")),
    ("Decimal256(0)", "'" + "9" * 70 + "'", Decimal("9" * 70)),
]
COMPOUND: list[tuple[str, str, Any]] = [
    *((f"Nullable({kind})", expression, value) for kind, expression, value in SCALARS),
    *((f"Nullable({kind})", "NULL", None) for kind in dict.fromkeys(kind for kind, _, _ in SCALARS)),
    *((f"Array({kind})", f"[{expression}]", [value]) for kind, expression, value in SCALARS if kind != WEIRD_ENUM),
    ("LowCardinality(String)", "'a'", "a"),
    ("LowCardinality(FixedString(2))", "'ab'", "ab"),
    ("LowCardinality(Nullable(String))", "NULL", None),
    ("LowCardinality(Nullable(String))", "''", ""),
    ("LowCardinality(UInt64)", "18446744073709551615", 2**64 - 1),
    ("LowCardinality(Date)", "'2026-01-31'", date(2026, 1, 31)),
    ("LowCardinality(Nullable(Date))", "NULL", None),
    ("Array(String)", "[]", []),
    ("Array(Nullable(String))", "['a', NULL, '']", ["a", None, ""]),
    ("Array(Array(Array(Int16)))", "[[[1, 2], []], [], [[3]]]", [[[1, 2], []], [], [[3]]]),
    ("Array(LowCardinality(String))", "['a', 'b', 'a']", ["a", "b", "a"]),
    ("Array(LowCardinality(String))", "[]", []),
    ("Array(LowCardinality(Nullable(String)))", "['a', NULL]", ["a", None]),
    ("Tuple(Int8, String)", "(1, 'a')", (1, "a")),
    ("Tuple(a Int8, b Nullable(String))", "(1, NULL)", (1, None)),
    ("Tuple(a LowCardinality(String), b Tuple(c Array(Int8), d Date))", "('x', ([1], '2026-01-31'))", None),
    ("Array(Tuple(a Int8, b LowCardinality(String)))", "[(1, 'a'), (2, 'b')]", [(1, "a"), (2, "b")]),
    ("Map(String, UInt64)", "map('a', 1, 'b', 2)", {"a": 1, "b": 2}),
    ("Map(String, String)", "map()", {}),
    ("Map(LowCardinality(String), Array(Nullable(Int8)))", "map('a', [1, NULL])", {"a": [1, None]}),
    ("Nested(a Int8, b String)", "[(1, 'x'), (2, 'y')]", [(1, "x"), (2, "y")]),
    ("SimpleAggregateFunction(sum, UInt64)", "5", 5),
    ("SimpleAggregateFunction(groupArrayArray, Array(String))", "['a']", ["a"]),
    ("Point", "(1.5, -2.5)", (1.5, -2.5)),
    ("Ring", "[(0, 0), (1, 1)]", [(0.0, 0.0), (1.0, 1.0)]),
    ("Polygon", "[[(0, 0), (1, 1)], []]", [[(0.0, 0.0), (1.0, 1.0)], []]),
    ("MultiPolygon", "[[[(0, 0)]]]", [[[(0.0, 0.0)]]]),
]
COMPOUND = [
    (kind, expression, ("x", ([1], date(2026, 1, 31))) if kind.startswith("Tuple(a Low") else value)
    for kind, expression, value in COMPOUND
]


def name_of(value: object) -> str:
    return str(value)[:40] if isinstance(value, str) else ""


@pytest.mark.parametrize(("column_type", "expression", "value"), SCALARS + COMPOUND, ids=name_of)
def test_a_value_is_the_same_after_writing_and_reading(
    client: Client, column_type: str, expression: str, value: Any
) -> None:
    client.execute("SET flatten_nested = 0, allow_suspicious_low_cardinality_types = 1")
    client.execute(f"CREATE TABLE typed (value {column_type}) ENGINE = Memory")
    client.execute(f"INSERT INTO typed SELECT CAST({expression} AS {column_type})")
    [(declared,)] = client.execute(
        "SELECT type FROM system.columns WHERE database = currentDatabase() AND table = 'typed'"
    )

    rows, [(_, read_type)] = client.execute("SELECT value FROM typed", with_column_types=True)
    assert rows == [(value,)]
    assert read_type == declared
    if isinstance(value, datetime) and value.tzinfo:
        assert rows[0][0].utcoffset() == value.utcoffset()

    assert client.execute("INSERT INTO typed VALUES", rows * 3) == 3
    assert client.execute("SELECT count(), uniqExact(toString(value)) FROM typed") == [(4, 0 if value is None else 1)]
    assert client.execute("SELECT value FROM typed") == rows * 4


def test_not_a_number_arrives_as_not_a_number(client: Client) -> None:
    client.execute("CREATE TABLE floats (single Float32, double Nullable(Float64)) ENGINE = Memory")
    client.execute("INSERT INTO floats VALUES", [(math.nan, math.nan)])
    [(single, double)] = client.execute("SELECT * FROM floats")
    assert math.isnan(single)
    assert math.isnan(double)


def test_strings_keep_every_byte(client: Client) -> None:
    data = [bytes(range(256)), b"", b"\xff\xfe", bytes(100_000)]
    client.execute("CREATE TABLE strings (value String, fixed FixedString(3)) ENGINE = Memory")
    settings = {"strings_as_bytes": True}
    client.execute("INSERT INTO strings VALUES", [(value, b"\xff\x00a") for value in data], settings=settings)
    assert client.execute("SELECT * FROM strings", settings=settings) == [(value, b"\xff\x00a") for value in data]
    assert client.execute("SELECT sum(length(value)) FROM strings") == [(100_258,)]


@pytest.mark.parametrize("distinct", [1, 255, 256, 257, 65_535, 65_537])
@pytest.mark.parametrize("column_type", ["LowCardinality(String)", "LowCardinality(Nullable(String))"])
def test_low_cardinality_works_with_indexes_of_every_width(client: Client, column_type: str, distinct: int) -> None:
    client.execute(f"CREATE TABLE dictionary (id UInt32, value {column_type}, last Int8) ENGINE = Memory")
    rows = [(number, f"value {number % distinct}", 7) for number in range(distinct + 10)]
    client.execute("INSERT INTO dictionary VALUES", rows)
    assert client.execute("SELECT * FROM dictionary ORDER BY id") == rows
    assert client.execute("SELECT uniqExact(value), sum(last) FROM dictionary") == [(distinct, 7 * len(rows))]


@pytest.mark.parametrize("column_type", ["UInt64", "Date", "Int8"])
def test_low_cardinality_numbers_and_dates_keep_their_values(client: Client, column_type: str) -> None:
    client.execute("SET allow_suspicious_low_cardinality_types = 1")
    client.execute(f"CREATE TABLE dictionary (id UInt32, value LowCardinality({column_type})) ENGINE = Memory")
    values: Sequence[Any] = [date(1970, 1, 1) + timedelta(days=day) for day in range(100)]
    rows = [(number, values[number % 100] if column_type == "Date" else number % 100) for number in range(1000)]
    client.execute("INSERT INTO dictionary VALUES", rows)
    assert client.execute("SELECT * FROM dictionary ORDER BY id") == rows


REPRESENTATIVE = (
    "id UInt32, word LowCardinality(Nullable(String)), text String, day Nullable(Date), moment DateTime64(6, 'UTC'), "
    "list Array(Tuple(a Int8, b LowCardinality(String))), pairs Map(String, Decimal(18, 4)), flag Bool"
)


def representative_rows(count: int, start: int = 0) -> list[tuple[Any, ...]]:
    return [
        (
            number,
            None if number % 7 == 0 else f"word {number % 300}",
            f"text {number} " * (number % 5),
            None if number % 3 == 0 else date(2026, 1, 1) + timedelta(days=number % 365),
            datetime(2026, 1, 1, tzinfo=UTC) + timedelta(microseconds=number),
            [(index, f"b{index}") for index in range(number % 4)],
            {f"k{index}": Decimal(index) / 4 for index in range(number % 3)},
            number % 2 == 0,
        )
        for number in range(start, start + count)
    ]


@pytest.mark.parametrize("compression", [None, "lz4", "lz4hc", "zstd"])
@pytest.mark.parametrize("count", [0, 1, 3000])
def test_blocks_of_any_size_and_compression_arrive_complete(
    node: RunningNode, database: str, compression: str | None, count: int
) -> None:
    rows = representative_rows(count)
    with node.client(database=database, compression=compression or False) as client:
        client.execute(f"CREATE TABLE sample ({REPRESENTATIVE}) ENGINE = MergeTree ORDER BY id")
        assert client.execute("INSERT INTO sample VALUES", rows) == count
        assert client.execute("SELECT * FROM sample ORDER BY id") == rows


def test_an_insert_of_many_blocks_is_one_insert(client: Client) -> None:
    client.execute(f"CREATE TABLE sample ({REPRESENTATIVE}) ENGINE = MergeTree ORDER BY id")
    rows = representative_rows(2_000)
    client.execute("INSERT INTO sample VALUES", (row for row in rows), settings={"insert_block_size": 33})
    assert client.execute("SELECT * FROM sample ORDER BY id") == rows


def test_a_result_of_many_blocks_arrives_in_order(client: Client) -> None:
    rows = client.execute("SELECT number FROM numbers(10000)", settings={"max_block_size": 17})
    assert rows == [(number,) for number in range(10_000)]


def test_columns_may_be_reordered_and_omitted(client: Client) -> None:
    client.execute("CREATE TABLE ordered (a Int8, `b c` String, d String DEFAULT 'd', e Int8 ALIAS a) ENGINE = Memory")
    client.execute("INSERT INTO ordered (`b c`, a) VALUES", [("x", 1)])
    client.execute("INSERT INTO ordered (* EXCEPT (d)) VALUES", [(2, "y")])
    client.execute("INSERT INTO ordered VALUES", [(3, "z", "given")])
    assert client.execute("SELECT * FROM ordered ORDER BY a") == [(1, "x", "d"), (2, "y", "d"), (3, "z", "given")]


def test_rows_may_be_dictionaries_or_columns(client: Client) -> None:
    client.execute("CREATE TABLE pairs (a Int8, b String) ENGINE = Memory")
    client.execute("INSERT INTO pairs VALUES", [{"b": "x", "a": 1}])
    client.execute("INSERT INTO pairs VALUES", [[2, 3], ["y", "z"]], columnar=True)
    assert client.execute("SELECT * FROM pairs ORDER BY a", columnar=True) == [(1, 2, 3), ("x", "y", "z")]


def test_default_materialized_and_ephemeral_columns_are_computed(client: Client) -> None:
    client.execute(
        "CREATE TABLE computed (a Int8, raw String EPHEMERAL, size UInt64 DEFAULT length(raw), twice Int8 MATERIALIZED "
        "a * 2) ENGINE = MergeTree ORDER BY a"
    )
    client.execute("INSERT INTO computed (a, raw) VALUES", [(1, "four")])
    assert client.execute("SELECT a, size, twice FROM computed") == [(1, 4, 2)]


def test_null_nothing_and_empty_collections_are_read(client: Client) -> None:
    assert client.execute("SELECT NULL, [], map(), [NULL], tuple(1)") == [(None, [], {}, [None], (1,))]


@pytest.mark.parametrize("unit", ["Second", "Minute", "Hour", "Day", "Week", "Month", "Year"])
def test_intervals_are_read(client: Client, unit: str) -> None:
    assert client.execute(f"SELECT toInterval{unit}(-3), 'after'") == [(-3, "after")]


JSON_DOCUMENTS: list[Any] = [
    {"a": 1, "b": {"c": "x"}},
    {},
    {"a": "text", "d": [1, 2, 3], "e": None, "f": 1.5, "g": True},
    {"b": {"c": ["y"]}},
]


def test_json_is_read(client: Client) -> None:
    client.execute("CREATE TABLE documents (id UInt8, document JSON, last String) ENGINE = Memory")
    client.execute(
        'INSERT INTO documents VALUES (1, \'{"a": 1, "b": {"c": "x"}}\', \'l\'), '
        "(2, '{}', 'm'), (3, '{\"a\": \"t\"}', 'n')"
    )
    rows = client.execute("SELECT * FROM documents ORDER BY id")
    assert rows == [(1, {"a": 1, "b": {"c": "x"}}, "l"), (2, {}, "m"), (3, {"a": "t"}, "n")]


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_json_is_written(node: RunningNode, database: str, compression: str | None) -> None:
    with node.client(database=database, compression=compression or False) as client:
        client.execute("CREATE TABLE documents (id UInt8, document JSON, last String) ENGINE = MergeTree ORDER BY id")
        client.execute("INSERT INTO documents VALUES", [(0, JSON_DOCUMENTS[0], "l"), (1, JSON_DOCUMENTS[1], "m")])
        client.execute("INSERT INTO documents VALUES", [(2, JSON_DOCUMENTS[2], "n"), (3, JSON_DOCUMENTS[3], "o")])
        rows = client.execute("SELECT id, document, last FROM documents ORDER BY id")
        assert [last for _, _, last in rows] == ["l", "m", "n", "o"]
        assert rows[0][1] == JSON_DOCUMENTS[0]
        assert client.execute("SELECT document.b.c::String FROM documents WHERE id = 0") == [("x",)]


def test_states_of_aggregate_functions_can_be_inserted_from_a_select(client: Client) -> None:
    state = "AggregateFunction(uniqExact, UInt64)"
    for table in ("first", "second"):
        client.execute(f"CREATE TABLE {table} (id UInt8, state {state}) ENGINE = AggregatingMergeTree ORDER BY id")
    client.execute("INSERT INTO first SELECT number % 2, uniqExactState(number) FROM numbers(1000) GROUP BY 1")
    client.execute("INSERT INTO second SELECT * FROM first")
    client.execute("INSERT INTO second SELECT * FROM first")
    assert client.execute("SELECT id, uniqExactMerge(state) FROM second GROUP BY id ORDER BY id") == [
        (0, 500),
        (1, 500),
    ]
    assert client.execute("SELECT id, finalizeAggregation(state) FROM first ORDER BY id") == [(0, 500), (1, 500)]


def test_inserting_states_over_the_protocol_is_rejected_with_a_clear_error(
    node: RunningNode, client: Client, database: str
) -> None:
    client.execute(
        "CREATE TABLE states (state AggregateFunction(sum, UInt64)) ENGINE = AggregatingMergeTree ORDER BY ()"
    )
    with RawClient(node.port, database=database) as raw:
        raw.send_query("INSERT INTO states VALUES")
        raw.send(block([("state", "AggregateFunction(sum, UInt64)", bytes(8) * 20_000)], 20_000) * 20)
        raw.send(block([], 0))
        error = raw.expect_exception()
    assert error.code == 48
    assert "AggregateFunction(sum, UInt64)" in error.message
    assert "INSERT ... SELECT" in error.message
    assert client.execute("SELECT count() FROM states") == [(0,)]


def test_text_is_converted_to_the_columns_own_type(node: RunningNode, client: Client, database: str) -> None:
    client.execute("CREATE TABLE numbers_only (value UInt8) ENGINE = Memory")
    with RawClient(node.port, database=database) as raw:
        raw.send_query("INSERT INTO numbers_only VALUES")
        raw.send(block([("value", "String", string_column("7", "8"))], 2))
        raw.send(block([], 0))
        raw.receive_until_end()
    assert client.execute("SELECT sum(value) FROM numbers_only") == [(15,)]


def test_a_value_that_the_engine_rejects_writes_nothing_and_leaves_the_client_usable(client: Client) -> None:
    client.execute("CREATE TABLE bounded (a Int8, CONSTRAINT small CHECK a < 10) ENGINE = MergeTree ORDER BY a")
    with pytest.raises(ServerException) as caught:
        client.execute("INSERT INTO bounded VALUES", [(1,), (50,)])
    assert caught.value.code == 469
    assert client.execute("SELECT count() FROM bounded") == [(0,)]


@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is not installed")
def test_numpy_arrays_and_data_frames_are_read_and_written(node: RunningNode, database: str) -> None:
    with node.client(database=database, settings={"use_numpy": True}) as client:
        client.execute("CREATE TABLE frame (a Int64, b String, c Nullable(Float64)) ENGINE = MergeTree ORDER BY a")
        frame = client.query_dataframe("SELECT toInt64(number) AS a, toString(a) AS b, a / 2 AS c FROM numbers(1000)")
        assert client.insert_dataframe("INSERT INTO frame VALUES", frame) == 1000
        read = client.query_dataframe("SELECT * FROM frame ORDER BY a")
        assert read["a"].tolist() == list(range(1000))
        assert read["b"].tolist() == [str(number) for number in range(1000)]
        assert read["c"].tolist() == [number / 2 for number in range(1000)]


def test_external_tables_can_have_every_type_of_column(client: Client) -> None:
    rows = [{"id": uuid4(), "word": f"w{number % 3}", "list": ["a"] * number} for number in range(10)]
    table = {
        "name": "given",
        "structure": [("id", "UUID"), ("word", "LowCardinality(String)"), ("list", "Array(String)")],
    }
    result = client.execute(
        "SELECT uniqExact(id), uniqExact(word), sum(length(list)) FROM given", external_tables=[table | {"data": rows}]
    )
    assert result == [(10, 3, 45)]
