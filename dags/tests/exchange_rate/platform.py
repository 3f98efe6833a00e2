"""The Dagster, ClickHouse and S3 that tests of the assets run on, and a source of rates that a test fills."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query, Rows
from dags.common.json_io_manager import JsonObjectIOManager
from dags.exchange_rate.assets import (
    daily_exchange_rates,
    daily_exchange_rates_in_clickhouse,
    hourly_exchange_rates,
    hourly_exchange_rates_in_clickhouse,
)
from dags.exchange_rate.checks import exchange_rates_are_complete, exchange_rates_are_fresh
from dags.exchange_rate.jobs import (
    daily_exchange_rates_job,
    exchange_rate_checks_job,
    hourly_exchange_rates_job,
)
from dags.exchange_rate.providers import ExchangeRatesError, ExchangeRatesProvider
from dags.exchange_rate.rates import MAIN_CURRENCIES, Rates
from dags.exchange_rate.resource import ExchangeRatesResource
from dags.tests.resources import clickhouse_resource

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def main_figures(**figures: str) -> dict[str, Decimal]:
    """Every main currency at 2 for one dollar, the dollar at 1, and `figures` in place of some of them."""
    main = {currency: Decimal(2) for currency in MAIN_CURRENCIES} | {"USD": Decimal(1)}
    return main | {currency: Decimal(figure) for currency, figure in figures.items()}


def rates_of(date: dt.date, **figures: str) -> Rates:
    """Rates published on their day."""
    return Rates(date, date, "a source of the test", main_figures(**figures))


@dataclass
class FakeProvider:
    """A source that has the given days and latest rates."""

    days: dict[dt.date, Rates] = field(default_factory=dict)
    latest: Rates | None = None
    intraday: bool = True
    name: str = "a source of the test"
    minimum_currencies: int = len(MAIN_CURRENCIES)

    def add(self, date: dt.date, **figures: str) -> None:
        self.days[date] = rates_of(date, **figures)

    def set_latest(self, published_at: dt.datetime, **figures: str) -> None:
        self.latest = Rates(published_at.date(), published_at.date(), self.name, main_figures(**figures), published_at)

    def why_not_covered(self, date: dt.date) -> str | None:
        return None if date in self.days else f"{self.name} has no rates of {date}. Add them."

    def daily_rates(self, date: dt.date) -> Rates:
        return self.days[date]

    def latest_rates(self) -> Rates:
        if self.latest is None:
            raise ExchangeRatesError("no latest rates were given")
        return self.latest


def provider_resource(provider: ExchangeRatesProvider) -> ExchangeRatesResource:
    """The resource `exchange_rates` with this source in place of the one that the settings choose."""

    class GivenExchangeRates(ExchangeRatesResource):
        def provider(self) -> ExchangeRatesProvider:
            return provider

    return GivenExchangeRates()


@dataclass(frozen=True)
class Platform:
    """Runs the real jobs, in a real Dagster instance, on a real ClickHouse."""

    instance: dg.DagsterInstance
    cluster: ClickhouseCluster
    json_io_manager: JsonObjectIOManager

    def definitions(self, provider: ExchangeRatesProvider, cluster: ClickhouseCluster | None = None) -> dg.Definitions:
        return dg.Definitions(
            assets=[
                daily_exchange_rates,
                daily_exchange_rates_in_clickhouse,
                hourly_exchange_rates,
                hourly_exchange_rates_in_clickhouse,
            ],
            asset_checks=[exchange_rates_are_complete, exchange_rates_are_fresh],
            jobs=[daily_exchange_rates_job, exchange_rate_checks_job, hourly_exchange_rates_job],
            resources={
                "clickhouse": clickhouse_resource(cluster or self.cluster),
                "exchange_rates": provider_resource(provider),
                "json_io_manager": self.json_io_manager,
            },
        )

    def run(
        self,
        job_name: str,
        provider: ExchangeRatesProvider,
        *partitions: str,
        cluster: ClickhouseCluster | None = None,
        **config_in_clickhouse: Any,
    ) -> dg.ExecuteInProcessResult:
        """Run a job for no partition, for one, or for a range of two. Errors are in the result."""
        job = self.definitions(provider, cluster).resolve_job_def(job_name)
        asset = job_name.replace("_job", "_in_clickhouse")
        return job.execute_in_process(
            instance=self.instance,
            partition_key=partitions[0] if len(partitions) == 1 else None,
            tags={RANGE_START_TAG: partitions[0], RANGE_END_TAG: partitions[1]} if len(partitions) == 2 else None,
            run_config={"ops": {asset: {"config": config_in_clickhouse}}} if config_in_clickhouse else None,
            raise_on_error=False,
        )

    def run_days(
        self, provider: ExchangeRatesProvider, first: dt.date, last: dt.date | None = None, **config: Any
    ) -> dg.ExecuteInProcessResult:
        """Run the daily job."""
        days = [day.isoformat() for day in (first, last) if day is not None]
        return self.run("daily_exchange_rates_job", provider, *days, **config)

    def rows(self, statement: str, **parameters: Any) -> Rows:
        """Query ClickHouse."""
        return self.cluster.any_host(Query(statement, parameters)).result()

    def stored_rows(self) -> Rows:
        """Return every row of the table, with replaced rows that are not merged yet."""
        return self.rows("SELECT date, currency, rate, version FROM exchange_rate ORDER BY ALL")

    def rate(self, currency: str, date: dt.date) -> Decimal:
        """Return a rate from the dictionary."""
        ((value,),) = self.rows(
            "SELECT dictGet('exchange_rate_dict', 'rate', %(currency)s, toDate(%(date)s))", currency=currency, date=date
        )
        assert isinstance(value, Decimal)
        return value

    def metadata(self, asset: str, partition: str) -> Mapping[str, Any]:
        """The metadata of a partition's newest materialization."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition]), limit=1
        ).records
        materialization = records[0].asset_materialization
        assert materialization is not None
        return {name: value.value for name, value in materialization.metadata.items()}
