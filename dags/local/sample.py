"""A sample of web events for the demo: realistic, and the same on every machine.

    DEBUG=1 python -m dags.local.sample --last-day 2026-10-31

Three teams send JSON lines, one sends access logs. The sample has visits of several pages, one of which crosses
midnight each day; campaigns and referrers; browsers, systems and devices; returning visitors, some with a second id
that is mapped to them (`person_overrides`); visitor ids that several teams use; orders in several currencies, one of
them unknown; visits that arrive a day late; duplicate events; lines that cannot be parsed. The objects of a day depend
on the day alone, so a sample that ends a day later has the same objects and one more day.
"""

import datetime as dt
import functools
import gzip
import hashlib
import json
import random
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

DAYS = 14
NAMESPACE = uuid.UUID("6f0c6a2e-5f43-4c38-9a55-8a2f3d1f7a10")
# When the first visit of each day begins, and how long it stays on each page: it crosses midnight.
MIDNIGHT_START = dt.timedelta(hours=23, minutes=48)
MIDNIGHT_PAUSE = dt.timedelta(minutes=4)
MIDNIGHT_PAGES = 6

BOUNCE_SHARE = 0.42
MAX_VISIT_PAGES = 14
# Share of visits whose device was offline, so that their events arrive on the next day.
LATE_SHARE = 0.02
# Share of events that a client sent again, because it got no response.
DUPLICATE_SHARE = 0.01
# One in this many visitors of a team has a second id, which the device generated before they signed in.
SECOND_ID_EVERY = 20
# Their visits on every third day have it.
SECOND_ID_DAYS = 3
GOAL_SHARE = 0.08
BROKEN_LINK_SHARE = 0.04

# Relative number of visits that begin in each hour of the day, UTC.
HOUR_WEIGHTS = (3, 2, 1, 1, 1, 2, 4, 6, 9, 11, 12, 12, 11, 12, 12, 11, 10, 9, 9, 10, 11, 10, 7, 5)

BAD_EVENT_LINES = (
    # A truncated event, an error page instead of an event, and an event without a name.
    '{"uuid":"0190a1b2-0000-7000-8000-0000000000',
    "<html><body>502 Bad Gateway</body></html>",
    '{"uuid":"0190a1b2-0000-7000-8000-000000000001","distinct_id":"visitor-1","timestamp":"2026-01-01T00:00:00Z"}',
)
BAD_LOG_LINES = (
    "[error] child process exited on signal 11",
    "192.0.2.1 - - [not a date] nothing",
)


@dataclass(frozen=True)
class Device:
    """A visitor's device. `agent` is the user agent of its browser."""

    browser: str
    os: str
    device_type: str
    viewport: tuple[int, int]
    agent: str
    weight: int


DEVICES = (
    Device(
        *("Chrome", "Windows", "Desktop", (1920, 953)),
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 "
        "Safari/537.36",
        weight=34,
    ),
    Device(
        *("Mobile Safari", "iOS", "Mobile", (393, 660)),
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 "
        "Mobile/15E148 Safari/604.1",
        weight=24,
    ),
    Device(
        *("Chrome", "Android", "Mobile", (412, 780)),
        "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Mobile "
        "Safari/537.36",
        weight=18,
    ),
    Device(
        *("Safari", "Mac OS X", "Desktop", (1440, 789)),
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 "
        "Safari/605.1.15",
        weight=11,
    ),
    Device(
        *("Firefox", "Linux", "Desktop", (1680, 917)),
        "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
        weight=7,
    ),
    Device(
        *("Mobile Safari", "iOS", "Tablet", (820, 1106)),
        "Mozilla/5.0 (iPad; CPU OS 18_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 "
        "Mobile/15E148 Safari/604.1",
        weight=6,
    ),
)

# Name and weight.
COUNTRIES = (("US", 38), ("GB", 14), ("DE", 12), ("FR", 9), ("BR", 8), ("IN", 8), ("JP", 6), ("NL", 5))


@dataclass(frozen=True)
class TrafficSource:
    """Where a visit came from: the referring site, or a campaign."""

    referrer: str = "$direct"
    source: str | None = None
    medium: str | None = None
    campaign: str | None = None
    weight: int = 1

    def properties(self) -> dict[str, str]:
        """Return the properties of every event of the visit."""
        campaign = {"utm_source": self.source, "utm_medium": self.medium, "utm_campaign": self.campaign}
        referrer = self.referrer if self.referrer == "$direct" else f"https://{self.referrer}/"
        return {
            "$referrer": referrer,
            "$referring_domain": self.referrer,
            **{name: value for name, value in campaign.items() if value is not None},
        }


TRAFFIC_SOURCES = (
    TrafficSource(weight=40),
    TrafficSource("www.google.com", weight=26),
    TrafficSource("news.ycombinator.com", weight=4),
    TrafficSource("www.linkedin.com", weight=4),
    TrafficSource("www.google.com", "google", "cpc", "brand", weight=10),
    TrafficSource("www.facebook.com", "facebook", "paid_social", "autumn_sale", weight=8),
    TrafficSource("$direct", "newsletter", "email", "weekly_digest", weight=8),
)


ORDER = "order_placed"
# Currency of an order, price of a lamp in it, and weight. XTS is the code for tests, which has no rate.
PAYMENTS = (("USD", 49, 57), ("EUR", 45, 22), ("GBP", 39, 11), ("JPY", 7500, 5), ("XTS", 49, 5))


@dataclass(frozen=True)
class SampleSite:
    """A team's web site, with its number of daily visits, number of visitors, and pages with their weights."""

    team_id: int
    host: str
    daily_visits: int
    visitors: int
    pages: tuple[tuple[str, int], ...]
    goal: str
    suffix: str


SHOP = SampleSite(
    *(1, "shop.example.com", 480, 3000),
    pages=(
        *(("/", 22), ("/products", 18), ("/products/desk-lamp", 12), ("/products/oak-chair", 10)),
        *(("/products/wall-clock", 7), ("/cart", 9), ("/checkout", 5), ("/about", 3), ("/help/returns", 3)),
    ),
    goal=ORDER,
    suffix=".jsonl",
)
DOCS = SampleSite(
    *(2, "docs.example.org", 260, 1200),
    pages=(
        *(("/", 14), ("/docs/install", 20), ("/docs/quickstart", 17), ("/docs/api", 14), ("/docs/api/events", 9)),
        *(("/docs/faq", 6), ("/blog/release-notes", 5), ("/docs/größen", 2)),
    ),
    goal="snippet_copied",
    suffix=".jsonl.gz",
)
NEWS = SampleSite(
    *(3, "news.example.net", 340, 2500),
    pages=(
        *(("/", 30), ("/world", 12), ("/sport", 12), ("/culture", 7), ("/weather", 9)),
        *(("/world/election-night", 9), ("/sport/final", 6), ("/subscribe", 3)),
    ),
    goal="newsletter_joined",
    suffix=".jsonl.zst",
)
SITES = (SHOP, DOCS, NEWS)
LOG_SITE = SampleSite(
    *(4, "www.example.edu", 70, 260),
    pages=(("/", 20), ("/courses/", 16), ("/courses/statistics/", 10), ("/people/", 8), ("/library/hours.html", 7)),
    goal="",
    suffix=".access.log.gz",
)
TEAM_IDS = tuple(site.team_id for site in (*SITES, LOG_SITE))

ASSETS = ("/static/site.css", "/static/site.js", "/static/logo.png", "/favicon.ico")
BOT_AGENTS = (
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
)
BOT_ADDRESS = "192.0.2.250"
DAILY_BOT_REQUESTS = 40
# Reserved for documentation, so no real address.
DOCUMENTATION_NETWORKS = ("192.0.2", "198.51.100", "203.0.113")
# In English, whatever the locale of the machine.
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True)
class SampleObject:
    """An object of the sample. `lines` counts all its lines, `bad_lines` those that cannot be parsed."""

    key: str
    body: bytes
    lines: int
    bad_lines: int


@dataclass(frozen=True)
class PersonOverride:
    """A second id of a team's visitor, and the visitor's person."""

    team_id: int
    distinct_id: str
    person_id: uuid.UUID


@dataclass(frozen=True)
class Visit:
    """A visit to a site, with the time (UTC) and path of each page view."""

    started_on: dt.date
    visitor: int
    visit_id: uuid.UUID
    source: TrafficSource
    views: tuple[tuple[dt.datetime, str], ...]
    late: bool


class Line(NamedTuple):
    """A line of an object, and the day on which it arrives. Lines sort as they are in the object."""

    moment: dt.datetime
    text: str
    arrived_on: dt.date


def sample_objects(last_day: dt.date, days: int = DAYS) -> Iterator[SampleObject]:
    """Yield an object for each day up to and including `last_day` and each team, with what arrived on that day."""
    for age_days in reversed(range(days)):
        day = last_day - dt.timedelta(days=age_days)
        for site in SITES:
            yield _events_object(site, day)
        yield _access_log_object(LOG_SITE, day)


def person_overrides() -> list[PersonOverride]:
    """Return every second id in the sample, with its person."""
    return [
        PersonOverride(site.team_id, _second_id(visitor), person_id(site.team_id, _first_id(visitor)))
        for site in SITES
        for visitor in range(site.visitors)
        if visitor % SECOND_ID_EVERY == 0
    ]


def person_id(team_id: int, distinct_id: str) -> uuid.UUID:
    """Return the person in the events of this visitor."""
    return uuid.uuid5(NAMESPACE, f"{team_id}:{distinct_id}")


def put_sample(s3: "S3Client", bucket: str, objects: Sequence[SampleObject]) -> int:
    """Put the objects that are missing or have other content; return how many."""
    present = {
        item["Key"]: item["ETag"].strip('"')
        for team_id in TEAM_IDS
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"events/team={team_id}/")
        for item in page.get("Contents", [])
    }
    # The etag that S3 computes for an object that was put in one request.
    missing = [
        sample_object
        for sample_object in objects
        if present.get(sample_object.key) != hashlib.md5(sample_object.body, usedforsecurity=False).hexdigest()
    ]
    for sample_object in missing:
        s3.put_object(Bucket=bucket, Key=sample_object.key, Body=sample_object.body)
    return len(missing)


def _events_object(site: SampleSite, day: dt.date) -> SampleObject:
    """Return what arrived from a site on a day: events of visits that began on that day or the day before."""
    return _object(site, day, _arrived(_event_lines, site, day), BAD_EVENT_LINES)


def _access_log_object(site: SampleSite, day: dt.date) -> SampleObject:
    """Return a web server's log of a day: pages with their assets, broken links and bots."""
    lines = [*_arrived(_log_lines, site, day), *_bot_lines(site, day)]
    return _object(site, day, lines, BAD_LOG_LINES)


def _arrived(
    lines_of: Callable[[SampleSite, dt.date], tuple[Line, ...]], site: SampleSite, day: dt.date
) -> Iterator[Line]:
    for started_on in (day - dt.timedelta(days=1), day):
        yield from (line for line in lines_of(site, started_on) if line.arrived_on == day)


def _object(site: SampleSite, day: dt.date, arrived: Iterable[Line], bad_lines: Sequence[str]) -> SampleObject:
    lines = [line.text for line in sorted(arrived)]
    rng = _random("bad lines", site.team_id, day)
    bad = rng.choices(bad_lines, k=rng.randint(0, 2))
    for line in bad:
        lines.insert(rng.randrange(len(lines)), line)
    body = "".join(f"{line}\n" for line in lines).encode()
    return SampleObject(
        f"events/team={site.team_id}/{day}{site.suffix}", _compressed(body, site.suffix), len(lines), len(bad)
    )


def _compressed(body: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(body, compresslevel=6, mtime=0)
    if suffix.endswith(".zst"):
        import zstd

        compressed: bytes = zstd.compress(body)
        return compressed
    return body


def _visits(site: SampleSite, day: dt.date) -> tuple[Visit, ...]:
    rng = _random("visits", site.team_id, day)
    weekend = day.isoweekday() in (6, 7)
    count = round(site.daily_visits * (0.7 if weekend else 1) * rng.uniform(0.9, 1.1))
    return tuple(_visit(site, day, rng, number) for number in range(count))


def _visit(site: SampleSite, day: dt.date, rng: random.Random, number: int) -> Visit:
    crosses_midnight = number == 0
    hour = rng.choices(range(24), HOUR_WEIGHTS)[0]
    start = MIDNIGHT_START if crosses_midnight else dt.timedelta(hours=hour, seconds=rng.uniform(0, 3599))
    count = 1 if rng.random() < BOUNCE_SHARE else min(2 + int(rng.expovariate(0.35)), MAX_VISIT_PAGES)
    paths = rng.choices(
        [path for path, _ in site.pages],
        [weight for _, weight in site.pages],
        k=MIDNIGHT_PAGES if crosses_midnight else count,
    )
    moment = dt.datetime.combine(day, dt.time(), dt.UTC) + start
    views = []
    for path in paths:
        views.append((moment, path))
        pause = dt.timedelta(seconds=round(min(2 + rng.lognormvariate(3.4, 1.1), 1200), 3))
        moment += MIDNIGHT_PAUSE if crosses_midnight else pause
    return Visit(
        started_on=day,
        # Low numbers visit often, high ones once.
        visitor=int(site.visitors * rng.random() ** 2),
        visit_id=_uuid(rng),
        source=rng.choices(TRAFFIC_SOURCES, [source.weight for source in TRAFFIC_SOURCES])[0],
        views=tuple(views),
        late=rng.random() < LATE_SHARE,
    )


# Each day is needed twice: for its own objects and for those of the next day.
@functools.lru_cache(maxsize=2 * len(SITES))
def _event_lines(site: SampleSite, day: dt.date) -> tuple[Line, ...]:
    """Return the events of the visits that began on a day, including duplicates."""
    return tuple(line for visit in _visits(site, day) for line in _event_lines_of_visit(site, visit))


def _event_lines_of_visit(site: SampleSite, visit: Visit) -> Iterator[Line]:
    rng = _random("events", site.team_id, visit.visit_id)
    distinct_id = _distinct_id(visit)
    person = str(person_id(site.team_id, distinct_id))
    next_day = visit.started_on + dt.timedelta(days=1)
    for moment, name, properties in _events(site, visit, rng):
        event = {
            "uuid": str(_uuid(rng)),
            "event": name,
            "distinct_id": distinct_id,
            "person_id": person,
            "timestamp": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "properties": properties,
        }
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        line = Line(moment, text, next_day if visit.late else moment.date())
        yield line
        if rng.random() < DUPLICATE_SHARE:
            yield line._replace(arrived_on=rng.choice((line.arrived_on, next_day)))


def _events(site: SampleSite, visit: Visit, rng: random.Random) -> Iterator[tuple[dt.datetime, str, dict[str, Any]]]:
    device, country = _device_and_country(site.team_id, visit.visitor)
    common = {
        "$session_id": str(visit.visit_id),
        "$host": site.host,
        "$browser": device.browser,
        "$os": device.os,
        "$device_type": device.device_type,
        "$viewport_width": device.viewport[0],
        "$viewport_height": device.viewport[1],
        "$geoip_country_code": country,
        "$lib": "web",
        **visit.source.properties(),
    }

    def on(path: str) -> dict[str, Any]:
        return {**common, "$current_url": f"https://{site.host}{path}", "$pathname": path}

    for moment, path in visit.views:
        yield moment, "$pageview", on(path)
    last_moment, last_path = visit.views[-1]
    if rng.random() < GOAL_SHARE:
        yield last_moment + dt.timedelta(seconds=4), site.goal, {**on(last_path), **_payment(site, visit)}
    if len(visit.views) > 1:
        yield last_moment + dt.timedelta(seconds=9), "$pageleave", on(last_path)


def _payment(site: SampleSite, visit: Visit) -> dict[str, str]:
    """Return the amount of an order, or nothing for another goal."""
    if site.goal != ORDER:
        return {}
    # A generator of its own, so that the rest of the visit does not depend on it.
    rng = _random("payment", site.team_id, visit.visit_id)
    currency, price, _ = rng.choices(PAYMENTS, [weight for *_, weight in PAYMENTS])[0]
    digits = 0 if currency == "JPY" else 2
    return {"revenue": f"{price * rng.uniform(0.4, 8.0):.{digits}f}", "currency": currency}


@functools.lru_cache(maxsize=2)
def _log_lines(site: SampleSite, day: dt.date) -> tuple[Line, ...]:
    """Return the requests of the visits that began on a day."""
    return tuple(line for visit in _visits(site, day) for line in _log_lines_of_visit(site, visit))


def _log_lines_of_visit(site: SampleSite, visit: Visit) -> Iterator[Line]:
    rng = _random("log", site.team_id, visit.visit_id)
    device, _ = _device_and_country(site.team_id, visit.visitor)
    network = DOCUMENTATION_NETWORKS[visit.visitor % len(DOCUMENTATION_NETWORKS)]
    address = f"{network}.{visit.visitor // len(DOCUMENTATION_NETWORKS) + 1}"
    referrer = "-" if visit.source.referrer == "$direct" else f"https://{visit.source.referrer}/"
    for moment, path in visit.views:
        broken = rng.random() < BROKEN_LINK_SHARE
        status, target = (404, f"{path}old") if broken else (200, path)
        yield _log_line(address, moment, target, status, rng.randint(900, 40_000), referrer, device.agent)
        referrer = f"https://{site.host}{path}"
        for asset in rng.sample(ASSETS, k=rng.randint(0, 2)):
            yield _log_line(address, moment, asset, 200, rng.randint(300, 90_000), referrer, device.agent)


def _bot_lines(site: SampleSite, day: dt.date) -> Iterator[Line]:
    rng = _random("bots", site.team_id, day)
    midnight = dt.datetime.combine(day, dt.time(), dt.UTC)
    for _ in range(DAILY_BOT_REQUESTS):
        moment = midnight + dt.timedelta(seconds=rng.uniform(0, 86_399))
        path = rng.choice(site.pages)[0]
        yield _log_line(BOT_ADDRESS, moment, path, 200, rng.randint(900, 40_000), "-", rng.choice(BOT_AGENTS))


def _log_line(address: str, moment: dt.datetime, path: str, status: int, size: int, referrer: str, agent: str) -> Line:
    """Return a request in the combined log format."""
    when = f"{moment:%d}/{MONTHS[moment.month - 1]}/{moment:%Y:%H:%M:%S} +0000"
    text = f'{address} - - [{when}] "GET {path} HTTP/1.1" {status} {size} "{referrer}" "{agent}"'
    return Line(moment, text, moment.date())


def _device_and_country(team_id: int, visitor: int) -> tuple[Device, str]:
    """Return a visitor's device and country, which never change."""
    rng = _random("visitor", team_id, visitor)
    device = rng.choices(DEVICES, [device.weight for device in DEVICES])[0]
    country = rng.choices([code for code, _ in COUNTRIES], [weight for _, weight in COUNTRIES])[0]
    return device, country


def _distinct_id(visit: Visit) -> str:
    second = visit.visitor % SECOND_ID_EVERY == 0 and visit.started_on.toordinal() % SECOND_ID_DAYS == 0
    return _second_id(visit.visitor) if second else _first_id(visit.visitor)


def _first_id(visitor: int) -> str:
    return f"visitor-{visitor}"


def _second_id(visitor: int) -> str:
    return f"device-of-{visitor}"


def _uuid(rng: random.Random) -> uuid.UUID:
    return uuid.UUID(int=rng.getrandbits(128), version=4)


def _random(*names: object) -> random.Random:
    """Return a generator whose seed is the names."""
    return random.Random(":".join(map(str, names)))  # noqa: S311 - for a sample, not for secrets


@click.command()
@click.option("--last-day", type=click.DateTime(["%Y-%m-%d"]), required=True, help="The newest day of the sample, UTC.")
@click.option("--days", type=click.IntRange(1, 366), default=DAYS, show_default=True)
def main(last_day: dt.datetime, days: int) -> None:
    """Put the sample into the configured object storage. Existing objects with the same content stay."""
    from dags.common.s3 import make_s3
    from dags.common.settings import get_settings

    settings = get_settings()
    objects = list(sample_objects(last_day.date(), days))
    put = put_sample(make_s3(settings), settings.object_storage_bucket, objects)
    lines = sum(sample_object.lines for sample_object in objects)
    print(f"{lines} lines in {len(objects)} objects, of which {put} are new.")


if __name__ == "__main__":
    main(prog_name="python -m dags.local.sample")
