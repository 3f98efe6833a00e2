"""The first part of the demo: the exchange rates of the last 30 days, and conversions with them in ClickHouse."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.partitions import range_tags
from dags.exchange_rate.jobs import (
    daily_exchange_rates_job,
    daily_exchange_rates_schedule,
    hourly_exchange_rates_schedule,
)
from dags.exchange_rate.providers import ExchangeRatesProvider
from dags.exchange_rate.resource import ExchangeRatesResource, exchange_rates_provider
from dags.local.demo.stage import DemoError, Stage
from dags.local.text import table
from dags.locations import revenue_analytics

if TYPE_CHECKING:
    from currency_converter import CurrencyConverter

DAYS = 30
AMOUNT = 100
CONVERSIONS = (("EUR", "USD"), ("USD", "JPY"), ("GBP", "EUR"), ("CHF", "SEK"), ("AUD", "CAD"))
# Stored rates have 10 decimals, so a converted amount of 100 is exact beyond the 4 decimals printed.
TOLERANCE = Decimal("0.00005")

ROWS_STATEMENT = """
SELECT count(), uniqExact(date), uniqExact(currency) FROM exchange_rate FINAL WHERE date BETWEEN %(first)s AND %(last)s
"""
CONVERSION_STATEMENT = """
SELECT
    dictGet('exchange_rate_dict', 'rate', %(source)s, toDate(%(day)s)),
    dictGet('exchange_rate_dict', 'rate', %(target)s, toDate(%(day)s))
"""


@dataclass(frozen=True)
class Conversion:
    """`AMOUNT` of a currency, converted on a day by ClickHouse's dictionary and by the currencyconverter package."""

    day: dt.date
    source: str
    target: str
    from_clickhouse: Decimal
    from_package: Decimal

    @property
    def equal(self) -> bool:
        """Whether both results are equal."""
        return abs(self.from_clickhouse - self.from_package) < TOLERANCE

    def cells(self) -> list[str]:
        """Return a row of the report."""
        amounts = [f"{self.from_clickhouse:.4f}", f"{self.from_package:.4f}", "equal" if self.equal else "DIFFERENT"]
        return [f"{self.day:%a %Y-%m-%d}", self.source, self.target, *amounts]


def last_days(provider: ExchangeRatesProvider, today: dt.date, count: int) -> tuple[dt.date, dt.date]:
    """Return the first and the last of the newest `count` days that the source has. Raises DemoError if it has none."""
    for age_days in range(1, 1000):
        day = today - dt.timedelta(days=age_days)
        if provider.why_not_covered(day) is None:
            return day - dt.timedelta(days=count - 1), day
    raise DemoError(f"{provider.name} has no rates of the last 1000 days")


def next_tick(schedule: dg.ScheduleDefinition, now: dt.datetime) -> str:
    """Return what a schedule would do now, as text."""
    context = dg.build_schedule_context(
        scheduled_execution_time=now, resources={"exchange_rates": ExchangeRatesResource()}
    )
    tick = schedule.evaluate_tick(context)
    if tick.skip_message:
        return f"skips: {tick.skip_message}"
    return "requests " + ", ".join(request.partition_key or "a run" for request in tick.run_requests or [])


def convert(
    cluster: ClickhouseCluster, package: "CurrencyConverter", day: dt.date, source: str, target: str
) -> Conversion:
    """Convert `AMOUNT` with ClickHouse's dictionary and with the package."""
    query = Query(CONVERSION_STATEMENT, {"source": source, "target": target, "day": day})
    ((source_rate, target_rate),) = cluster.any_host(query).result()
    from_package = package.convert(AMOUNT, source, target, day)
    return Conversion(day, source, target, AMOUNT * target_rate / source_rate, from_package)


def show(stage: Stage) -> None:
    """Run the jobs and print their results. Raises DemoError when a job fails or the results are wrong."""
    from currency_converter import CurrencyConverter

    if stage.settings.open_exchange_rates_app_id is not None:
        raise DemoError("the demo compares with the European Central Bank's rates: unset OPEN_EXCHANGE_RATES_APP_ID")
    provider = exchange_rates_provider(stage.settings)
    now = dt.datetime.now(dt.UTC)
    first, last = last_days(provider, now.date(), DAYS)

    stage.say(f"Dagster: running {daily_exchange_rates_job.name} for {first} to {last}, source: {provider.name}")
    # The tags of a backfill's run: by their backfill policy, the assets process the whole range at once.
    tags = range_tags(first, last)
    stage.run(revenue_analytics.defs, daily_exchange_rates_job.name, tags=tags)
    stage.say("ClickHouse: reading the rates back")
    query = Query(ROWS_STATEMENT, {"first": first, "last": last})
    ((rows, days, currencies),) = stage.cluster.any_host(query).result()
    # The package, too, uses the last rate on days without a publication.
    package = CurrencyConverter(
        decimal=True, fallback_on_missing_rate=True, fallback_on_missing_rate_method="last_known"
    )
    last_sunday = last - dt.timedelta(days=last.isoweekday() % 7)
    conversions = [convert(stage.cluster, package, last, *pair) for pair in CONVERSIONS]
    conversions.append(convert(stage.cluster, package, last_sunday, *CONVERSIONS[0]))

    print("\nSchedules, now")
    for schedule in (daily_exchange_rates_schedule, hourly_exchange_rates_schedule):
        print(f"{schedule.name} {next_tick(schedule, now)}")
    print(f"\nClickHouse table exchange_rate, {first} to {last}")
    print(f"{rows} rows: {days} days, {currencies} currencies")
    print(f"\n{AMOUNT} units, converted by the dictionary exchange_rate_dict and by the currencyconverter package")
    head = ["day", "from", "to", "ClickHouse", "package", ""]
    print(table(head, [conversion.cells() for conversion in conversions]), end="\n\n")

    if days != DAYS:
        raise DemoError(f"ClickHouse has {days} of the {DAYS} days")
    if not all(conversion.equal for conversion in conversions):
        raise DemoError("conversions in ClickHouse differ from those of the package")
