"""Analysis of statements: strings, quoted names and comments are never mistaken for SQL."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dags.local.clickhouse.statements import InsertStatement, analyze, blank, parse_insert

FORMATS = frozenset({"json", "tsv", "native", "values"})

# Each is one opaque token, whatever its content.
OPAQUE_TOKENS = [
    "'; SELECT 2'",
    r"'it\'s; FORMAT JSON'",
    "'it''s; FORMAT JSON'",
    "`; WITH TOTALS`",
    '"; FORMAT JSON"',
    "/* ; FORMAT JSON\n -- */",
    "-- ; WITH TOTALS\n",
    "#! ; WITH TOTALS\n",
    "# ; it's\n",
    "$$; it's FORMAT JSON$$",
    "$tag$; $$ FORMAT JSON$tag$",
]


@pytest.mark.parametrize("token", OPAQUE_TOKENS)
def test_opaque_text_is_not_taken_for_sql(token: str) -> None:
    text = f"SELECT {token} , 1"
    statement = analyze(text, FORMATS)
    assert (statement.text, statement.keyword) == (text, "SELECT")
    assert not statement.is_multiple
    assert not statement.has_totals


@given(st.lists(st.sampled_from([*OPAQUE_TOKENS, "x", ";", "FORMAT", "(", ")", "'", "WITH TOTALS", "VALUES", "\\"])))
def test_blanking_keeps_every_position(parts: list[str]) -> None:
    text = " ".join(parts)
    assert len(blank(text)) == len(text)
    assert all(after in (before, " ", "\0") for before, after in zip(text, blank(text), strict=True))


@given(st.text(alphabet="'`\"\\/*-#$ \n;()aSELCTINRVUFOMK,.{}", max_size=80))
def test_any_text_can_be_analyzed(text: str) -> None:
    analyze(text, FORMATS)
    parse_insert(text)
    parse_insert(f"INSERT INTO {text}")
    parse_insert(f"INSERT INTO FUNCTION {text} VALUES")


@pytest.mark.parametrize(
    ("text", "keyword"),
    [
        ("select 1", "SELECT"),
        ("  /* note */ -- more\n SELECT 1", "SELECT"),
        ("(SELECT 1) UNION ALL (SELECT 2)", "SELECT"),
        ("FROM numbers(1) SELECT number", "FROM"),
        ("WITH 1 AS x SELECT x", "WITH"),
        ("WITH 1 AS x INSERT INTO t SELECT x", "INSERT"),
        ("SET max_threads = 1", "SET"),
        ("", ""),
        ("-- nothing", ""),
        (";", ""),
    ],
)
def test_the_first_word_is_the_kind_of_statement(text: str, keyword: str) -> None:
    assert analyze(text, FORMATS).keyword == keyword


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("SELECT 1 FORMAT JSON", "SELECT 1 "),
        ("SELECT 1 format json;", "SELECT 1 ;"),
        ("SELECT 1 SETTINGS max_threads = 1 FORMAT TSV", "SELECT 1 SETTINGS max_threads = 1 "),
        ("SELECT 1 FORMAT TSV SETTINGS max_threads = 1", "SELECT 1  SETTINGS max_threads = 1"),
        ("SELECT 1 FORMAT JSON -- as text", "SELECT 1  -- as text"),
        ("SHOW TABLES FORMAT TSV", "SHOW TABLES "),
    ],
)
def test_a_format_clause_is_removed_because_the_protocol_has_its_own(text: str, rest: str) -> None:
    assert analyze(text, FORMATS).text == rest


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 FORMAT Nonsense",
        "SELECT a format",
        "SELECT format FROM json",
        "SELECT 1 AS json",
        "INSERT INTO t SELECT 1 FORMAT JSON",
        "SELECT 'FORMAT JSON'",
    ],
)
def test_text_that_only_resembles_a_format_clause_stays(text: str) -> None:
    assert analyze(text, FORMATS).text == text


@pytest.mark.parametrize("text", ["SELECT 1; SELECT 2", "SELECT 1;/* */ x", "SELECT 1;;SELECT 2"])
def test_several_statements_are_detected(text: str) -> None:
    assert analyze(text, FORMATS).is_multiple


@pytest.mark.parametrize("text", ["SELECT 1;", "SELECT 1; \n;", "SELECT 1; -- end", "SELECT ';'"])
def test_a_final_semicolon_does_not_make_several_statements(text: str) -> None:
    assert not analyze(text, FORMATS).is_multiple


def test_totals_are_detected_and_not_confused_with_a_name() -> None:
    assert analyze("SELECT count() FROM t GROUP BY a WITH  TOTALS ORDER BY a", FORMATS).has_totals
    assert not analyze("WITH totals AS (SELECT 1) SELECT * FROM totals", FORMATS).has_totals


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("INSERT INTO t VALUES", InsertStatement("INSERT INTO t ", "t", None)),
        ("insert into table t values ;", InsertStatement("insert into table t ", "t", None)),
        (
            "INSERT INTO `a b`.`c.d` (x, `y z`) VALUES",
            InsertStatement("INSERT INTO `a b`.`c.d` (x, `y z`) ", "`a b`.`c.d`", "x, `y z`"),
        ),
        ('INSERT INTO db . "t" (x) FORMAT Native', InsertStatement('INSERT INTO db . "t" (x) ', 'db . "t"', "x")),
        ("INSERT INTO t (* EXCEPT(a)) VALUES", InsertStatement("INSERT INTO t (* EXCEPT(a)) ", "t", "* EXCEPT(a)")),
        ("INSERT INTO t SETTINGS x = 1 VALUES", InsertStatement("INSERT INTO t SETTINGS x = 1 ", "t", None)),
        ("/* a */ INSERT INTO t /* (b) */ VALUES -- c", InsertStatement("/* a */ INSERT INTO t /* (b) */ ", "t", None)),
        (
            "INSERT INTO FUNCTION remote('h:1', 'd', 't') (a) VALUES",
            InsertStatement("INSERT INTO FUNCTION remote('h:1', 'd', 't') (a) ", "remote('h:1', 'd', 't')", "a"),
        ),
    ],
)
def test_an_insert_whose_data_follows_is_parsed(text: str, expected: InsertStatement) -> None:
    assert parse_insert(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "INSERT INTO t VALUES (1)",
        "INSERT INTO t SELECT 1",
        "INSERT INTO t (a) SELECT 1 FORMAT TSV",
        "INSERT INTO t (SELECT 1) FORMAT TSV",
        "INSERT INTO t WITH 1 AS x SELECT x FORMAT TSV",
        "SELECT 'INSERT INTO t VALUES'",
        "-- INSERT INTO t VALUES",
        "CREATE TABLE t (a Int8)",
        "INSERT INTO",
        "",
    ],
)
def test_no_data_follows_other_statements(text: str) -> None:
    assert parse_insert(text) is None


def test_queries_are_visible_under_the_ids_that_clients_chose() -> None:
    assert analyze("SELECT * FROM system.processes", FORMATS).text == "SELECT * FROM system.client_processes"
    assert analyze("SELECT 1 FROM System . query_log", FORMATS).text == "SELECT 1 FROM system.client_query_log"
    assert "client" not in analyze("SELECT 'system.processes' FROM system.processes_x", FORMATS).text


@pytest.mark.parametrize("text", ["TRUNCATE TABLE system.query_log", "SHOW CREATE TABLE system.query_log"])
def test_statements_about_the_system_table_itself_are_unchanged(text: str) -> None:
    assert analyze(text, FORMATS).text == text


@pytest.mark.parametrize(
    "text",
    [
        "KILL QUERY WHERE query_id = 'x' SYNC",
        "/* where */ kill query where query_id = 'x' -- the one\n sync;",
    ],
)
def test_kill_finds_queries_by_the_ids_of_clients(text: str) -> None:
    changed = " ".join(analyze(text, FORMATS).text.split()).lower()
    assert "where query_id in (select engine_query_id from system.client_processes where query_id = 'x'" in changed
    assert changed.endswith(") sync")
