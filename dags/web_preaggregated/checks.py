"""The asset checks on the web tables: they have data, equal the raw events, and are fresh."""

import datetime as dt
import functools
from collections.abc import Callable, Sequence

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.owners import owner_tags
from dags.common.partitions import days_of_run
from dags.common.resources import ClickhouseResource
from dags.web_preaggregated.assets import BOUNCES_DAILY, OWNER, POOL, STATS_DAILY, STATS_HOURLY
from dags.web_preaggregated.raw import NUMBERS, Comparison, Subject, compare_with_raw
from dags.web_preaggregated.statements import MAX_SESSION, ONE_DAY, PAGEVIEW, windows_of
from dags.web_preaggregated.teams import selected_teams

# Yesterday is computed at 01:00 UTC, by a run that may be queued and retried.
MAX_DAILY_AGE = dt.timedelta(days=2)
MAX_HOURLY_AGE = dt.timedelta(hours=3)
# The raw numbers of more days in one query would sort too much at once.
MAX_DAYS_PER_QUERY = 7

STORED_DAYS_STATEMENT = """
SELECT toDate(period_bucket) AS day, count() FROM {table} WHERE period_bucket >= %(first)s
    AND period_bucket < toDate(%(last)s) + 1 GROUP BY day
"""
STORED_RANGE_STATEMENT = """
SELECT min(day), max(day) FROM (
    SELECT toDate(min(period_bucket)) AS day, count() AS rows FROM {table}
    UNION ALL SELECT toDate(max(period_bucket)), count() FROM {table}
) WHERE rows > 0 HAVING count() > 0
"""
RAW_DAYS_STATEMENT = f"""
SELECT DISTINCT toDate(timestamp) FROM events
WHERE timestamp >= %(first)s AND timestamp <= %(last)s AND session_id != '' AND {PAGEVIEW}
"""  # noqa: S608 - a constant
NEWEST_HOUR_STATEMENT = "SELECT max(period_bucket), count() FROM web_stats_hourly"
WAITING_PAGEVIEWS_STATEMENT = f"""
SELECT count() FROM events
WHERE timestamp > %(after)s AND timestamp <= %(until)s AND session_id != '' AND {PAGEVIEW}
"""  # noqa: S608 - a constant

TABLES: dict[Subject, str] = {"stats": "web_stats_daily", "bounces": "web_bounces_daily"}

# What a check evaluates: a cluster and the days of the run, or None for a run without partitions.
Evaluation = Callable[[ClickhouseCluster, Sequence[dt.date] | None], dg.AssetCheckResult]


def equality(cluster: ClickhouseCluster, days: Sequence[dt.date] | None, subject: Subject) -> dg.AssetCheckResult:
    """Compare the closed days of the run, or all stored closed days, with the raw events."""
    teams = selected_teams(cluster)
    wanted = _stored_days(cluster, subject) if days is None else days
    closed = closed_days(wanted, dt.datetime.now(dt.UTC))
    comparisons = [
        compare_with_raw(cluster, subject, part[0], part[-1], teams)
        for window in windows_of(closed)
        for part in _split(window.days)
    ]
    different = sum(comparison.different for comparison in comparisons)
    return dg.AssetCheckResult(
        passed=different == 0,
        description=_difference_message(comparisons)
        if different
        else f"{len(closed)} closed days compared: {', '.join(NUMBERS[subject])} by team, day and path are equal."
        if closed
        else "None of these days is closed: sessions may continue for 24 hours after the end of a day.",
        metadata={
            "days_compared": len(closed),
            "days_not_closed": len(wanted) - len(closed),
            "groups_compared": sum(comparison.compared for comparison in comparisons),
            "groups_different": different,
        },
    )


def has_data(cluster: ClickhouseCluster, days: Sequence[dt.date] | None, subject: Subject) -> dg.AssetCheckResult:
    """Look for days without rows among those of the run, or between the first and the last stored day."""
    wanted = _stored_days(cluster, subject) if days is None else days
    statement = STORED_DAYS_STATEMENT.format(table=TABLES[subject])
    rows_by_day: dict[dt.date, int] = {}
    for window in windows_of(wanted):
        parameters = {"first": window.first, "last": window.last}
        rows_by_day |= dict(cluster.any_host(Query(statement, parameters)).result())
    without = sorted(set(wanted) - rows_by_day.keys())
    passed = bool(wanted) and not without
    return dg.AssetCheckResult(
        passed=passed,
        # A day may really have no visitors, so this is less severe than wrong numbers.
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if passed
        else f"No rows: {', '.join(map(str, without)) or 'the table is empty'}. Check that events were loaded.",
        metadata={"rows": sum(rows_by_day.values()), "days": len(wanted), "days_without_rows": len(without)},
    )


def daily_freshness(cluster: ClickhouseCluster, _days: Sequence[dt.date] | None) -> dg.AssetCheckResult:
    """Look for closed days with events that are newer than the newest stored day."""
    today = dt.datetime.now(dt.UTC).date()
    rows = cluster.any_host(Query(STORED_RANGE_STATEMENT.format(table=TABLES["stats"]))).result()
    if not rows:
        return dg.AssetCheckResult(passed=False, description="web_stats_daily is empty: run web_analytics_daily_job.")
    ((_, newest),) = rows
    parameters = {"first": f"{newest + ONE_DAY} 00:00:00", "last": f"{today - MAX_DAILY_AGE} 23:59:59.999999"}
    missing = sorted(day for (day,) in cluster.any_host(Query(RAW_DAYS_STATEMENT, parameters)).result())
    return dg.AssetCheckResult(
        passed=not missing,
        description=f"Days with events that are not computed: {', '.join(map(str, missing))}. Check the runs of "
        "web_analytics_daily_job, and backfill these days."
        if missing
        else None,
        metadata={
            "newest_date": newest.isoformat(),
            "age_days": (today - newest).days,
            "days_missing": len(missing),
        },
    )


def hourly_freshness(cluster: ClickhouseCluster, _days: Sequence[dt.date] | None) -> dg.AssetCheckResult:
    """Look for pageviews of today that the hourly table should have by now."""
    now = dt.datetime.now(dt.UTC)
    ((newest, rows),) = cluster.any_host(Query(NEWEST_HOUR_STATEMENT)).result()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    # A session that started before the newest stored hour may continue in later hours.
    after = max(midnight, newest + dt.timedelta(hours=1)) if rows else midnight
    parameters = {"after": f"{after:%Y-%m-%d %H:%M:%S}", "until": f"{now - MAX_HOURLY_AGE:%Y-%m-%d %H:%M:%S}"}
    ((waiting,),) = cluster.any_host(Query(WAITING_PAGEVIEWS_STATEMENT, parameters)).result()
    return dg.AssetCheckResult(
        passed=not waiting,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{waiting} pageviews are newer than the newest stored hour and older than {parameters['until']} "
        "UTC. Check the runs of web_pre_aggregate_current_day_hourly_job."
        if waiting
        else None,
        metadata={"newest_hour": newest.isoformat() if rows else "none", "pageviews_waiting": waiting},
    )


def closed_days(days: Sequence[dt.date], now: dt.datetime) -> list[dt.date]:
    """Return the days that ended at least 24 hours ago, so that all of their sessions have ended."""
    return [day for day in days if dt.datetime.combine(day + ONE_DAY, dt.time(), tzinfo=dt.UTC) + MAX_SESSION <= now]


def _stored_days(cluster: ClickhouseCluster, subject: Subject) -> list[dt.date]:
    """Return every day from the first to the last stored one."""
    rows = cluster.any_host(Query(STORED_RANGE_STATEMENT.format(table=TABLES[subject]))).result()
    return [first + n * ONE_DAY for first, last in rows for n in range((last - first).days + 1)]


def _split(days: Sequence[dt.date]) -> list[Sequence[dt.date]]:
    return [days[start : start + MAX_DAYS_PER_QUERY] for start in range(0, len(days), MAX_DAYS_PER_QUERY)]


def _difference_message(comparisons: Sequence[Comparison]) -> str:
    listed = [difference for comparison in comparisons for difference in comparison.listed]
    days = sorted({difference.day for difference in listed})
    return (
        f"{sum(comparison.different for comparison in comparisons)} groups differ from the raw events, because of late "
        f"data or a change of the table. Materialize {', '.join(map(str, days))} again.\n- "
        + "\n- ".join(map(str, listed))
    )


def _web_check(
    name: str, asset: dg.AssetKey, description: str, evaluation: Evaluation, pool: str | None = None
) -> dg.AssetChecksDefinition:
    @dg.asset_check(name=name, asset=asset, description=description, pool=pool, op_tags=owner_tags(OWNER))
    def check(context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource) -> dg.AssetCheckResult:
        return evaluation(clickhouse.cluster(context), days_of_run(context.op_execution_context))

    return check


web_checks = [
    _web_check(
        "web_stats_daily_equals_raw_events",
        STATS_DAILY,
        "On every closed day, pageviews, sessions and visitors by team and path equal those of the raw events.",
        functools.partial(equality, subject="stats"),
        POOL,
    ),
    _web_check(
        "web_bounces_daily_equals_raw_events",
        BOUNCES_DAILY,
        "On every closed day, sessions, visitors, bounces and duration by team and entry path equal those of the raw "
        "events.",
        functools.partial(equality, subject="bounces"),
        POOL,
    ),
    _web_check(
        "web_stats_daily_has_data",
        STATS_DAILY,
        "Every day of the run has rows; in a run without partitions, every day from the first to the last stored one.",
        functools.partial(has_data, subject="stats"),
    ),
    _web_check(
        "web_bounces_daily_has_data",
        BOUNCES_DAILY,
        "Every day of the run has rows; in a run without partitions, every day from the first to the last stored one.",
        functools.partial(has_data, subject="bounces"),
    ),
    _web_check(
        "web_stats_daily_is_fresh",
        STATS_DAILY,
        f"Every day with events that is at least {MAX_DAILY_AGE.days} days old is computed.",
        daily_freshness,
    ),
    _web_check(
        "web_stats_hourly_is_fresh",
        STATS_HOURLY,
        f"No pageview of today that is older than {MAX_HOURLY_AGE} is newer than the newest stored hour.",
        hourly_freshness,
    ),
]
