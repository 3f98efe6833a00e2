"""The staging table of a batch: one row per line of its objects, either an event or the reason why it is not one.

It has the columns of `events` and a few of its own, so that what is checked in staging is exactly what is stored.
"""

from dags.common.clickhouse.object_storage import OBJECT
from dags.common.clickhouse.query import quoted
from dags.common.clickhouse.tables import EVENTS
from dags.events.objects import TEAM_PATTERN, Format

PREFIX = "events_load_"

# Without the column that only the final insert can fill.
EVENT_COLUMNS = tuple(column for column in EVENTS.columns if column.name != "inserted_at")
EVENT_NAMES = tuple(column.name for column in EVENT_COLUMNS)
OWN_COLUMNS = {
    # The statement that read the line. It is the partition, so that the rows of a failed statement can be dropped.
    "chunk": "UInt32",
    "object": "LowCardinality(String)",
    "etag": "LowCardinality(String)",
    "line": "UInt64",
    # At most one of the two is set. An event has neither.
    "skipped_by": "LowCardinality(String)",
    "rejected_because": "LowCardinality(String)",
    "raw": "String",
    "agent": "String",
}
NAMES = (*OWN_COLUMNS, *EVENT_NAMES)
IS_EVENT = "skipped_by = '' AND rejected_because = ''"

MAX_RAW_CHARACTERS = 1000
MIN_YEAR, MAX_YEAR = 2000, 2099

READERS = {
    Format.JSON_LINES: ("LineAsString", "raw_line String"),
    Format.ACCESS_LOG: ("LineAsString", "raw_line String"),
    Format.PARQUET: (
        "Parquet",
        "uuid String, event String, distinct_id String, timestamp String, person_id String, properties String",
    ),
}


def create_statement(table: str) -> str:
    """Return the statement that creates a staging table."""
    columns = [f"{quoted(name)} {kind}" for name, kind in OWN_COLUMNS.items()]
    columns += [f"{quoted(column.name)} {column.type}" for column in EVENT_COLUMNS]
    return f"CREATE TABLE {quoted(table)} ({', '.join(columns)}) ENGINE = MergeTree PARTITION BY chunk ORDER BY tuple()"


def objects_source(kind: Format, *, is_inferred: bool = False) -> str:
    """Return a SELECT that reads objects of a format, with the object, etag, line number and team of each row.

    The columns are those of READERS, or those of the object itself.
    Its parameters are those of an ObjectQuery and `bucket`.
    """
    reader, structure = READERS[kind]
    if is_inferred:
        structure = "auto"
    # The suffix of a Parquet file names the compression inside it, which its reader finds on its own.
    compression = "none" if kind is Format.PARQUET else "auto"
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
        FROM s3({OBJECT}, '{reader}', '{structure}', '{compression}')
    )
    """  # noqa: S608 - constants of this module


def object_id(key: str, etag: str) -> str:
    """Return the expression of an object's id."""
    return f"sipHash64({key}, {etag})"


def stage_statement(table: str, rows: str) -> str:
    """Return the statement that inserts the rows of a SELECT of all `NAMES` into a staging table."""
    names = ", ".join(map(quoted, NAMES))
    return f"INSERT INTO {quoted(table)} ({names}) SELECT {names} FROM ({rows})"  # noqa: S608 - names from code


def person_id(team: str, distinct_id: str) -> str:
    """Return the expression of the person id of a distinct_id whose person is unknown."""
    return f"reinterpretAsUUID(sipHash128('person', {team}, {distinct_id}))"


def line_uuid() -> str:
    """Return the expression of a UUID made of an event's object and line number, the same in every load."""
    return "reinterpretAsUUID(sipHash128('line', object, line))"


def text(expression: str) -> str:
    """Return the expression as valid UTF-8: other bytes become U+FFFD."""
    return f"toValidUTF8({expression})"
