"""The jobs, the schedules and the sensor of the sessions."""

import datetime as dt
from collections.abc import Iterator, Sequence

import dagster as dg

from dags.common.automation import following_sensor
from dags.common.backfills import partitions_in_backfills
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.owners import owned_by, owner_tags
from dags.common.partitions import days_of_tags, range_tags
from dags.common.resources import ClickhouseResource
from dags.common.schedules import UNFINISHED, skip_if_already_running
from dags.common.settings import Settings, get_settings
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG, PRIORITY_TAG
from dags.web_preaggregated.assets import (
    DAILY_PARTITIONS,
    OWNER,
    SESSIONS_CURRENT_DAY,
    SESSIONS_DAILY,
    max_partitions_per_run,
)
from dags.web_preaggregated.checks import SESSIONS_EQUAL_RAW_EVENTS
from dags.web_preaggregated.exports import REPORT_EXPORT_KEY, SESSIONS_EXPORT_KEY
from dags.web_preaggregated.override_days import record_override_days, unrecorded_groups
from dags.web_preaggregated.recompute import DEBOUNCE, WorkInProgress, plan_recompute
from dags.web_preaggregated.stale_days import StaleDay, computed_lately, stale_days
from dags.web_preaggregated.statements import ONE_DAY
from dags.web_preaggregated.teams import selected_teams

# On the runs that recompute_stale_days requests. Runs without a priority, such as the hourly one, start before them.
STALE_DAYS_TAG = "web_analytics/stale_days"
STALE_DAYS_PRIORITY = "-1"
# Looking up the days of new overrides reads their visitors' events.
MIN_TIME_BETWEEN_OVERRIDE_RUNS = dt.timedelta(minutes=20)
WEB_TABLES_DAILY = frozenset({SESSIONS_DAILY})
# The days of a run have few materializations each.
MAX_RECORDS = 1000

web_analytics_daily_job = dg.define_asset_job(
    "web_analytics_daily_job",
    # The check of the last 31 days has a job of its own.
    selection=dg.AssetSelection.assets(SESSIONS_DAILY, SESSIONS_EXPORT_KEY, REPORT_EXPORT_KEY)
    - dg.AssetSelection.checks(SESSIONS_EQUAL_RAW_EVENTS),
    description="Computes the sessions of days, checks and exports them.",
    # Computing a day again gives the same result.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "18000", MAX_RETRIES_TAG: "1"}),
)

web_pre_aggregate_current_day_hourly_job = dg.define_asset_job(
    "web_pre_aggregate_current_day_hourly_job",
    selection=dg.AssetSelection.assets(SESSIONS_CURRENT_DAY),
    description="Computes the sessions of the current day.",
    # The next hour computes the same day.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "3000", MAX_RETRIES_TAG: "0"}),
)

web_sessions_check_job = dg.define_asset_job(
    "web_sessions_check_job",
    # Freshness is checked here and not only by the jobs that have just computed the table.
    selection=dg.AssetSelection.checks(
        SESSIONS_EQUAL_RAW_EVENTS,
        dg.AssetCheckKey(SESSIONS_DAILY, "web_sessions_daily_is_fresh"),
        dg.AssetCheckKey(SESSIONS_CURRENT_DAY, "web_sessions_current_day_is_fresh"),
    ),
    description="Compares the last days of the sessions with the raw events, and looks for days that are missing.",
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "7200", MAX_RETRIES_TAG: "1"}),
)


exports_follow_web_tables = following_sensor(
    "exports_follow_web_tables", dg.AssetSelection.assets(SESSIONS_EXPORT_KEY, REPORT_EXPORT_KEY), OWNER, 7200
)


@dg.op(tags=owner_tags(OWNER))
def find_override_days(context: dg.OpExecutionContext, clickhouse: ClickhouseResource) -> None:
    """Record the days with events of the visitors whose person overrides changed."""
    days = record_override_days(clickhouse.cluster(context), context.run_id)
    bounds = {"first_day": days[0].isoformat(), "last_day": days[-1].isoformat()} if days else {}
    context.add_output_metadata({"days": len(days), **bounds})


@dg.job(**owned_by(OWNER, **{MAX_RUNTIME_TAG: "3600", MAX_RETRIES_TAG: "0"}))
def record_override_days_job() -> None:
    """Finds the days that new person overrides change, so that recompute_stale_days requests them."""
    find_override_days()


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
        or skip_if_already_running(context, web_analytics_daily_job.name, (SESSIONS_DAILY,))
        or dg.RunRequest(tags=range_tags(yesterday - ONE_DAY, yesterday))
    )


@dg.schedule(
    job=web_pre_aggregate_current_day_hourly_job,
    cron_schedule="20 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The current day, every hour.",
    **owned_by(OWNER),
)
def web_pre_aggregate_current_day_hourly_schedule(
    context: dg.ScheduleEvaluationContext,
) -> dg.RunRequest | dg.SkipReason:
    """Request the current day, unless a run of it is still in progress."""
    job_name = web_pre_aggregate_current_day_hourly_job.name
    return (
        skip_outside_production(get_settings())
        or skip_if_already_running(context, job_name, (SESSIONS_CURRENT_DAY,))
        or dg.RunRequest()
    )


@dg.schedule(
    job=web_sessions_check_job,
    # The daily job starts at 01:00, and may take 5 hours.
    cron_schedule="30 6 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every morning, the last 31 days.",
    **owned_by(OWNER),
)
def web_sessions_check_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request the check, unless a run of it is still in progress."""
    return (
        skip_outside_production(get_settings())
        or skip_if_already_running(context, web_sessions_check_job.name, ())
        or dg.RunRequest()
    )


@dg.sensor(
    jobs=[web_analytics_daily_job, record_override_days_job],
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests the days whose events, overrides, deletions or teams changed after they were computed: at "
    "most 31 days a tick, the newest first, and each day at most once an hour.",
    **owned_by(OWNER),
)
def recompute_stale_days(context: dg.SensorEvaluationContext, clickhouse: ClickhouseResource) -> dg.SensorResult:
    """Find stale days in ClickHouse, and request those that no other run computes."""
    cluster = clickhouse.tagged(QueryTags(step="recompute_stale_days", owner=OWNER.value))
    nightly_is_on = skip_outside_production(get_settings()) is None
    return evaluate_stale_days(context.instance, cluster, dt.datetime.now(dt.UTC), nightly_is_on=nightly_is_on)


def evaluate_stale_days(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster, now: dt.datetime, *, nightly_is_on: bool
) -> dg.SensorResult:
    """Return the runs to request. The cursor only shows in the list of ticks what was requested and what remains."""
    first = DAILY_PARTITIONS.start.date()
    stale = stale_days(cluster, selected_teams(cluster), now.astimezone(dt.UTC).date(), first)
    known = {one.day for one in stale}
    stale += [one for one in _unannounced_days(instance, cluster, now) if one.day not in known]
    in_progress = work_in_progress(instance, now, nightly_is_on=nightly_is_on)
    plan = plan_recompute(stale, in_progress, now, max_partitions_per_run())
    tags = {PRIORITY_TAG: STALE_DAYS_PRIORITY, STALE_DAYS_TAG: "true"}
    requests = [
        dg.RunRequest(job_name=web_analytics_daily_job.name, tags={**range_tags(start, end), **tags})
        for start, end in plan.ranges
    ]
    message = plan.message()
    groups = unrecorded_groups(cluster)
    if groups:
        message += f" {len(groups)} groups of person overrides changed: record_override_days_job finds their days."
        if not _override_run_was_requested_lately(instance, now):
            requests.append(dg.RunRequest(job_name=record_override_days_job.name, tags={PRIORITY_TAG: "-1"}))
    return dg.SensorResult(run_requests=requests, skip_reason=None if requests else message, cursor=message)


def work_in_progress(instance: dg.DagsterInstance, now: dt.datetime, *, nightly_is_on: bool) -> WorkInProgress:
    """Return what unfinished runs and backfills of the daily web tables compute, and what was requested lately."""
    unfinished = [
        run for run in instance.get_runs(dg.RunsFilter(statuses=list(UNFINISHED))) if _computes_daily_tables(run)
    ]
    lately = instance.get_runs(dg.RunsFilter(tags={STALE_DAYS_TAG: "true"}, created_after=now - DEBOUNCE))
    in_backfills = {dt.date.fromisoformat(key) for key in partitions_in_backfills(instance, WEB_TABLES_DAILY)}
    return WorkInProgress(
        days=in_backfills | {day for run in unfinished for day in days_of_tags(run.tags)},
        days_requested_lately={day for run in lately for day in days_of_tags(run.tags)},
        has_own_runs=any(STALE_DAYS_TAG in run.tags for run in unfinished),
        nightly_is_on=nightly_is_on,
    )


def _unannounced_days(instance: dg.DagsterInstance, cluster: ClickhouseCluster, now: dt.datetime) -> Iterator[StaleDay]:
    """Yield days of the last week that were computed without a materialization: exports and digest did not follow.

    A run may die before it logs one, and a run of the current day logs none of yesterday.
    """
    by_run = computed_lately(cluster, now - dt.timedelta(days=7))
    for run in instance.get_runs(dg.RunsFilter(run_ids=list(by_run))) if by_run else []:
        if run.is_finished and not (run.is_success and _computes_daily_tables(run)):
            yield from _not_logged(instance, run.run_id, [one for one in by_run[run.run_id] if one.day < now.date()])


def _not_logged(instance: dg.DagsterInstance, run_id: str, days: Sequence[StaleDay]) -> list[StaleDay]:
    """Return the days that the run has not logged for every daily table."""
    partitions = [str(one.day) for one in days]
    logged = set(partitions)
    for key in WEB_TABLES_DAILY if partitions else ():
        wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=partitions)
        records = instance.fetch_materializations(wanted, limit=MAX_RECORDS).records
        logged &= {record.partition_key for record in records if record.run_id == run_id and record.partition_key}
    return [one for one in days if str(one.day) not in logged]


def _computes_daily_tables(run: dg.DagsterRun) -> bool:
    return run.job_name == web_analytics_daily_job.name or bool(WEB_TABLES_DAILY & set(run.asset_selection or ()))


def _override_run_was_requested_lately(instance: dg.DagsterInstance, now: dt.datetime) -> bool:
    name = record_override_days_job.name
    since = dg.RunsFilter(job_name=name, created_after=now - MIN_TIME_BETWEEN_OVERRIDE_RUNS)
    unfinished = dg.RunsFilter(job_name=name, statuses=list(UNFINISHED))
    return any(instance.get_runs(wanted, limit=1) for wanted in (since, unfinished))
