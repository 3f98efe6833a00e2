import collections
import datetime as dt
import gzip
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any

import zstd

from dags.local.sample import (
    BAD_EVENT_LINES,
    BAD_LOG_LINES,
    DEVICES,
    LOG_SITE,
    SITES,
    SampleObject,
    person_overrides,
    put_sample,
    sample_objects,
)

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

LAST_DAY = dt.date(2026, 10, 31)
COMBINED = re.compile(
    r'\S+ - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET \S+ HTTP/1.1" \d{3} \d+ "[^"]+" "[^"]+"'
)


@cache
def three_days() -> tuple[SampleObject, ...]:
    return tuple(sample_objects(LAST_DAY, days=3))


def lines_of(one: SampleObject) -> list[str]:
    body = one.body
    if one.key.endswith(".gz"):
        body = gzip.decompress(body)
    elif one.key.endswith(".zst"):
        body = zstd.decompress(body)
    return body.decode().splitlines()


def team_of(one: SampleObject) -> int:
    return int(one.key.split("team=")[1].split("/")[0])


def events_of(one: SampleObject) -> list[dict[str, Any]]:
    return [json.loads(line) | {"team": team_of(one)} for line in lines_of(one) if line not in BAD_EVENT_LINES]


def all_events() -> list[dict[str, Any]]:
    return [event for one in three_days() if team_of(one) != LOG_SITE.team_id for event in events_of(one)]


def by_visit(events: list[dict[str, Any]]) -> dict[tuple[int, str], list[dict[str, Any]]]:
    visits = collections.defaultdict(list)
    for event in events:
        visits[(event["team"], event["properties"]["$session_id"])].append(event)
    return visits


def test_the_same_day_gives_the_same_bytes_in_every_range_of_days() -> None:
    two_days_longer = {one.key: one.body for one in sample_objects(LAST_DAY + dt.timedelta(days=2), days=4)}
    again = [one for one in three_days() if one.key in two_days_longer]
    assert len(again) == 2 * 4
    for one in again:
        assert two_days_longer[one.key] == one.body, one.key


def test_every_team_has_one_object_per_day_in_its_own_format() -> None:
    suffixes = [(one.key.split(str(LAST_DAY.year))[0], one.key.split(".", 1)[1]) for one in three_days()]
    assert collections.Counter(suffixes) == {
        ("events/team=1/", "jsonl"): 3,
        ("events/team=2/", "jsonl.gz"): 3,
        ("events/team=3/", "jsonl.zst"): 3,
        ("events/team=4/", "access.log.gz"): 3,
    }


def test_an_object_counts_its_lines_and_the_bad_ones() -> None:
    for one in three_days():
        lines = lines_of(one)
        assert one.lines == len(lines)
        bad = BAD_LOG_LINES if team_of(one) == LOG_SITE.team_id else BAD_EVENT_LINES
        assert one.bad_lines == sum(line in bad for line in lines)
    assert sum(one.bad_lines for one in three_days()) > 0


def test_visits_have_several_pages_and_some_cross_midnight_and_some_arrive_a_day_late() -> None:
    visits = by_visit(all_events())
    views = {key: sum(event["event"] == "$pageview" for event in events) for key, events in visits.items()}
    assert 0.3 < sum(count == 1 for count in views.values()) / len(views) < 0.6
    over_midnight = {
        key[0] for key, events in visits.items() if len({event["timestamp"][:10] for event in events}) == 2
    }
    assert over_midnight == {site.team_id for site in SITES}
    late = [
        event
        for one in three_days()
        if team_of(one) != LOG_SITE.team_id
        for event in events_of(one)
        if event["timestamp"][:10] < one.key.split("/")[2][:10]
    ]
    assert late
    assert {event["timestamp"][:10] for event in late} >= {str(LAST_DAY - dt.timedelta(days=age)) for age in (1, 2)}


def test_some_events_are_duplicated_within_an_object_and_across_days() -> None:
    objects = collections.defaultdict(list)
    for one in three_days():
        if team_of(one) != LOG_SITE.team_id:
            for event in events_of(one):
                objects[event["uuid"]].append(one.key)
    copies = [keys for keys in objects.values() if len(keys) > 1]
    assert any(len(set(keys)) == 1 for keys in copies)
    assert any(len(set(keys)) == 2 for keys in copies)


def test_visitors_return_have_one_device_and_share_ids_between_teams() -> None:
    events = all_events()
    devices = collections.defaultdict(set)
    days = collections.defaultdict(set)
    teams = collections.defaultdict(set)
    for event in events:
        visitor = (event["team"], event["distinct_id"])
        devices[visitor].add((event["properties"]["$browser"], event["properties"]["$os"]))
        days[visitor].add(event["timestamp"][:10])
        teams[event["distinct_id"]].add(event["team"])
    assert all(len(one) == 1 for one in devices.values())
    assert {device for one in devices.values() for device in one} == {(one.browser, one.os) for one in DEVICES}
    assert any(len(one) == 3 for one in days.values())
    assert any(len(one) == 3 for one in teams.values())
    assert {event["properties"].get("utm_source") for event in events} == {None, "google", "facebook", "newsletter"}


def test_only_orders_have_revenue_in_several_currencies_one_without_a_rate() -> None:
    paid = {event["uuid"]: event["properties"] for event in all_events() if "revenue" in event["properties"]}
    orders = {event["uuid"] for event in all_events() if event["event"] == "order_placed"}
    assert set(paid) == orders
    assert {properties["currency"] for properties in paid.values()} >= {"USD", "EUR", "GBP", "XTS"}
    for properties in paid.values():
        assert re.fullmatch(r"\d+" if properties["currency"] == "JPY" else r"\d+\.\d\d", properties["revenue"])


def test_an_override_maps_a_second_id_to_the_person_of_the_first() -> None:
    persons = {(event["team"], event["distinct_id"]): event["person_id"] for event in all_events()}
    used = 0
    for override in person_overrides():
        own = persons.get((override.team_id, override.distinct_id))
        first = persons.get((override.team_id, override.distinct_id.replace("device-of-", "visitor-")))
        if own is not None:
            used += 1
            assert own != str(override.person_id)
            assert first in (None, str(override.person_id))
    assert used > 0


def test_the_access_log_has_pages_assets_bots_and_broken_links() -> None:
    lines = [line for one in three_days() if team_of(one) == LOG_SITE.team_id for line in lines_of(one)]
    good = [line for line in lines if line not in BAD_LOG_LINES]
    assert all(COMBINED.fullmatch(line) for line in good)
    for part in ("/courses/ ", "/static/site.css", "Googlebot", " 404 "):
        assert any(part in line for line in good), part


def test_putting_the_sample_twice_puts_it_once(s3_client: "S3Client", s3_bucket: str) -> None:
    objects = [one for one in three_days() if str(LAST_DAY) in one.key]
    assert put_sample(s3_client, s3_bucket, objects) == 4
    etags = {item["Key"]: item["ETag"] for item in s3_client.list_objects_v2(Bucket=s3_bucket)["Contents"]}
    assert put_sample(s3_client, s3_bucket, objects) == 0
    s3_client.put_object(Bucket=s3_bucket, Key=objects[0].key, Body=b"something else")
    assert put_sample(s3_client, s3_bucket, objects) == 1
    assert {item["Key"]: item["ETag"] for item in s3_client.list_objects_v2(Bucket=s3_bucket)["Contents"]} == etags
