import datetime as dt
import io
import json
import uuid

import pytest

from dags.tests.events.world import World, event, lines

FULL_PROPERTIES = {
    "$session_id": "0190a1b2-0000-7000-8000-000000000000",
    "$host": "www.example.com",
    "$pathname": "/pricing",
    "$browser": "Safari",
    "$os": "Mac OS X",
    "$device_type": "Desktop",
    "$viewport_width": 1440,
    "$viewport_height": 900.0,
    "$referring_domain": "www.google.com",
    "utm_source": "newsletter",
    "utm_medium": "email",
    "utm_campaign": "frühling",
    "utm_term": "a",
    "utm_content": "b",
    "$geoip_country_code": "DE",
    "$geoip_subdivision_1_name": "Bavaria",
    "$geoip_city_name": "Munich",
    "nested": {"list": [1, 2, {"quote": 'say "hi"'}]},
}
NO_TIMESTAMP = "timestamp is neither ISO 8601 with date and time nor epoch seconds or milliseconds"
TWO_DAYS_AHEAD = (dt.datetime.now(dt.UTC) + dt.timedelta(days=2)).isoformat()
FULL_COLUMNS = """
    session_id, host, pathname, browser, os, device_type, viewport_width, viewport_height, referring_domain,
    utm_source, utm_medium, utm_campaign, utm_term, utm_content, country_code, region, city
"""


def test_properties_fill_their_columns_and_are_all_stored(world: World) -> None:
    sent = event(1, properties=FULL_PROPERTIES, person_id="0190a1b2-0000-7000-8000-000000000009")
    world.put("a.jsonl", lines([sent]), team=12)
    assert not world.load().problems
    ((*columns, properties),) = world.rows(f"SELECT {FULL_COLUMNS}, properties FROM events")  # noqa: S608 - names from code
    assert columns == list(FULL_PROPERTIES.values())[:-1]
    assert json.loads(properties) == FULL_PROPERTIES
    assert world.rows(
        "SELECT uuid, event, team_id, distinct_id, toString(timestamp), toString(person_id) FROM events"
    ) == [
        (
            uuid.UUID(sent["uuid"]),
            "$pageview",
            12,
            sent["distinct_id"],
            "2026-10-02 10:00:00.123456",
            sent["person_id"],
        )
    ]


def test_click_ids_of_advertisements_are_flags(world: World) -> None:
    clicks = [{"gclid": "Cj0"}, {"gad_source": 1, "fbclid": ""}, {"fbclid": "IwAR"}, {"gclid": None}]
    world.put("a.jsonl", lines([event(number, properties=one) for number, one in enumerate(clicks)]))
    world.load()
    assert world.rows("SELECT has_gclid, has_gad_source, has_fbclid FROM events ORDER BY timestamp") == [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (0, 0, 0),
    ]


def test_missing_and_odd_properties_stay_empty(world: World) -> None:
    not_properties = ["a", 1]
    odd = {"$pathname": None, "$host": 12, "$viewport_width": "1024", "$viewport_height": -5, "$os": {"a": 1}}
    world.put(
        "a.jsonl", lines([event(1, properties=None), event(2, properties=odd), event(3, properties=not_properties)])
    )
    result = world.load()
    assert [entry.rows for entry in result.loaded] == [3]
    assert world.rows("SELECT pathname, host, viewport_width, viewport_height, os FROM events ORDER BY timestamp") == [
        ("", "", 0, 0, ""),
        ("", "12", 1024, 0, '{"a":1}'),
        ("", "", 0, 0, ""),
    ]
    assert world.rows("SELECT properties FROM events ORDER BY timestamp LIMIT 1") == [("{}",)]


def test_properties_may_be_a_json_string_and_may_contain_the_distinct_id(world: World) -> None:
    sent = event(1, distinct_id=None, properties=json.dumps({"distinct_id": "inside", "$pathname": "/x"}))
    world.put("a.jsonl", lines([sent]))
    world.load()
    assert world.rows("SELECT distinct_id, pathname, JSONExtractString(properties, '$pathname') FROM events") == [
        ("inside", "/x", "/x")
    ]


def test_a_timestamp_may_have_an_offset_or_a_space_or_be_in_epoch_seconds_or_milliseconds(world: World) -> None:
    times = [
        "2026-10-01T12:00:00+02:00",
        "2026-10-01 10:00:00",
        "2026-10-01T10:00:00.000Z",
        "2026-10-01T04:30:00.000000-0530",
        "1790848800",
        1790848800,
        1790848800000,
        1790848800.0,
    ]
    world.put("a.jsonl", lines([event(number, timestamp=time) for number, time in enumerate(times)]))
    world.load()
    assert set(world.column("timestamp")) == {dt.datetime(2026, 10, 1, 10, tzinfo=dt.UTC)}
    assert len(world.column("uuid")) == len(times)


def test_an_unknown_person_is_the_same_for_the_same_visitor_of_a_team(world: World) -> None:
    world.put("a.jsonl", lines([event(1, distinct_id="a"), event(2, distinct_id="a"), event(3, distinct_id="b")]))
    world.put("a.jsonl", lines([event(4, distinct_id="a")]), team=2)
    world.load()
    assert world.rows(
        "SELECT uniqExact(person_id), uniqExactIf(person_id, team_id = 1 AND distinct_id = 'a') FROM events"
    ) == [(3, 1)]


def test_a_line_without_a_uuid_gets_the_same_uuid_in_every_load(world: World) -> None:
    world.put("a.jsonl", lines([event(number, uuid=None) for number in range(3)]))
    world.load()
    first = world.column("uuid")
    assert len(set(first)) == 3
    world.put("a.jsonl", lines([event(number, uuid=None) for number in range(4)]))
    world.load()
    assert set(first) < set(world.column("uuid"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "not JSON"),
        ('{"event": "a", "distinct_id": "b"', "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("12", "not a JSON object"),
        (json.dumps(event(1, event="")), "event is missing"),
        (json.dumps(event(1, distinct_id=None)), "distinct_id is missing"),
        (json.dumps(event(1, timestamp=None)), "timestamp is missing"),
        (json.dumps(event(1, timestamp="yesterday")), NO_TIMESTAMP),
        (json.dumps(event(1, timestamp="03/05/2024 10:00:00")), NO_TIMESTAMP),
        (json.dumps(event(1, timestamp="05/13/2024 10:00:00")), NO_TIMESTAMP),
        (json.dumps(event(1, timestamp="5 March 2024 10:00:00")), NO_TIMESTAMP),
        (json.dumps(event(1, timestamp="2024-03-05")), NO_TIMESTAMP),
        (json.dumps(event(1, timestamp="2024-03-05T10:00Z")), NO_TIMESTAMP),
        (json.dumps(event(1, timestamp="20240305100000")), NO_TIMESTAMP),
        (json.dumps(event(1, timestamp="2024-02-30T10:00:00Z")), "timestamp does not exist"),
        (json.dumps(event(1, timestamp="2024-13-01T10:00:00Z")), "timestamp does not exist"),
        (json.dumps(event(1, timestamp="2024-03-05T25:00:00Z")), "timestamp does not exist"),
        (json.dumps(event(1, timestamp=TWO_DAYS_AHEAD)), "timestamp is more than a day ahead"),
        (json.dumps(event(1, timestamp="1899-01-01T00:00:00Z")), "timestamp is out of range"),
        (json.dumps(event(1, timestamp="1970-01-01T00:00:00Z")), "timestamp is out of range"),
        (json.dumps(event(1, uuid="12-34")), "uuid is not a UUID"),
    ],
)
def test_a_bad_line_is_rejected_with_its_number_and_reason_and_the_others_are_loaded(
    world: World, line: str, reason: str
) -> None:
    world.put("a.jsonl.gz", lines([event(1), "", line, event(2)]), team=3)
    (entry,) = world.load().loaded
    assert (entry.lines, entry.rows, entry.rejected_rows, entry.skipped_rows) == (4, 2, 1, {"blank line": 1})
    assert world.rows("SELECT team_id, object, line, reason, raw, run_id FROM events_rejected") == [
        (3, entry.key, 3, reason, line, "run")
    ]


def test_the_raw_text_of_a_rejected_line_is_truncated_and_valid_utf8(world: World) -> None:
    world.put("a.jsonl", lines([event(1)]) + b"\xff\xfe" + b"x" * 5000 + b"\n" + lines([event(2)]))
    world.load()
    ((raw,),) = world.rows("SELECT raw FROM events_rejected")
    assert len(raw) == 1000
    assert raw.endswith("xxx")


def test_windows_line_ends_and_a_missing_last_line_end_are_accepted(world: World) -> None:
    world.put("a.jsonl", lines([event(1), event(2), event(3)]).replace(b"\n", b"\r\n").rstrip())
    (entry,) = world.load().loaded
    assert (entry.lines, entry.rows) == (3, 3)


def test_a_byte_order_mark_hides_no_event(world: World) -> None:
    world.put("bom.jsonl", b"\xef\xbb\xbf" + lines([event(1), event(2)]))
    (entry,) = world.load().loaded
    assert (entry.rows, entry.rejected_rows) == (2, 0)


def test_half_a_surrogate_pair_and_bytes_that_are_not_utf8_become_replacement_characters(world: World) -> None:
    sent = r'{"t": "\ud83d", "u": "\udE00 \ud83d\ude00", "v": "\\ud83d \n", "w": "\u00e9'
    line = json.dumps(event(1)).replace('{"$pathname"', sent + 'x", "$pathname"').encode().replace(b"x", b"\xe9", 1)
    world.put("surrogate.jsonl", line)
    (entry,) = world.load().loaded
    assert (entry.rows, entry.rejected_rows) == (1, 0)
    ((properties,),) = world.rows("SELECT properties FROM events")
    found = json.loads(properties)
    half = "\N{REPLACEMENT CHARACTER}"
    assert {name: found[name] for name in "tuvw"} == {
        "t": half,
        "u": f"{half} \N{GRINNING FACE}",
        "v": "\\ud83d \n",
        "w": f"\N{LATIN SMALL LETTER E WITH ACUTE}{half}",
    }


@pytest.mark.parametrize(
    "properties",
    [
        '{"a":1.10,"b":1e3,"c":-0.0,"d":0.1234567890123456789,"e":123456789012345678901234567890}',
        '{"$pathname": "/x", "nested": {"price": 19.90, "list": [1.50]}}',
    ],
)
def test_numbers_in_properties_keep_their_digits(world: World, properties: str) -> None:
    world.put("a.jsonl", lines([json.dumps(event(1)).replace(json.dumps(event(1)["properties"]), properties)]))
    world.load()
    assert world.column("properties") == [properties]


def test_a_screen_has_its_name_as_path(world: World) -> None:
    screens = [{"$screen_name": "Home"}, {"$screen_name": "Home", "$pathname": "/x"}, {"$pathname": "/y"}]
    sent = [event(number, event="$screen", properties=one) for number, one in enumerate(screens)]
    world.put("a.jsonl", lines([*sent, event(5, properties={"$screen_name": "Home", "$pathname": "/z"})]))
    world.load()
    assert world.column("pathname") == ["/y", "/z", "Home", "Home"]


def test_the_host_of_each_page_is_stored(world: World) -> None:
    pages = [("www.example.com", "/"), ("docs.example.com", "/start"), ("shop.example.com", "/checkout")]
    sent = [event(number, properties={"$host": host, "$pathname": path}) for number, (host, path) in enumerate(pages)]
    world.put("hosts.jsonl", lines(sent))
    world.load()
    assert world.rows("SELECT host, pathname FROM events ORDER BY timestamp") == pages


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "a.json.zst", "a.jsonl.br"])
def test_the_suffix_decides_the_compression(world: World, name: str) -> None:
    import pyarrow as pa
    import zstd

    body = lines([event(number) for number in range(50)])
    if name.endswith(".zst"):
        body = zstd.compress(body)
    elif name.endswith(".br"):
        body = pa.compress(body, codec="brotli", asbytes=True)
    world.put(name, body)
    (entry,) = world.load().loaded
    assert entry.rows == 50


def test_a_parquet_export_gives_the_same_events_as_json_lines(world: World) -> None:
    world.put("a.jsonl", lines([event(number, properties=FULL_PROPERTIES) for number in range(20)]), team=1)
    world.load()
    key = "events/team=2/export.parquet"
    world.cluster.any_host(
        lambda client: client.execute(
            "INSERT INTO FUNCTION s3(%(url)s, %(id)s, %(secret)s, 'Parquet') "
            "SELECT uuid, toString(event) AS event, distinct_id, timestamp, properties, team_id FROM events",
            {
                "url": f"{world.storage.bucket_url}/{key}",
                "id": world.storage.access_key_id,
                "secret": world.storage.secret_access_key.get_secret_value(),
            },
        )
    ).result()
    (entry,) = world.load(key).loaded
    assert (entry.rows, entry.rejected_rows, entry.format) == (20, 0, "parquet")
    same = f"SELECT uuid, event, distinct_id, timestamp, properties, {FULL_COLUMNS} FROM events WHERE team_id = "  # noqa: S608 - names from code
    assert world.rows(same + "1 ORDER BY ALL") == world.rows(same + "2 ORDER BY ALL")


def test_a_bad_row_of_a_parquet_file_is_rejected(world: World) -> None:
    key = "events/team=2/export.parquet"
    world.cluster.any_host(
        lambda client: client.execute(
            "INSERT INTO FUNCTION s3(%(url)s, %(id)s, %(secret)s, 'Parquet') "
            "SELECT if(number = 3, '', 'a') AS event, NULL::Nullable(UUID) AS person_id, toString(number) "
            "AS distinct_id, '2026-10-01T10:00:00Z' AS timestamp FROM numbers(5)",
            {
                "url": f"{world.storage.bucket_url}/{key}",
                "id": world.storage.access_key_id,
                "secret": world.storage.secret_access_key.get_secret_value(),
            },
        )
    ).result()
    (entry,) = world.load(key).loaded
    assert (entry.lines, entry.rows, entry.rejected_rows) == (5, 4, 1)
    ((line, reason, raw),) = world.rows("SELECT line, reason, raw FROM events_rejected")
    assert (line, reason) == (4, "event is missing")
    assert json.load(io.StringIO(raw))["distinct_id"] == "3"
    assert world.rows("SELECT uniqExact(person_id), uniqExact(uuid) FROM events") == [(4, 4)]


@pytest.mark.parametrize(
    ("suffix", "codec"), [("", None), (".zst", "zstd"), (".gz", "gzip"), (".sz", "snappy"), (".br", "brotli")]
)
def test_a_parquet_file_may_have_binary_uuids_and_struct_properties(
    world: World, suffix: str, codec: str | None
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    identity = uuid.UUID("018e0e0e-4500-7000-8000-000000000001")
    columns = {
        "uuid": pa.array([identity.bytes], pa.binary(16)),
        "event": pa.array(["$pageview"]),
        "distinct_id": pa.array(["d"]),
        "timestamp": pa.array([dt.datetime(2024, 3, 5, 10, tzinfo=dt.UTC)], pa.timestamp("us", tz="UTC")),
    }
    kinds = {
        "text": pa.array(['{"$pathname": "/a", "n": 1.50}']),
        "struct": pa.array([{"$pathname": "/a", "n": 1.5}]),
    }
    for kind, properties in kinds.items():
        body = io.BytesIO()
        pq.write_table(pa.table({**columns, "properties": properties, "extra": pa.array([1])}), body, compression=codec)
        world.put(f"{kind}.parquet{suffix}", body.getvalue())
    result = world.load()
    assert not result.problems
    assert [entry.rows for entry in result.loaded] == [1, 1]
    assert (
        world.rows("SELECT uuid, toString(timestamp), pathname, JSONExtractFloat(properties, 'n') FROM events")
        == [(identity, "2024-03-05 10:00:00.000000", "/a", 1.5)] * 2
    )
