"""Product-analytics events as capture and batch exports write them: the meaning of a JSON line and of a Parquet row.

    {"uuid": …, "event": …, "distinct_id": …, "timestamp": …, "properties": {"$session_id": …, "$pathname": …, …}}

`event`, `timestamp` and `distinct_id` (there or in the properties) are needed; whatever else is missing stays empty.
All properties are kept as they came. A line without a uuid gets one by its object and number.
"""

from dags.events.objects import Format
from dags.events.staging import (
    EARLIEST_YEAR,
    LATEST_YEAR,
    RAW_CHARACTERS,
    line_uuid,
    objects_source,
    person_id,
    text,
)

EVENT_FIELDS = ("uuid", "event", "distinct_id", "timestamp", "person_id", "properties")
# Column of the table, and the property it is taken from.
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
}
NUMBER_PROPERTIES = {"viewport_width": "$viewport_width", "viewport_height": "$viewport_height"}
LARGEST_NUMBER = 1_000_000
# What an empty column of UUIDs reads as.
NO_UUID = "00000000-0000-0000-0000-000000000000"


def rows_statement(kind: Format) -> str:
    """A SELECT of every line of objects of this format, in the columns of the staging table.

    A line is read by the JSON parser twice, once for the event and once for its properties, not once for each field.
    """
    is_parquet = kind is Format.PARQUET
    names = ", ".join(EVENT_FIELDS)
    types = ", ".join(f"{name} String" for name in EVENT_FIELDS)
    property_types = ", ".join(
        [f"`{name}` String" for name in (*TEXT_PROPERTIES.values(), "distinct_id")]
        + [f"`{name}` Float64" for name in NUMBER_PROPERTIES.values()]
    )
    texts = ",\n".join(f"{text(f'found.`{name}`')} AS {column}" for column, name in TEXT_PROPERTIES.items())
    numbers = ",\n".join(
        f"toInt32(if(found.`{name}` BETWEEN 0 AND {LARGEST_NUMBER}, found.`{name}`, 0)) AS {column}"
        for column, name in NUMBER_PROPERTIES.items()
    )
    if is_parquet:
        fields = f"SELECT * EXCEPT ({names}), tuple({names})::Tuple({types}) AS sent"
        raw, is_blank, is_object, is_json = "toJSONString(sent)", "0", "1", "1"
    else:
        fields = f"SELECT *, JSONExtract(raw_line, 'Tuple({types})') AS sent"
        raw, is_blank, is_json = "raw_line", r"match(raw_line, '^\\s*$')", "isValidJSON(raw_line)"
        # The engine would fill the fields from an array by position.
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
            toYear(time) NOT BETWEEN {EARLIEST_YEAR} AND {LATEST_YEAR}, 'timestamp is out of range',
            sent.uuid NOT IN ('', '{NO_UUID}') AND sent_uuid IS NULL, 'uuid is not a UUID',
            ''
        ) AS rejected_because,
        if(rejected_because = '', '', substringUTF8({text(raw)}, 1, {RAW_CHARACTERS})) AS raw,
        ifNull(sent_uuid, {line_uuid()}) AS uuid,
        {text("sent.event")} AS event,
        distinct_id,
        ifNull(nullIf(toUUIDOrNull(sent.person_id), toUUID('{NO_UUID}')),
            {person_id("team_id", "distinct_id")}) AS person_id,
        ifNull(time, toDateTime64(0, 6, 'UTC')) AS timestamp,
        properties,
        {texts},
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
