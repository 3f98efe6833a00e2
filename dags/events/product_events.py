"""Product-analytics events as JSON lines and Parquet rows, in the form that capture and batch exports write.

    {"uuid": …, "event": …, "distinct_id": …, "timestamp": …, "properties": {"$session_id": …, "$pathname": …, …}}

`event`, `timestamp` and `distinct_id` (at the top level or in the properties) are required; other missing fields stay
empty. All properties are stored as sent. A line without a uuid gets one made of its object and line number.
"""

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
# The value of an empty UUID column.
NO_UUID = "00000000-0000-0000-0000-000000000000"


def rows_statement(kind: Format) -> str:
    """Return a SELECT of every line of objects of this format, in the columns of the staging table.

    The JSON parser reads a line twice, once for the event and once for its properties, instead of once per field.
    """
    is_parquet = kind is Format.PARQUET
    names = ", ".join(EVENT_FIELDS)
    types = ", ".join(f"{name} String" for name in EVENT_FIELDS)
    property_types = ", ".join(
        [f"`{name}` String" for name in (*TEXT_PROPERTIES.values(), *FLAG_PROPERTIES.values(), "distinct_id")]
        + [f"`{name}` Float64" for name in NUMBER_PROPERTIES.values()]
    )
    texts = ",\n".join(f"{text(f'found.`{name}`')} AS {column}" for column, name in TEXT_PROPERTIES.items())
    flags = ", ".join(f"found.`{name}` != '' AS {column}" for column, name in FLAG_PROPERTIES.items())
    numbers = ",\n".join(
        f"toInt32(if(found.`{name}` BETWEEN 0 AND {MAX_VIEWPORT_PIXELS}, found.`{name}`, 0)) AS {column}"
        for column, name in NUMBER_PROPERTIES.items()
    )
    if is_parquet:
        fields = f"SELECT * EXCEPT ({names}), tuple({names})::Tuple({types}) AS sent"
        raw, is_blank, is_object, is_json = "toJSONString(sent)", "0", "1", "1"
    else:
        fields = f"SELECT *, JSONExtract(raw_line, 'Tuple({types})') AS sent"
        raw, is_blank, is_json = "raw_line", r"match(raw_line, '^\\s*$')", "isValidJSON(raw_line)"
        # From an array, ClickHouse would fill the fields by position.
        is_object = "startsWith(trimLeft(raw_line), '{')"
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
            time IS NULL, 'timestamp is not a time',
            toYear(time) NOT BETWEEN {MIN_YEAR} AND {MAX_YEAR}, 'timestamp is out of range',
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
            if(startsWith(trimLeft(sent.properties), '{{'), sent.properties, '{{}}') AS properties,
            JSONExtract(properties, 'Tuple({property_types})') AS found,
            {text("if(sent.distinct_id = '', found.distinct_id, sent.distinct_id)")} AS distinct_id,
            parseDateTime64BestEffortOrNull(sent.timestamp, 6, 'UTC') AS time,
            nullIf(toUUIDOrNull(sent.uuid), toUUID('{NO_UUID}')) AS sent_uuid
        FROM ({fields} FROM ({objects_source(kind)}))
    )
    """  # noqa: S608 - constants of this module
