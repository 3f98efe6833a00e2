"""What `make demo` shows: the exchange-rate jobs of the last 30 days, run for real, and what they left in ClickHouse.

What belongs here: the order of the show and its report. What does not: the jobs (`dags/exchange_rate/`), and starting
the services (`python -m dags.local up -- python -m dags.local.demo`).
"""

import datetime as dt
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster, cluster_from_settings
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.schema import apply_schema, create_database, is_clustered
from dags.common.settings import get_settings
from dags.exchange_rate.providers import ExchangeRatesProvider
from dags.exchange_rate.resource import exchange_rates_provider
from dags.exchange_rate.schedules import (
    daily_exchange_rates_job,
    daily_exchange_rates_schedule,
    hourly_exchange_rates_schedule,
)
from dags.local.__main__ import table
from dags.locations import revenue_analytics

if TYPE_CHECKING:
    from currency_converter import CurrencyConverter

DAYS = 30
AMOUNT = 100
CONVERSIONS = (("EUR", "USD"), ("USD", "JPY"), ("GBP", "EUR"), ("CHF", "SEK"), ("AUD", "CAD"))
# Stored rates have 10 decimals, so an amount of 100 is exact far beyond the 4 that are shown.
TOLERANCE = Decimal("0.00005")

ROWS_STATEMENT = """
SELECT count(), uniqExact(date), uniqExact(currency) FROM exchange_rate FINAL WHERE date BETWEEN %(first)s AND %(last)s
"""
CONVERSION_STATEMENT = """
SELECT
    dictGet('exchange_rate_dict', 'rate', %(source)s, toDate(%(day)s)),
    dictGet('exchange_rate_dict', 'rate', %(target)s, toDate(%(day)s))
"""


class DemoError(Exception):
    """The demo did not show what it should. The message is the reason."""


@dataclass(frozen=True)
class Conversion:
    """`AMOUNT` of one currency in another on a day, by ClickHouse's dictionary and by the currencyconverter package."""

    day: dt.date
    source: str
    target: str
    from_clickhouse: Decimal
    from_package: Decimal

    @property
    def equal(self) -> bool:
        """Whether both give the same amount."""
        return abs(self.from_clickhouse - self.from_package) < TOLERANCE

    def cells(self) -> list[str]:
        """A row of the report."""
        amounts = [f"{self.from_clickhouse:.4f}", f"{self.from_package:.4f}", "equal" if self.equal else "DIFFERENT"]
        return [f"{self.day:%a %Y-%m-%d}", self.source, self.target, *amounts]


def last_days(provider: ExchangeRatesProvider, today: dt.date, count: int) -> tuple[dt.date, dt.date]:
    """The first and the last of the newest `count` whole days that the source has. Raises DemoError without any."""
    for age_days in range(1, 1000):
        day = today - dt.timedelta(days=age_days)
        if provider.why_not_covered(day) is None:
            return day - dt.timedelta(days=count - 1), day
    raise DemoError(f"{provider.name} has no rates of the last 1000 days")


def run_daily_job(instance: dg.DagsterInstance, first: dt.date, last: dt.date) -> dg.ExecuteInProcessResult:
    """Runs the daily job for a range of days, as one run of the instance. Raises DemoError when the run fails."""
    job = revenue_analytics.defs.resolve_job_def(daily_exchange_rates_job.name)
    result = job.execute_in_process(
        instance=instance,
        # The tags of a backfill's run: the assets' backfill policy takes the whole range at once.
        tags={"dagster/asset_partition_range_start": str(first), "dagster/asset_partition_range_end": str(last)},
        run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
        raise_on_error=False,
    )
    if not result.success:
        failed = ", ".join(event.step_key or "" for event in result.all_events if event.is_step_failure)
        raise DemoError(
            f"run {result.run_id} of {job.name} failed in {failed or 'its start'}; its events are in make dev"
        )
    return result


def next_tick(schedule: dg.ScheduleDefinition, provider: ExchangeRatesProvider, now: dt.datetime) -> str:
    """What a schedule would do now, in words."""
    context = dg.build_schedule_context(scheduled_execution_time=now, resources={"exchange_rates": provider})
    tick = schedule.evaluate_tick(context)
    if tick.skip_message:
        return f"skips: {tick.skip_message}"
    return "asks for " + ", ".join(request.partition_key or "a run" for request in tick.run_requests or [])


def convert(
    cluster: ClickhouseCluster, package: "CurrencyConverter", day: dt.date, source: str, target: str
) -> Conversion:
    """Converts by ClickHouse's dictionary and by the package."""
    query = Query(CONVERSION_STATEMENT, {"source": source, "target": target, "day": day})
    ((source_rate, target_rate),) = cluster.any_host(query).result()
    from_package = package.convert(AMOUNT, source, target, day)
    return Conversion(day, source, target, AMOUNT * target_rate / source_rate, from_package)


def show(say: Callable[[str], None]) -> None:
    """The whole demo; `say` prints a line of progress. Raises DemoError, and what the parts raise."""
    from currency_converter import CurrencyConverter

    settings = get_settings()
    if settings.open_exchange_rates_app_id is not None:
        raise DemoError("it compares with the European Central Bank's rates: unset OPEN_EXCHANGE_RATES_APP_ID")
    provider = exchange_rates_provider(settings)
    now = dt.datetime.now(dt.UTC)
    first, last = last_days(provider, now.date(), DAYS)

    say("ClickHouse: applying the schema")
    create_database(settings)
    with cluster_from_settings(settings) as cluster, dg.DagsterInstance.get() as instance:
        changes = apply_schema(cluster, is_clustered(settings))
        say(f"ClickHouse: ran {len(changes)} statements on {', '.join(map(str, cluster.hosts))}")

        say(f"Dagster: running {daily_exchange_rates_job.name} for {first} to {last}, source: {provider.name}")
        started = time.monotonic()
        result = run_daily_job(instance, first, last)
        seconds = time.monotonic() - started
        say("ClickHouse: reading back")
        ((rows, days, currencies),) = cluster.any_host(Query(ROWS_STATEMENT, {"first": first, "last": last})).result()
        # The package, too, carries a rate over days on which the bank published nothing.
        package = CurrencyConverter(
            decimal=True, fallback_on_missing_rate=True, fallback_on_missing_rate_method="last_known"
        )
        last_sunday = last - dt.timedelta(days=last.isoweekday() % 7)
        conversions = [convert(cluster, package, last, *pair) for pair in CONVERSIONS]
        conversions.append(convert(cluster, package, last_sunday, *CONVERSIONS[0]))

    print(f"\nRuns, kept in {instance.root_directory} and shown by `make dev`")
    print(table(["job", "run", "seconds"], [[daily_exchange_rates_job.name, result.run_id, f"{seconds:.1f}"]]))
    print("\nChecks")
    for check in result.get_asset_check_evaluations():
        print(f"{check.check_name}: {'passed' if check.passed else f'{check.severity.value}: {check.description}'}")
    print("\nSchedules, at this moment")
    for schedule in (daily_exchange_rates_schedule, hourly_exchange_rates_schedule):
        print(f"{schedule.name} {next_tick(schedule, provider, now)}")
    print(f"\nClickHouse table exchange_rate, {first} to {last}")
    print(f"{rows} rows: {days} days, {currencies} currencies")
    print(f"\n{AMOUNT} units, converted by the dictionary exchange_rate_dict and by the currencyconverter package")
    print(table(["day", "from", "to", "ClickHouse", "package", ""], [one.cells() for one in conversions]))

    if days != DAYS:
        raise DemoError(f"ClickHouse has {days} of the {DAYS} days")
    if not all(one.equal for one in conversions):
        raise DemoError("conversions in ClickHouse differ from the package's own")


def main() -> int:
    """Runs the demo; returns the exit code."""
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {line}", flush=True)

    try:
        show(say)
    except DemoError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the last line says what went wrong
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    else:
        print(f"\nThe demo succeeded in {time.monotonic() - started:.1f} seconds.")
        return 0
    print(f"\nThe demo failed: {reason}\nThe services' logs are in .local/logs.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
