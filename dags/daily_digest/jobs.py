"""The job and the schedule of the daily digest."""

import datetime as dt

import dagster as dg

from dags.common.owners import owned_by
from dags.common.partitions import range_tags
from dags.common.schedules import skip_if_already_running
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.daily_digest.assets import ONE_DAY, OWNER, analytics_digest_daily, days_computed

analytics_digest_daily_job = dg.define_asset_job(
    "analytics_digest_daily_job",
    selection=dg.AssetSelection.assets(analytics_digest_daily),
    description="Computes days of the digest.",
    # Computing a day again converges, so a run whose process died is started again.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "1800", MAX_RETRIES_TAG: "1"}),
)


@dg.schedule(
    job=analytics_digest_daily_job,
    # The web tables start at 01:00, and their job may take 5 hours.
    cron_schedule="20 6 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Yesterday, and the day before once more, as the web tables do.",
    **owned_by(OWNER),
)
def analytics_digest_daily_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request the two days before the tick in one run. Skip the tick if yesterday's web tables are not computed yet."""
    yesterday = context.scheduled_execution_time.astimezone(dt.UTC).date() - ONE_DAY
    computed = days_computed(context.instance)
    if yesterday not in computed:
        return dg.SkipReason(
            f"The web tables of {yesterday} are not computed: web_analytics_daily_job does it. The next tick includes "
            "this day."
        )
    first = yesterday - ONE_DAY if yesterday - ONE_DAY in computed else yesterday
    already_running = skip_if_already_running(context, analytics_digest_daily_job.name, [analytics_digest_daily.key])
    return already_running or dg.RunRequest(tags=range_tags(first, yesterday))
