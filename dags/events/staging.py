"""The table in which a batch is staged: every line of its objects, as an event or with the reason why it is none.

Its columns are those of `events` and a few of its own, so what is checked there is what is stored. Not here: how a
line becomes a row (`product_events.py`, `access_logs.py`), and when rows go further (`loading.py`).
"""

from dags.common.clickhouse.object_storage import OBJECT
from dags.common.clickhouse.query import quoted
from dags.common.clickhouse.tables import EVENTS
from dags.events.objects import TEAM_PATTERN, Format

PREFIX = "events_load_"

# Left out: what is known at the moment of the load only.
EVENT_COLUMNS = tuple(column for column in EVENTS.columns if column.name != "inserted_at")
EVENT_NAMES = tuple(column.name for column in EVENT_COLUMNS)
OWN_COLUMNS = {
    # What is read by one statement, so that it can be taken back alone.
    "chunk": "UInt32",
    "object": "LowCardinality(String)",
    "etag": "LowCardinality(String)",
    "line": "UInt64",
    # At most one of the two is not empty; an event has neither.
    "skipped_by": "LowCardinality(String)",
    "rejected_because": "LowCardinality(String)",
    "raw": "String",
    "agent": "String",
}
NAMES = (*OWN_COLUMNS, *EVENT_NAMES)
IS_EVENT = "skipped_by = '' AND rejected_because = ''"

RAW_CHARACTERS = 1000
EARLIEST_YEAR, LATEST_YEAR = 2000, 2099

READERS = {
    Format.JSON_LINES: ("LineAsString", "raw_line String"),
    Format.ACCESS_LOG: ("LineAsString", "raw_line String"),
    Format.PARQUET: (
        "Parquet",
        "uuid String, event String, distinct_id String, timestamp String, person_id String, properties String",
    ),
}


def create_statement(table: str) -> str:
    """Makes a staging table."""
    columns = [f"{quoted(name)} {kind}" for name, kind in OWN_COLUMNS.items()]
    columns += [f"{quoted(column.name)} {column.type}" for column in EVENT_COLUMNS]
    return f"CREATE TABLE {quoted(table)} ({', '.join(columns)}) ENGINE = MergeTree PARTITION BY chunk ORDER BY tuple()"


def objects_source(kind: Format) -> str:
    """What a statement selects from to read objects of a format, each row with its object, etag, line and team.

    The parameters are those of an ObjectQuery and `bucket`.
    """
    reader, structure = READERS[kind]
    return f"""
    SELECT
        * EXCEPT (path, quoted_etag, row_number),
        substring(path, length(%(bucket)s) + 2) AS object,
        trim(BOTH '"' FROM quoted_etag) AS etag,
        row_number + 1 AS line,
        toInt64OrZero(extract(path, '{TEAM_PATTERN}')) AS team_id,
        {object_id("object", "etag")} AS object_id
    FROM (
        SELECT *, _path AS path, _etag AS quoted_etag, _row_number AS row_number
        FROM s3({OBJECT}, '{reader}', '{structure}')
    )
    """  # noqa: S608 - constants of this module


def object_id(key: str, etag: str) -> str:
    """The expression of an object's id."""
    return f"sipHash64({key}, {etag})"


def stage_statement(table: str, rows: str) -> str:
    """Puts the rows that a SELECT of all `NAMES` gives into a staging table."""
    names = ", ".join(map(quoted, NAMES))
    return f"INSERT INTO {quoted(table)} ({names}) SELECT {names} FROM ({rows})"  # noqa: S608 - names from code


def person_id(team: str, distinct_id: str) -> str:
    """The expression of the person that stands for an id of which nothing else is known."""
    return f"reinterpretAsUUID(sipHash128('person', {team}, {distinct_id}))"


def line_uuid() -> str:
    """The expression of an event's identity by where it stands: the same whenever the object is loaded."""
    return "reinterpretAsUUID(sipHash128('line', object, line))"


def text(expression: str) -> str:
    """The expression as text that every client can read: other bytes become replacement characters."""
    return f"toValidUTF8({expression})"
