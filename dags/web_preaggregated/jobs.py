"""The jobs and schedules of the web tables."""

import datetime as dt

import dagster as dg

from dags.common.owners import owned_by
from dags.common.partitions import range_tags
from dags.common.schedules import skip_if_already_running
from dags.common.settings import Settings, get_settings
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.web_preaggregated.assets import (
    BOUNCES_DAILY,
    BOUNCES_HOURLY,
    OWNER,
    STATS_DAILY,
    STATS_HOURLY,
)
from dags.web_preaggregated.exports import BOUNCES_EXPORT_KEY, STATS_EXPORT_KEY
from dags.web_preaggregated.statements import ONE_DAY

web_analytics_daily_job = dg.define_asset_job(
    "web_analytics_daily_job",
    selection=dg.AssetSelection.assets(STATS_DAILY, BOUNCES_DAILY, STATS_EXPORT_KEY, BOUNCES_EXPORT_KEY),
    description="Computes days of the daily web tables, and exports them.",
    # Computing a day again gives the same result.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "18000", MAX_RETRIES_TAG: "1"}),
)

web_pre_aggregate_current_day_hourly_job = dg.define_asset_job(
    "web_pre_aggregate_current_day_hourly_job",
    selection=dg.AssetSelection.assets(STATS_HOURLY, BOUNCES_HOURLY),
    description="Computes the current day of the hourly web tables.",
    # The next hour computes the same day.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "3000", MAX_RETRIES_TAG: "0"}),
)


def skip_outside_production(settings: Settings) -> dg.SkipReason | None:
    """Return a skip reason outside production, where events are only loaded manually; None in production."""
    if settings.cloud_deployment is not None:
        return None
    return dg.SkipReason(
        "Scheduled runs of the web tables are disabled outside production (CLOUD_DEPLOYMENT is not set). Start the job "
        "manually."
    )


@dg.schedule(
    job=web_analytics_daily_job,
    cron_schedule="0 1 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Yesterday, and the day before again: its sessions have ended by now, so it is final.",
    **owned_by(OWNER),
)
def web_analytics_daily_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request the two days before the tick in one run."""
    yesterday = context.scheduled_execution_time.astimezone(dt.UTC).date() - ONE_DAY
    return (
        skip_outside_production(get_settings())
        or skip_if_already_running(context, web_analytics_daily_job.name, (STATS_DAILY, BOUNCES_DAILY))
        or dg.RunRequest(tags=range_tags(yesterday - ONE_DAY, yesterday))
    )


@dg.schedule(
    job=web_pre_aggregate_current_day_hourly_job,
    cron_schedule="20 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The current day by hour.",
    **owned_by(OWNER),
)
def web_pre_aggregate_current_day_hourly_schedule(
    context: dg.ScheduleEvaluationContext,
) -> dg.RunRequest | dg.SkipReason:
    """Request the current day, unless a run of it is still in progress."""
    job_name = web_pre_aggregate_current_day_hourly_job.name
    return (
        skip_outside_production(get_settings())
        or skip_if_already_running(context, job_name, (STATS_HOURLY, BOUNCES_HOURLY))
        or dg.RunRequest()
    )
