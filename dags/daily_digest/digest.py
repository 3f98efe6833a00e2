"""The digest of a day: read from the web tables and the events, added up, written to `analytics_digest_daily`.

A revenue event is an event `order_placed`. Its property `revenue` is the amount, a decimal number (a JSON number, which
holds about 15 digits, or a text, which holds them all) of less than 10^12; digits after the sixth decimal are dropped.
A refund is a negative amount. Its property `currency` is an ISO 4217 code.

The amounts of one currency are added exactly and divided by the rate of the day of the event (UTC); US dollars need no
rate. The sum over currencies is rounded once, to cents, half to even. An event without a valid amount, or whose
currency has no rate, is in no sum and is counted separately.
"""

import datetime as dt
import decimal
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert, Query
from dags.common.clickhouse.staging import check_structure, staging, swap_statement
from dags.common.clickhouse.tables import ANALYTICS_DIGEST_DAILY

if TYPE_CHECKING:
    from clickhouse_driver import Client

MAX_TOP_PAGES = 5
TIMEOUT_SECONDS = 1200.0
CENT = Decimal("0.01")
# Enough digits for a sum of amounts divided by a rate to be right to the cent.
EXACT = decimal.Context(prec=60, rounding=decimal.ROUND_HALF_EVEN)

# A larger GROUP BY spills to disk.
SETTINGS = {"max_bytes_before_external_group_by": 400 * 2**20, "max_memory_usage": 2 * 2**30}

OF_DAY = "toYYYYMMDD(started_at) = toYYYYMMDD(toDate(%(day)s))"
TRAFFIC_STATEMENT = f"""
SELECT team_id, uniqExact(person_id), count(), sum(pageviews) FROM web_sessions WHERE {OF_DAY} GROUP BY team_id
"""  # noqa: S608 - a constant
TOP_PAGES_STATEMENT = f"""
SELECT team_id, toString(page.host) AS host, toString(page.pathname) AS pathname, count() AS views
FROM web_sessions ARRAY JOIN pages AS page WHERE {OF_DAY}
GROUP BY team_id, host, pathname
ORDER BY team_id, views DESC, host, pathname LIMIT %(pages)s BY team_id
"""  # noqa: S608 - a constant
# The amount is matched first, since the conversion reads "e5" as 0. A currency that is not a code counts as none:
# otherwise a sender's mistake could make as many groups as there are events.
REVENUE_STATEMENT = """
SELECT
    team_id,
    if(match(code, '^[A-Z0-9]{3,10}$'), code, '') AS currency,
    count(),
    countIf(amount IS NULL),
    sum(ifNull(amount, toDecimal64(0, 6))),
    if(currency = 'USD', toDecimal64(1, 10), dictGet('exchange_rate_dict', 'rate', currency, toDate(%(day)s)))
FROM (
    SELECT
        team_id,
        upper(JSONExtractString(properties, 'currency')) AS code,
        trim(BOTH '"' FROM JSONExtractRaw(properties, 'revenue')) AS text,
        match(text, '^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]{1,3})?$') AS is_number,
        if(is_number, toDecimal64OrNull(text, 6), NULL) AS amount
    FROM events FINAL
    WHERE event = 'order_placed'
        AND timestamp >= toDateTime64(%(day)s, 6, 'UTC')
        AND timestamp < toDateTime64(%(day)s, 6, 'UTC') + INTERVAL 1 DAY
)
GROUP BY team_id, currency ORDER BY team_id, currency
"""
TOTALS_STATEMENT = """
SELECT day, sum(ifNull(pageviews, 0)), sum(revenue_usd) FROM analytics_digest_daily
WHERE day BETWEEN %(first)s AND %(last)s GROUP BY day
"""


class Page(NamedTuple):
    """A page and its pageviews on a day."""

    host: str
    pathname: str
    pageviews: int


@dataclass(frozen=True)
class Traffic:
    """A team's day in the web tables."""

    visitors: int
    sessions: int
    pageviews: int


@dataclass(frozen=True)
class Revenue:
    """The revenue events of a team's day in one currency. `amount` is in it; `rate` is units for one US dollar."""

    currency: str
    events: int
    events_without_amount: int
    amount: Decimal
    rate: Decimal | None


@dataclass(frozen=True)
class Digest:
    """A row of `analytics_digest_daily`. The comments of the table's columns describe the fields."""

    team_id: int
    day: dt.date
    visitors: int | None
    sessions: int | None
    pageviews: int | None
    top_pages: tuple[Page, ...]
    revenue_events: int
    revenue_events_converted: int
    revenue_events_without_amount: int
    revenue_events_without_rate: int
    currencies_without_rate: tuple[str, ...]
    revenue_usd: Decimal | None


@dataclass(frozen=True)
class Totals:
    """The sums over all teams of one day. Revenue is None when no revenue event of the day could be converted."""

    pageviews: int
    revenue_usd: float | None


def digest_of(
    team_id: int, day: dt.date, traffic: Traffic | None, pages: Iterable[Page], revenue: Sequence[Revenue]
) -> Digest:
    """Return a team's day, added up. An amount that cannot be converted is counted, and is not zero."""
    converted = [(one, one.rate) for one in revenue if one.rate]
    without_rate = [one for one in revenue if not one.rate]
    events = sum(one.events for one in revenue)
    events_converted = sum(one.events - one.events_without_amount for one, _ in converted)
    with decimal.localcontext(EXACT):
        dollars = sum((one.amount / rate for one, rate in converted), Decimal(0)).quantize(CENT)
    return Digest(
        team_id,
        day,
        traffic.visitors if traffic else None,
        traffic.sessions if traffic else None,
        traffic.pageviews if traffic else None,
        tuple(pages),
        revenue_events=events,
        revenue_events_converted=events_converted,
        revenue_events_without_amount=sum(one.events_without_amount for one in revenue),
        revenue_events_without_rate=sum(one.events - one.events_without_amount for one in without_rate),
        currencies_without_rate=tuple(one.currency for one in without_rate),
        revenue_usd=None if events and not events_converted else dollars,
    )


def write_digests(cluster: ClickhouseCluster, days: Sequence[dt.date], run_id: str) -> Mapping[dt.date, list[Digest]]:
    """Compute days (UTC), replace the table's partition of each, and return the digests by day.

    Repeating a call converges. Hosts that do not replicate each compute their own rows. Raises StagingError, and what
    the cluster raises.
    """

    def work(client: "Client") -> dict[dt.date, list[Digest]]:
        return {day: _write_day(client, day, run_id, cluster.database) for day in days}

    digests: dict[dt.date, list[Digest]] = defaultdict(list)
    table = ANALYTICS_DIGEST_DAILY.name
    found_by_host = cluster.map_write_hosts(table, work, retryable=True, timeout_seconds=TIMEOUT_SECONDS).result()
    for found in found_by_host.values():
        for day, of_day in found.items():
            digests[day] += of_day
    return digests


def totals_of(digests: Sequence[Digest]) -> Totals:
    """Return the sums over the teams of one day."""
    known = [digest.revenue_usd for digest in digests if digest.revenue_usd is not None]
    return Totals(
        sum(digest.pageviews or 0 for digest in digests),
        float(sum(known, Decimal(0))) if known or not digests else None,
    )


def read_totals(cluster: ClickhouseCluster, first: dt.date, last: dt.date) -> dict[dt.date, Totals]:
    """Return the sums over all teams of each stored day from the first to the last."""
    rows = cluster.any_host(Query(TOTALS_STATEMENT, {"first": first, "last": last})).result()
    return {day: Totals(pageviews, None if dollars is None else float(dollars)) for day, pageviews, dollars in rows}


def _write_day(client: "Client", day: dt.date, run_id: str, database: str) -> list[Digest]:
    digests = _read(client, day)
    with staging(client, [ANALYTICS_DIGEST_DAILY], run_id, database) as (target,):
        check_structure(client, target, ANALYTICS_DIGEST_DAILY)
        if digests:
            rows = [astuple(digest) for digest in digests]
            Insert(target, [column.name for column in fields(Digest)], rows)(client)
        Query(swap_statement(ANALYTICS_DIGEST_DAILY, target, day, len(digests)))(client)
    return digests


def _read(client: "Client", day: dt.date) -> list[Digest]:
    def ask(statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return Query(statement, {"day": day, **parameters}, SETTINGS)(client)

    traffic = {team_id: Traffic(*counts) for team_id, *counts in ask(TRAFFIC_STATEMENT)}
    pages = defaultdict(list)
    for team_id, *page in ask(TOP_PAGES_STATEMENT, pages=MAX_TOP_PAGES):
        pages[team_id].append(Page(*page))
    revenue = defaultdict(list)
    for team_id, *sums in ask(REVENUE_STATEMENT):
        revenue[team_id].append(Revenue(*sums))
    return [
        digest_of(team_id, day, traffic.get(team_id), pages[team_id], revenue[team_id])
        for team_id in sorted({*traffic, *revenue})
    ]
