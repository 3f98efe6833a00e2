"""Asset checks on the web tables: do they have data, do they equal the raw events, are they fresh.

Belongs here: what is looked at, and when it may be. Not here: the raw numbers themselves (`raw.py`).
"""

import datetime as dt
from collections.abc import Sequence

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.owners import check_owned_by
from dags.common.partitions import days_of_run
from dags.common.resources import ClickhouseResource
from dags.web_preaggregated.assets import (
    BOUNCES_DAILY,
    OWNER,
    POOL,
    STATS_DAILY,
    STATS_HOURLY,
)
from dags.web_preaggregated.raw import NUMBERS, Comparison, Difference, Subject, compare_with_raw
from dags.web_preaggregated.statements import LONGEST_SESSION, ONE_DAY, PAGEVIEW, windows_of
from dags.web_preaggregated.teams import selected_teams

# Yesterday is computed at 01:00 UTC, and a run may wait for others and be tried again.
LONGEST_DAILY_AGE_DAYS = 2
LONGEST_HOURLY_AGE = dt.timedelta(hours=3)
# Raw numbers of more days than this in one query would sort too much at once.
DAYS_AT_ONCE = 7

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
NEWEST_EVENT_STATEMENT = f"""
SELECT max(timestamp), count() FROM events
WHERE timestamp > %(after)s AND timestamp <= %(now)s AND session_id != '' AND {PAGEVIEW}
"""  # noqa: S608 - a constant

TABLES: dict[Subject, str] = {"stats": "web_stats_daily", "bounces": "web_bounces_daily"}


def closed_days(days: Sequence[dt.date], now: dt.datetime) -> list[dt.date]:
    """Of these days, those whose sessions have all come to an end: the day is over, and so are 24 hours more."""
    return [
        day for day in days if dt.datetime.combine(day + ONE_DAY, dt.time(), tzinfo=dt.UTC) + LONGEST_SESSION <= now
    ]


def _asked_days(context: dg.AssetCheckExecutionContext, cluster: ClickhouseCluster, subject: Subject) -> list[dt.date]:
    """The days of the run; in a run without partitions, every day from the first one stored to the last."""
    days = days_of_run(context.op_execution_context)
    if days is not None:
        return days
    statement = STORED_RANGE_STATEMENT.format(table=TABLES[subject])
    rows = cluster.any_host(Query(statement)).result()
    return [day for first, last in rows for window in windows_of(_days(first, last)) for day in window.days]


def _days(first: dt.date, last: dt.date) -> list[dt.date]:
    return [first + n * ONE_DAY for n in range((last - first).days + 1)]


def _equality(
    context: dg.AssetCheckExecutionContext, cluster: ClickhouseCluster, subject: Subject
) -> dg.AssetCheckResult:
    teams = selected_teams(cluster)
    asked = _asked_days(context, cluster, subject)
    days = closed_days(asked, dt.datetime.now(dt.UTC))
    found = [
        compare_with_raw(cluster, subject, some[0], some[-1], teams)
        for window in windows_of(days)
        for some in _pieces(window.days)
    ]
    return _equality_result(found, days, len(asked) - len(days), subject)


def _pieces(days: Sequence[dt.date]) -> list[Sequence[dt.date]]:
    return [days[start : start + DAYS_AT_ONCE] for start in range(0, len(days), DAYS_AT_ONCE)]


def _equality_result(
    found: Sequence[Comparison], days: Sequence[dt.date], open_days: int, subject: Subject
) -> dg.AssetCheckResult:
    different = sum(one.different for one in found)
    shown: list[Difference] = [difference for one in found for difference in one.shown]
    wrong_days = sorted({difference.day for difference in shown})
    description = (
        f"{different} groups differ from the raw events. Events came after the days were computed, or somebody changed "
        f"the table: materialise {', '.join(map(str, wrong_days))} again.\n- " + "\n- ".join(map(str, shown))
        if different
        else f"{len(days)} closed days compared: {', '.join(NUMBERS[subject])} by team, day and path are equal."
        if days
        else "No day of these is closed: a session may go on for 24 hours after the day."
    )
    return dg.AssetCheckResult(
        passed=different == 0,
        description=description,
        metadata={
            "days_compared": len(days),
            "days_not_closed": open_days,
            "groups_compared": sum(one.compared for one in found),
            "groups_different": different,
        },
    )


@dg.asset_check(
    asset=STATS_DAILY,
    pool=POOL,
    description="On every closed day, pageviews, sessions and visitors by team and path are exactly those of the raw "
    "events, computed in another way.",
    **check_owned_by(OWNER),
)
def web_stats_daily_equals_raw_events(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Compare the days of the run with the raw events, or every day that is stored."""
    return _equality(context, clickhouse.cluster(context), "stats")


@dg.asset_check(
    asset=BOUNCES_DAILY,
    pool=POOL,
    description="On every closed day, sessions, visitors, bounces and duration by team and entry path are exactly "
    "those of the raw events, computed in another way.",
    **check_owned_by(OWNER),
)
def web_bounces_daily_equals_raw_events(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Compare the days of the run with the raw events, or every day that is stored."""
    return _equality(context, clickhouse.cluster(context), "bounces")


def _has_data(
    context: dg.AssetCheckExecutionContext, cluster: ClickhouseCluster, subject: Subject
) -> dg.AssetCheckResult:
    asked = _asked_days(context, cluster, subject)
    without: list[dt.date] = []
    rows = 0
    for window in windows_of(asked):
        parameters = {"first": window.first, "last": window.last}
        statement = STORED_DAYS_STATEMENT.format(table=TABLES[subject])
        stored: dict[dt.date, int] = dict(cluster.any_host(Query(statement, parameters)).result())
        rows += sum(stored.values())
        without += [day for day in window.days if day not in stored]
    return dg.AssetCheckResult(
        passed=bool(asked) and not without,
        # A team may really have had no visitors, so this does not cry as loud as wrong numbers.
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if asked and not without
        else f"No rows: {', '.join(map(str, without)) or 'the table is empty'}. Were events loaded?",
        metadata={"rows": rows, "days": len(asked), "days_without_rows": len(without)},
    )


@dg.asset_check(
    asset=STATS_DAILY,
    description="Every day of the run has rows, or every day between the first and the last one stored.",
    **check_owned_by(OWNER),
)
def web_stats_daily_has_data(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Look for days without rows."""
    return _has_data(context, clickhouse.cluster(context), "stats")


@dg.asset_check(
    asset=BOUNCES_DAILY,
    description="Every day of the run has rows, or every day between the first and the last one stored.",
    **check_owned_by(OWNER),
)
def web_bounces_daily_has_data(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Look for days without rows."""
    return _has_data(context, clickhouse.cluster(context), "bounces")


@dg.asset_check(
    asset=STATS_DAILY,
    description=f"The newest day stored is at most {LONGEST_DAILY_AGE_DAYS} days old, where newer events exist.",
    **check_owned_by(OWNER),
)
def web_stats_daily_is_fresh(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Compare the newest stored day with the days that are over and have events."""
    cluster = clickhouse.cluster(context)
    today = dt.datetime.now(dt.UTC).date()
    rows = cluster.any_host(Query(STORED_RANGE_STATEMENT.format(table=TABLES["stats"]))).result()
    if not rows:
        return dg.AssetCheckResult(passed=False, description="web_stats_daily is empty: run web_analytics_daily_job.")
    ((_, newest),) = rows
    age_days = (today - newest).days
    limit = today - LONGEST_DAILY_AGE_DAYS * ONE_DAY
    parameters = {"first": f"{newest + ONE_DAY} 00:00:00", "last": f"{limit} 23:59:59.999999"}
    missing = sorted(day for (day,) in cluster.any_host(Query(RAW_DAYS_STATEMENT, parameters)).result())
    return dg.AssetCheckResult(
        passed=not missing,
        description=f"Days with events that are not computed: {', '.join(map(str, missing))}. Look at the runs of "
        "web_analytics_daily_job, and backfill these days."
        if missing
        else None,
        metadata={"newest_date": newest.isoformat(), "age_days": age_days, "days_missing": len(missing)},
    )


@dg.asset_check(
    asset=STATS_HOURLY,
    description=f"No pageview is older than {LONGEST_HOURLY_AGE} and newer than the newest hour stored.",
    **check_owned_by(OWNER),
)
def web_stats_hourly_is_fresh(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Look for pageviews of today that the hourly table should have by now."""
    cluster = clickhouse.cluster(context)
    now = dt.datetime.now(dt.UTC)
    ((newest, rows),) = cluster.any_host(Query(NEWEST_HOUR_STATEMENT)).result()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    # A session that began before the newest hour may go on in later ones.
    after = max(midnight, newest + dt.timedelta(hours=1)) if rows else midnight
    parameters = {"after": f"{after:%Y-%m-%d %H:%M:%S}", "now": f"{now - LONGEST_HOURLY_AGE:%Y-%m-%d %H:%M:%S}"}
    ((_, waiting),) = cluster.any_host(Query(NEWEST_EVENT_STATEMENT, parameters)).result()
    return dg.AssetCheckResult(
        passed=not waiting,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{waiting} pageviews came after the newest hour stored and before {parameters['now']} UTC. Look "
        "at the runs of web_pre_aggregate_current_day_hourly_job."
        if waiting
        else None,
        metadata={"newest_hour": newest.isoformat() if rows else "none", "pageviews_waiting": waiting},
    )
