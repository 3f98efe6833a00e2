"""The asset checks on the sessions: they equal the raw events, have data, and are fresh."""

import datetime as dt
from collections.abc import Callable, Sequence

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.owners import owner_tags
from dags.common.partitions import days_of_run
from dags.common.resources import ClickhouseResource
from dags.web_preaggregated.assets import OWNER, POOL, SESSIONS_CURRENT_DAY, SESSIONS_DAILY
from dags.web_preaggregated.raw import SUBJECTS, Comparison, compare_with_raw
from dags.web_preaggregated.statements import MAX_SESSION, ONE_DAY, PAGEVIEW, windows_of
from dags.web_preaggregated.teams import selected_teams

SESSIONS_EQUAL_RAW_EVENTS = dg.AssetCheckKey(SESSIONS_DAILY, "web_sessions_equal_raw_events")

# Yesterday is computed at 01:00 UTC, by a run that may be queued and retried.
MAX_DAILY_AGE = dt.timedelta(days=2)
MAX_CURRENT_DAY_AGE = dt.timedelta(hours=3)
# The days that the check of the morning compares.
CHECKED_DAYS = 31
# The raw numbers of more days in one query would sort too much at once.
MAX_DAYS_PER_QUERY = 7

STORED_DAYS_STATEMENT = """
SELECT toDate(started_at) AS day, count() FROM web_sessions WHERE started_at >= %(first)s
    AND started_at < toDate(%(last)s) + 1 GROUP BY day
"""
# From the first to the last day that a finished day was computed for.
COMPUTED_RANGE_STATEMENT = """
SELECT min(day), max(day) FROM web_session_days WHERE computed_at >= toDateTime(day + 1, 'UTC') HAVING count() > 0
"""
RAW_DAYS_STATEMENT = f"""
SELECT DISTINCT toDate(timestamp) FROM events
WHERE timestamp >= %(first)s AND timestamp <= %(last)s AND session_id != '' AND {PAGEVIEW}
"""  # noqa: S608 - a constant
NEWEST_SESSION_STATEMENT = "SELECT max(started_at), count() FROM web_sessions WHERE started_at >= %(midnight)s"
WAITING_PAGEVIEWS_STATEMENT = f"""
SELECT count() FROM events
WHERE timestamp > %(after)s AND timestamp <= %(until)s AND session_id != '' AND {PAGEVIEW}
"""  # noqa: S608 - a constant

# What a check evaluates: a cluster and the days of the run, or None for a run without partitions.
Evaluation = Callable[[ClickhouseCluster, Sequence[dt.date] | None], dg.AssetCheckResult]


def equality(cluster: ClickhouseCluster, days: Sequence[dt.date] | None) -> dg.AssetCheckResult:
    """Compare the closed days of the run, or every closed day from the first to the last computed one."""
    return _compare(cluster, _computed_days(cluster) if days is None else days)


def recent_equality(cluster: ClickhouseCluster, _days: Sequence[dt.date] | None) -> dg.AssetCheckResult:
    """Compare the last days that are closed, computed or not."""
    today = dt.datetime.now(dt.UTC).date()
    return _compare(cluster, [today - (n + 2) * ONE_DAY for n in reversed(range(CHECKED_DAYS))])


def has_data(cluster: ClickhouseCluster, days: Sequence[dt.date] | None) -> dg.AssetCheckResult:
    """Look for days without sessions among those of the run, or between the first and the last computed day."""
    wanted = _computed_days(cluster) if days is None else days
    sessions_by_day: dict[dt.date, int] = {}
    for window in windows_of(wanted):
        parameters = {"first": window.first, "last": window.last}
        sessions_by_day |= dict(cluster.any_host(Query(STORED_DAYS_STATEMENT, parameters)).result())
    without = sorted(set(wanted) - sessions_by_day.keys())
    passed = bool(wanted) and not without
    return dg.AssetCheckResult(
        passed=passed,
        # A day may really have no visitors, so this is less severe than wrong numbers.
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if passed
        else f"No sessions: {', '.join(map(str, without)) or 'no day is computed'}. Check that events were loaded.",
        metadata={
            "sessions": sum(sessions_by_day.values()),
            "days": len(wanted),
            "days_without_sessions": len(without),
        },
    )


def daily_freshness(cluster: ClickhouseCluster, _days: Sequence[dt.date] | None) -> dg.AssetCheckResult:
    """Look for closed days with events that are newer than the newest day that was computed after its end."""
    today = dt.datetime.now(dt.UTC).date()
    rows = cluster.any_host(Query(COMPUTED_RANGE_STATEMENT)).result()
    if not rows:
        return dg.AssetCheckResult(passed=False, description="No day is computed: run web_analytics_daily_job.")
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


def current_day_freshness(cluster: ClickhouseCluster, _days: Sequence[dt.date] | None) -> dg.AssetCheckResult:
    """Look for pageviews of today that are newer than the newest session and that it should have by now."""
    now = dt.datetime.now(dt.UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    query = Query(NEWEST_SESSION_STATEMENT, {"midnight": f"{midnight:%Y-%m-%d %H:%M:%S}"})
    ((newest, sessions),) = cluster.any_host(query).result()
    # A session that started within the hour of the newest one may continue in later hours.
    after = newest + dt.timedelta(hours=1) if sessions else midnight
    parameters = {"after": f"{after:%Y-%m-%d %H:%M:%S}", "until": f"{now - MAX_CURRENT_DAY_AGE:%Y-%m-%d %H:%M:%S}"}
    ((waiting,),) = cluster.any_host(Query(WAITING_PAGEVIEWS_STATEMENT, parameters)).result()
    return dg.AssetCheckResult(
        passed=not waiting,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{waiting} pageviews are newer than the newest session and older than {parameters['until']} "
        "UTC. Check the runs of web_pre_aggregate_current_day_hourly_job."
        if waiting
        else None,
        metadata={"newest_session": newest.isoformat() if sessions else "none", "pageviews_waiting": waiting},
    )


def closed_days(days: Sequence[dt.date], now: dt.datetime) -> list[dt.date]:
    """Return the days that ended at least 24 hours ago, so that all of their sessions have ended."""
    return [day for day in days if dt.datetime.combine(day + ONE_DAY, dt.time(), tzinfo=dt.UTC) + MAX_SESSION <= now]


def _compare(cluster: ClickhouseCluster, wanted: Sequence[dt.date]) -> dg.AssetCheckResult:
    teams = selected_teams(cluster)
    closed = closed_days(wanted, dt.datetime.now(dt.UTC))
    comparisons = [
        compare_with_raw(cluster, subject, part[0], part[-1], teams)
        for window in windows_of(closed)
        for part in _split(window.days)
        for subject in SUBJECTS
    ]
    different = sum(comparison.different for comparison in comparisons)
    return dg.AssetCheckResult(
        passed=different == 0,
        description=_difference_message(comparisons)
        if different
        else f"{len(closed)} closed days compared: every session, all numbers by team, day, host and path, and what is "
        "left out are equal."
        if closed
        else "None of these days is closed: sessions may continue for 24 hours after the end of a day.",
        metadata={
            "days_compared": len(closed),
            "days_not_closed": len(wanted) - len(closed),
            "groups_compared": sum(comparison.compared for comparison in comparisons),
            "groups_different": different,
        },
    )


def _computed_days(cluster: ClickhouseCluster) -> list[dt.date]:
    """Return every day from the first to the last one that was computed after its end."""
    rows = cluster.any_host(Query(COMPUTED_RANGE_STATEMENT)).result()
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
        "web_sessions_daily_equals_raw_events",
        SESSIONS_DAILY,
        "On every closed day of the run, sessions, pages and what is left out equal the raw events, by team, host and "
        "path.",
        equality,
        POOL,
    ),
    _web_check(
        SESSIONS_EQUAL_RAW_EVENTS.name,
        SESSIONS_DAILY,
        f"On the last {CHECKED_DAYS} closed days, sessions, pages and what is left out equal the raw events.",
        recent_equality,
        POOL,
    ),
    _web_check(
        "web_sessions_daily_has_data",
        SESSIONS_DAILY,
        "Every day of the run has sessions; without partitions, every day from the first to the last computed.",
        has_data,
    ),
    _web_check(
        "web_sessions_daily_is_fresh",
        SESSIONS_DAILY,
        f"Every day with events that is at least {MAX_DAILY_AGE.days} days old is computed.",
        daily_freshness,
    ),
    _web_check(
        "web_sessions_current_day_is_fresh",
        SESSIONS_CURRENT_DAY,
        f"No pageview of today that is older than {MAX_CURRENT_DAY_AGE} is newer than the newest session.",
        current_day_freshness,
    ),
]
