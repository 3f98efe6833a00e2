"""A Dagster and a ClickHouse for the tests of the digest, and a model of the digest in plain Python."""

import datetime as dt
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID, uuid4

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert, Query, Rows
from dags.common.partitions import range_tags
from dags.daily_digest.digest import Digest, Page
from dags.locations.analytics_platform import defs
from dags.tests.resources import clickhouse_resource
from dags.tests.web_preaggregated.events import DAY, Session, Web, at

JOB = "analytics_digest_daily_job"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)", re.ASCII)
NOTHING = object()
NOON = at("12:00:00")


@dataclass(frozen=True)
class Order:
    """A revenue event. A property that is NOTHING is absent."""

    revenue: object = "10"
    currency: object = "USD"
    team_id: int = 1
    timestamp: dt.datetime = NOON
    event: str = "order_placed"
    distinct_id: str = "visitor"
    uuid: UUID = field(default_factory=uuid4)

    @property
    def properties(self) -> str:
        both = {"revenue": self.revenue, "currency": self.currency}
        return json.dumps({name: value for name, value in both.items() if value is not NOTHING})

    @property
    def amount(self) -> Decimal | None:
        """Return the amount by the documented rules."""
        if isinstance(self.revenue, bool) or not isinstance(self.revenue, str | int):
            return None
        if not NUMBER.fullmatch(str(self.revenue)) or abs(Decimal(self.revenue)) >= 10**12:
            return None
        return Decimal(self.revenue).quantize(Decimal("0.000001"), ROUND_DOWN)


@dataclass(frozen=True)
class Platform:
    """Runs the real job, in a real Dagster instance, on a real ClickHouse."""

    instance: dg.DagsterInstance
    cluster: ClickhouseCluster

    @property
    def web(self) -> Web:
        return Web(self.cluster)

    def order(self, *orders: Order) -> None:
        """Insert orders as one part, so that duplicates of two calls are not merged."""
        names = ["properties", *(one.name for one in fields(Order) if one.name not in ("revenue", "currency"))]
        rows = [[getattr(order, name) for name in names] for order in orders]
        if rows:
            self.cluster.any_host(Insert("events", names, rows)).result()

    def rates(self, rates: Mapping[str, str], day: dt.date = DAY) -> None:
        """Store the rates of a day in place of all others."""
        self.rows("TRUNCATE TABLE exchange_rate")
        rows = [(currency, day, Decimal(rate), 1) for currency, rate in rates.items()]
        self.cluster.any_host(Insert("exchange_rate", ("currency", "date", "rate", "version"), rows)).result()
        self.rows("SYSTEM RELOAD DICTIONARY exchange_rate_dict")

    def web_tables_of(self, *days: dt.date) -> None:
        """Record that the web tables of these days were computed, whatever they contain."""
        for day in days:
            self.instance.report_runless_asset_event(dg.AssetMaterialization("web_sessions_daily", partition=str(day)))

    def run(self, *days: dt.date, definitions: dg.Definitions = defs, job_name: str = JOB) -> dg.ExecuteInProcessResult:
        """Run the job for no day, for one, or for a range of two. Errors are in the result."""
        own = dg.Definitions(
            assets=definitions.assets,
            asset_checks=definitions.asset_checks,
            jobs=[*(definitions.jobs or []), dg.define_asset_job("checks_job", dg.AssetSelection.all_asset_checks())],
            resources={"clickhouse": clickhouse_resource(self.cluster)},
        )
        return own.resolve_job_def(job_name).execute_in_process(
            instance=self.instance,
            partition_key=str(days[0]) if len(days) == 1 else None,
            tags=range_tags(days[0], days[1]) if len(days) == 2 else None,
            raise_on_error=False,
        )

    def digests(self) -> dict[tuple[int, dt.date], Digest]:
        """Return the rows of the table."""
        names = ", ".join(one.name for one in fields(Digest))
        found = {}
        for row in self.rows(f"SELECT {names} FROM analytics_digest_daily"):  # noqa: S608 - names from code
            values = dict(zip([one.name for one in fields(Digest)], row, strict=True))
            pages = tuple(Page(*page) for page in values["top_pages"])
            values |= {"top_pages": pages, "currencies_without_rate": tuple(values["currencies_without_rate"])}
            digest = Digest(**values)
            assert (digest.team_id, digest.day) not in found, "a team has two rows of one day"
            found[digest.team_id, digest.day] = digest
        return found

    def metadata(self, day: dt.date = DAY) -> Mapping[str, Any]:
        """Return the metadata of a day's newest materialization."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey("analytics_digest_daily"), asset_partitions=[str(day)]), limit=1
        ).records
        found = records[0].asset_materialization
        assert found is not None
        return {name: value.value for name, value in found.metadata.items()}

    def rows(self, statement: str, **parameters: object) -> Rows:
        """Query ClickHouse."""
        return self.cluster.any_host(Query(statement, parameters)).result()


def digests_of(
    day: dt.date, sessions: Iterable[Session], orders: Iterable[Order], rates: Mapping[str, str]
) -> dict[tuple[int, dt.date], Digest]:
    """Return a day's digests from its sessions and orders, one by one and in fractions."""
    of_day = [session for session in sessions if session.start.date() == day]
    placed = {order.uuid: order for order in orders if order.event == "order_placed" and order.timestamp.date() == day}
    teams = {session.team_id for session in of_day} | {order.team_id for order in placed.values()}
    return {
        (team, day): _digest_of(
            team,
            day,
            [session for session in of_day if session.team_id == team],
            [order for order in placed.values() if order.team_id == team],
            rates,
        )
        for team in teams
    }


def _digest_of(
    team_id: int, day: dt.date, sessions: Sequence[Session], orders: Sequence[Order], rates: Mapping[str, str]
) -> Digest:
    views = Counter((page.host, page.pathname) for session in sessions for page in session.pages)
    top = sorted(views.items(), key=lambda item: (-item[1], item[0]))[:5]
    dollars, converted, without_amount, without_rate = Fraction(0), 0, 0, 0
    currencies = set()
    for order in orders:
        code = order.currency.upper() if isinstance(order.currency, str) else ""
        currency = code if re.fullmatch("[A-Z0-9]{3,10}", code) else ""
        if currency not in rates:
            currencies.add(currency)
        if order.amount is None:
            without_amount += 1
        elif currency not in rates:
            without_rate += 1
        else:
            converted += 1
            dollars += Fraction(order.amount) / Fraction(Decimal(rates[currency]))
    return Digest(
        team_id,
        day,
        len({session.person_id for session in sessions}) if sessions else None,
        len({session.session_id for session in sessions}) if sessions else None,
        sum(views.values()) if sessions else None,
        tuple(Page(host, path, count) for (host, path), count in top),
        len(orders),
        converted,
        without_amount,
        without_rate,
        tuple(sorted(currencies)),
        None if orders and not converted else to_cents(dollars),
    )


def to_cents(dollars: Fraction) -> Decimal:
    """Return the amount rounded to cents, half to even."""
    return (Decimal(round(dollars * 100)) / 100).quantize(Decimal("0.01"))
