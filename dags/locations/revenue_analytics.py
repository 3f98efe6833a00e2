"""Exchange rates, the ground of every amount of money in reports."""

from dags.common.owners import JobOwners
from dags.exchange_rate.assets import (
    daily_exchange_rates,
    daily_exchange_rates_in_clickhouse,
    hourly_exchange_rates,
    hourly_exchange_rates_in_clickhouse,
)
from dags.exchange_rate.checks import exchange_rates_are_complete, exchange_rates_are_fresh
from dags.exchange_rate.jobs import (
    daily_exchange_rates_job,
    daily_exchange_rates_schedule,
    exchange_rate_checks_job,
    exchange_rate_checks_schedule,
    hourly_exchange_rates_job,
    hourly_exchange_rates_schedule,
)
from dags.exchange_rate.resource import ExchangeRatesResource
from dags.locations import build_definitions, resources

defs = build_definitions(
    owner=JobOwners.TEAM_REVENUE_ANALYTICS,
    assets=[
        daily_exchange_rates,
        daily_exchange_rates_in_clickhouse,
        hourly_exchange_rates,
        hourly_exchange_rates_in_clickhouse,
    ],
    asset_checks=[exchange_rates_are_complete, exchange_rates_are_fresh],
    jobs=[daily_exchange_rates_job, exchange_rate_checks_job, hourly_exchange_rates_job],
    schedules=[daily_exchange_rates_schedule, exchange_rate_checks_schedule, hourly_exchange_rates_schedule],
    resources={**resources, "exchange_rates": ExchangeRatesResource()},
)
