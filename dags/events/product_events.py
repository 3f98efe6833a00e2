"""Product-analytics events as JSON lines and Parquet rows, in the form that capture and batch exports write.

    {"uuid": …, "event": …, "distinct_id": …, "timestamp": …, "properties": {"$session_id": …, "$pathname": …, …}}

`event`, `timestamp` and `distinct_id` (at the top level or in the properties) are required; other missing fields stay
empty. All properties are stored as sent, numbers digit by digit; a byte that is not UTF-8, or half of a surrogate pair,
becomes U+FFFD. A line without a uuid gets one made of its object and line number.

A timestamp is ISO 8601 with date and time, in UTC unless it has an offset, or epoch seconds or milliseconds. Any other
is rejected, since a guess would be wrong for some. The path of a `$screen` event is its `$screen_name`.
"""

from collections.abc import Mapping

from dags.events.objects import Format
from dags.events.staging_table import (
    MAX_RAW_CHARACTERS,
    MAX_YEAR,
    MIN_YEAR,
    line_uuid,
    objects_source,
    person_id,
    text,
)

EVENT_FIELDS = ("uuid", "event", "distinct_id", "timestamp", "person_id", "properties")
# Column of the table to the property that it is taken from.
TEXT_PROPERTIES = {
    "session_id": "$session_id",
    "host": "$host",
    "pathname": "$pathname",
    "referring_domain": "$referring_domain",
    "browser": "$browser",
    "os": "$os",
    "device_type": "$device_type",
    "utm_source": "utm_source",
    "utm_medium": "utm_medium",
    "utm_campaign": "utm_campaign",
    "utm_term": "utm_term",
    "utm_content": "utm_content",
    "country_code": "$geoip_country_code",
    "region": "$geoip_subdivision_1_name",
    "city": "$geoip_city_name",
}
# Column to the property that sets it to 1 unless it is empty.
FLAG_PROPERTIES = {"has_gclid": "gclid", "has_gad_source": "gad_source", "has_fbclid": "fbclid"}
NUMBER_PROPERTIES = {"viewport_width": "$viewport_width", "viewport_height": "$viewport_height"}
MAX_VIEWPORT_PIXELS = 1_000_000
SCREEN_NAME = "$screen_name"
TIMESTAMP_PATTERN = (
    r"^(?:\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])[T ](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?"
    r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)?|\d{9,10}(?:\.\d{1,9})?|\d{13})$"
)
ISO_PATTERN = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"
# A whole number beyond 64 bits stops the JSON parser, which reads it as text if it is in quotes.
LONG_NUMBER = r"([:\[,]\s*)(-?\d{19,}(?:\.\d+)?(?:[eE][+-]?\d+)?)"
HIGH_SURROGATE, LOW_SURROGATE = r"\\u([dD][89abAB][0-9a-fA-F]{2})", r"\\u([dD][c-fC-F][0-9a-fA-F]{2})"
# The value of an empty UUID column.
NO_UUID = "00000000-0000-0000-0000-000000000000"


def rows_statement(kind: Format, columns: Mapping[str, str] | None = None) -> str:
    """Return a SELECT of every line of objects of this format, in the columns of the staging table.

    The JSON parser reads a line twice, once for the event and once for its properties, instead of once per field.
    `columns` are those of a Parquet file and their types, for one whose fields cannot be read as text.
    """
    is_parquet = kind is Format.PARQUET
    names = ", ".join(EVENT_FIELDS)
    types = ", ".join(f"{name} String" for name in EVENT_FIELDS)
    property_types = ", ".join(
        [
            f"`{name}` String"
            for name in (*TEXT_PROPERTIES.values(), *FLAG_PROPERTIES.values(), SCREEN_NAME, "distinct_id")
        ]
        + [f"`{name}` Float64" for name in NUMBER_PROPERTIES.values()]
    )
    found = {column: f"found.`{name}`" for column, name in TEXT_PROPERTIES.items()}
    found["pathname"] = (
        f"if(sent.event = '$screen' AND found.`{SCREEN_NAME}` != '', found.`{SCREEN_NAME}`, {found['pathname']})"
    )
    texts = ",\n".join(f"{text(value)} AS {column}" for column, value in found.items())
    flags = ", ".join(f"found.`{name}` != '' AS {column}" for column, name in FLAG_PROPERTIES.items())
    numbers = ",\n".join(
        f"toInt32(if(found.`{name}` BETWEEN 0 AND {MAX_VIEWPORT_PIXELS}, found.`{name}`, 0)) AS {column}"
        for column, name in NUMBER_PROPERTIES.items()
    )
    if is_parquet:
        own = names if columns is None else ", ".join(columns)
        read_as_text = dict.fromkeys(EVENT_FIELDS, "String")
        values = ", ".join(_as_text(name, columns or read_as_text) for name in EVENT_FIELDS)
        fields = f"SELECT * EXCEPT ({own}), tuple({values})::Tuple({types}) AS sent"
        raw, is_blank, is_object, is_json = "toJSONString(sent)", "0", "1", "1"
        readable_properties = _parseable("properties")
        properties = f"if(startsWith(trimLeft(sent.properties), '{{'), {_repaired(text('sent.properties'))}, '{{}}')"
    else:
        # What editors and log rotation leave at the start of a file.
        clean = text(r"trimLeft(raw_line, '\0\xEF\xBB\xBF')")
        # A line that the parser cannot read is repaired, which is rare.
        repaired = f"if(is_valid, plain, {_repaired('plain')})"
        readable = f"if(is_valid, plain, {_parseable('clean_line')})"
        sent = f"JSONExtract(readable_line, 'Tuple({types})')"
        fields = (
            f"SELECT *, {clean} AS plain, isValidJSON(plain) AS is_valid, {repaired} AS clean_line, "
            f"{readable} AS readable_line, {sent} AS sent"
        )
        readable_properties = f"if(is_valid, properties, {_parseable('properties')})"
        raw, is_blank, is_json = "clean_line", r"match(clean_line, '^\\s*$')", "isValidJSON(readable_line)"
        # From an array, ClickHouse would fill the fields by position.
        is_object = "startsWith(trimLeft(clean_line), '{')"
        properties = _exact_properties("clean_line")
    return f"""
    SELECT
        toUInt32(%(chunk)s) AS chunk, object, etag, line, team_id, object_id, '' AS agent,
        if(sent.event = '' AND {is_blank}, 'blank line', '') AS skipped_by,
        multiIf(
            skipped_by != '', '',
            NOT {is_object}, if(isValidJSON({raw}), 'not a JSON object', 'not JSON'),
            sent.event = '', if({is_json}, 'event is missing', 'not JSON'),
            distinct_id = '', 'distinct_id is missing',
            sent.timestamp = '', 'timestamp is missing',
            time IS NULL AND match(sent.timestamp, '{_literal(ISO_PATTERN)}'), 'timestamp does not exist',
            time IS NULL, 'timestamp is neither ISO 8601 with date and time nor epoch seconds or milliseconds',
            toYear(time) NOT BETWEEN {MIN_YEAR} AND {MAX_YEAR}, 'timestamp is out of range',
            time > now() + INTERVAL 1 DAY, 'timestamp is more than a day ahead',
            sent.uuid NOT IN ('', '{NO_UUID}') AND sent_uuid IS NULL, 'uuid is not a UUID',
            ''
        ) AS rejected_because,
        if(rejected_because = '', '', substringUTF8({text(raw)}, 1, {MAX_RAW_CHARACTERS})) AS raw,
        ifNull(sent_uuid, {line_uuid()}) AS uuid,
        {text("sent.event")} AS event,
        distinct_id,
        ifNull(nullIf(toUUIDOrNull(sent.person_id), toUUID('{NO_UUID}')),
            {person_id("team_id", "distinct_id")}) AS person_id,
        ifNull(time, toDateTime64(0, 6, 'UTC')) AS timestamp,
        properties,
        {texts},
        {flags},
        {numbers}
    FROM (
        SELECT
            *,
            {properties} AS properties,
            JSONExtract({readable_properties}, 'Tuple({property_types})') AS found,
            {text("if(sent.distinct_id = '', found.distinct_id, sent.distinct_id)")} AS distinct_id,
            if(
                match(sent.timestamp, '{_literal(TIMESTAMP_PATTERN)}'),
                parseDateTime64BestEffortOrNull(sent.timestamp, 6, 'UTC'), NULL
            ) AS time,
            nullIf(toUUIDOrNull(sent.uuid), toUUID('{NO_UUID}')) AS sent_uuid
        FROM ({fields} FROM ({objects_source(kind, is_inferred=columns is not None)}))
    )
    """  # noqa: S608 - constants of this module


def _literal(pattern: str) -> str:
    """Return a regular expression as the inside of a string in SQL."""
    return pattern.replace("\\", "\\\\").replace("'", "\\'")


def _repaired(line: str) -> str:
    """Return the expression of JSON in which each half of a surrogate pair is U+FFFD, as the JSON parser demands.

    Bytes that JSON does not allow mark an escaped backslash and the pairs meanwhile.
    """
    pair, half = _literal(HIGH_SURROGATE + LOW_SURROGATE), _literal(r"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
    marked = rf"replaceRegexpAll(replaceAll({line}, '\\\\', '\x03'), '{pair}', '\x01\\1\x02\\2')"
    replaced = rf"replaceRegexpAll({marked}, '{half}', '\\\\ufffd')"
    return rf"replaceAll(replaceRegexpAll({replaced}, '\x01(....)\x02(....)', '\\\\u\\1\\\\u\\2'), '\x03', '\\\\')"


def _parseable(line: str) -> str:
    """Return the expression of JSON in which numbers that the parser cannot read are text."""
    return rf"""replaceRegexpAll({line}, '{_literal(LONG_NUMBER)}', '\\1"\\2"')"""


def _exact_properties(line: str) -> str:
    """Return the expression of the properties as they stand in the line: the JSON parser writes numbers in its own way.

    With more than one "properties" in the line, the text is the parser's.
    """
    exact = f"trimLeft(simpleJSONExtractRaw({line}, 'properties'))"
    return f"""
        multiIf(
            NOT startsWith(trimLeft(sent.properties), '{{'), '{{}}',
            countSubstrings({line}, '"properties"') = 1 AND startsWith({exact}, '{{'), {exact},
            sent.properties
        )
    """


def _as_text(name: str, columns: Mapping[str, str]) -> str:
    """Return the expression of a Parquet column as text. A UUID may be stored as its 16 bytes."""
    kind = columns.get(name, "")
    if not kind:
        return "''"
    if kind.startswith(("Tuple", "Map", "Array", "JSON", "Nullable(Tuple")):
        return f"toJSONString({name})"
    value = f"ifNull(toString({name}), '')"
    if name in {"uuid", "person_id"}:
        sixteen_bytes = f"toFixedString(substring({value}, 1, 16), 16)"
        return f"if(length({value}) = 16, toString(UUIDNumToString({sixteen_bytes})), {value})"
    return value
