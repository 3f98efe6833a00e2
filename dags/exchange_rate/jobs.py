"""The jobs and schedules of the exchange rates.

The schedules are on in every environment: turning them off on a laptop would read the environment at import, and a tick
without newer rates is skipped.
"""

import datetime as dt

import dagster as dg

from dags.common.owners import owned_by
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.exchange_rate.assets import (
    HOURLY_PARTITIONS,
    OWNER,
    daily_exchange_rates,
    daily_exchange_rates_in_clickhouse,
    hourly_exchange_rates,
    hourly_exchange_rates_in_clickhouse,
    no_intraday_rates,
)
from dags.exchange_rate.checks import exchange_rates_are_complete, exchange_rates_are_fresh
from dags.exchange_rate.resource import ExchangeRatesResource

daily_exchange_rates_job = dg.define_asset_job(
    "daily_exchange_rates_job",
    selection=dg.AssetSelection.assets(daily_exchange_rates, daily_exchange_rates_in_clickhouse),
    description="Fetches a day's final rates and stores them in ClickHouse.",
    # Storing a day again changes nothing, so a run whose process died is started again.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "3600", MAX_RETRIES_TAG: "2"}),
)

hourly_exchange_rates_job = dg.define_asset_job(
    "hourly_exchange_rates_job",
    selection=dg.AssetSelection.assets(hourly_exchange_rates, hourly_exchange_rates_in_clickhouse),
    description="Fetches the latest rates and stores them in ClickHouse as those of the day so far.",
    # The run of the next hour replaces this one.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "1800", MAX_RETRIES_TAG: "0"}),
)

exchange_rate_checks_job = dg.define_asset_job(
    "exchange_rate_checks_job",
    selection=dg.AssetSelection.checks(exchange_rates_are_fresh, exchange_rates_are_complete),
    description="Checks that the stored rates are fresh and complete, even if no run stored any.",
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "600", MAX_RETRIES_TAG: "1"}),
)


@dg.schedule(
    job=daily_exchange_rates_job,
    cron_schedule="28 0 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Yesterday's rates, after the source has closed the day.",
    **owned_by(OWNER),
)
def daily_exchange_rates_schedule(
    context: dg.ScheduleEvaluationContext, exchange_rates: ExchangeRatesResource
) -> dg.RunRequest | dg.SkipReason:
    """Request the day before the tick's scheduled time. Skip a day that the source does not have."""
    yesterday = context.scheduled_execution_time.astimezone(dt.UTC).date() - dt.timedelta(days=1)
    reason = exchange_rates.provider().why_not_covered(yesterday)
    return dg.SkipReason(reason) if reason else dg.RunRequest(partition_key=yesterday.isoformat())


@dg.schedule(
    job=hourly_exchange_rates_job,
    cron_schedule="45 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The rates of the current hour.",
    **owned_by(OWNER),
)
def hourly_exchange_rates_schedule(
    context: dg.ScheduleEvaluationContext, exchange_rates: ExchangeRatesResource
) -> dg.RunRequest | dg.SkipReason:
    """Request the hour of the tick. Skip it if the source has no intraday rates."""
    provider = exchange_rates.provider()
    if not provider.intraday:
        return dg.SkipReason(no_intraday_rates(provider))
    hour = context.scheduled_execution_time.astimezone(dt.UTC)
    return dg.RunRequest(partition_key=hour.strftime(HOURLY_PARTITIONS.fmt.replace("%M", "00")))


exchange_rate_checks_schedule = dg.ScheduleDefinition(
    name="exchange_rate_checks_schedule",
    job=exchange_rate_checks_job,
    cron_schedule="10 6 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Finds missing rates even if a schedule skipped or a run never started.",
    **owned_by(OWNER),
)
