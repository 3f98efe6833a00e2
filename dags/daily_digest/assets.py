"""What Dagster runs of the daily digest: its asset, its check, its job and its schedule.

Belongs here: partitions, metadata, when what runs. Not here: how a digest is computed (`digest.py`).
"""

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.staging import drop_leftovers
from dags.common.failures import fail_without_retry
from dags.common.markdown import code, markdown_table
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.partitions import days_of_run, range_tags
from dags.common.resources import ClickhouseResource
from dags.common.schedules import run_is_over, skip_if_already_running
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.daily_digest.digest import Digest, Page, write_digests

OWNER = JobOwners.TEAM_ANALYTICS_PLATFORM
GROUP = "analytics_platform"
ONE_DAY = dt.timedelta(days=1)

EVENTS = dg.AssetKey("events")
EXCHANGE_RATES = dg.AssetKey("daily_exchange_rates_in_clickhouse")
# Both are computed together, by the job that this one follows.
WEB_TABLES = (dg.AssetKey("web_analytics_stats_table_daily"), dg.AssetKey("web_analytics_bounces_daily"))

# As the web tables' own.
DAILY_PARTITIONS = dg.DailyPartitionsDefinition(start_date="2015-01-01", timezone="UTC")

# What a person reads at a glance; the table has all of them.
SHOWN_TEAMS = 20
SHOWN_PAGES = 10
# A check that is run for no day of its own looks at the newest ones stored.
CHECKED_DAYS = 31

STORED_DAYS_STATEMENT = "SELECT DISTINCT day FROM analytics_digest_daily ORDER BY day DESC LIMIT %(days)s"
DAYS_WITH_TRAFFIC_STATEMENT = """
SELECT DISTINCT toDate(period_bucket) FROM web_bounces_daily
WHERE period_bucket >= toDateTime(toDate(%(first)s), 'UTC') AND period_bucket <= toDateTime(toDate(%(last)s), 'UTC')
"""
DIGEST_STATEMENT = """
SELECT day, team_id, visitors, sessions, pageviews FROM analytics_digest_daily
WHERE day IN %(days)s AND visitors IS NOT NULL
"""
# Of the other web table than the digest itself is made of.
WEB_STATEMENT = """
SELECT
    toDate(period_bucket) AS day,
    team_id,
    uniqExactMerge(persons_uniq_state),
    uniqExactMerge(sessions_uniq_state),
    sumMerge(pageviews_count_state)
FROM web_stats_daily WHERE toDate(period_bucket) IN %(days)s GROUP BY day, team_id
"""


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    description="Visitors, sessions, pageviews, top pages and revenue in US dollars by team and day: the table "
    "analytics_digest_daily. A revenue event is an event order_placed with the properties revenue and currency.",
    deps=[*WEB_TABLES, EVENTS, EXCHANGE_RATES],
    partitions_def=DAILY_PARTITIONS,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=31),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
)
def analytics_digest_daily(context: dg.AssetExecutionContext, clickhouse: ClickhouseResource) -> None:
    """Compute the days of the run. A day whose web tables were never computed is an error: it is not a day of zeros."""
    cluster = clickhouse.cluster(context)
    days = [dt.date.fromisoformat(key) for key in context.partition_keys]
    unknown = _days_never_computed(context.instance, cluster, days)
    if unknown:
        raise dg.Failure(
            f"The web tables of {', '.join(unknown)} were never computed: run web_analytics_daily_job for them first. "
            "Nothing was written.",
            allow_retries=False,
        )
    drop_leftovers(cluster, lambda run_id: run_is_over(context.instance, run_id))
    with fail_without_retry():
        digests = write_digests(cluster, days, context.run.run_id)
    for day in days:
        context.add_asset_metadata(digest_metadata(digests[day]), partition_key=day.isoformat())


@dg.asset_check(
    asset=analytics_digest_daily,
    description="Visitors, sessions and pageviews by team are those that the web tables have now.",
    op_tags=owner_tags(OWNER),
)
def analytics_digest_daily_equals_web_tables(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Compare the days of the run, or the newest ones stored, with the web tables."""
    cluster = clickhouse.cluster(context)
    days = days_of_run(context.op_execution_context)
    if days is None:
        days = [day for (day,) in cluster.any_host(Query(STORED_DAYS_STATEMENT, {"days": CHECKED_DAYS})).result()]
    if not days:
        return dg.AssetCheckResult(passed=False, description="The table is empty: run analytics_digest_daily_job.")
    stored, wanted = (
        {
            (day, team_id): counts
            for day, team_id, *counts in cluster.any_host(Query(statement, {"days": days})).result()
        }
        for statement in (DIGEST_STATEMENT, WEB_STATEMENT)
    )
    different = sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))
    again = sorted({str(day) for day, _ in different})
    return dg.AssetCheckResult(
        passed=not different,
        description=f"The web tables were computed again since: materialise {', '.join(again)} again."
        if different
        else None,
        metadata={"days_compared": len(days), "rows_compared": len(wanted), "rows_different": len(different)},
    )


analytics_digest_daily_job = dg.define_asset_job(
    "analytics_digest_daily_job",
    selection=dg.AssetSelection.assets(analytics_digest_daily),
    description="Computes days of the digest.",
    # A run that died is started again: what it has done is done again, to the same end.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "1800", MAX_RETRIES_TAG: "1"}),
)


@dg.schedule(
    job=analytics_digest_daily_job,
    # The web tables are begun at 01:00, and their job takes 5 hours at the most.
    cron_schedule="20 6 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Yesterday, and the day before once more, as the web tables are.",
    **owned_by(OWNER),
)
def analytics_digest_daily_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Ask for the two days before the tick in one run; skip while yesterday's web tables are not computed."""
    yesterday = context.scheduled_execution_time.astimezone(dt.UTC).date() - ONE_DAY
    computed = _days_computed(context.instance)
    if yesterday not in computed:
        return dg.SkipReason(
            f"The web tables of {yesterday} are not computed: web_analytics_daily_job does it. The next tick takes "
            "this day too."
        )
    first = yesterday - ONE_DAY if yesterday - ONE_DAY in computed else yesterday
    already_running = skip_if_already_running(context, analytics_digest_daily_job.name, [analytics_digest_daily.key])
    return already_running or dg.RunRequest(tags=range_tags(first, yesterday))


def digest_metadata(digests: Sequence[Digest]) -> dict[str, dg.MetadataValue]:
    """What people see, and plot, of a day: sums over teams, and the digest as Markdown."""
    known = [digest.revenue_usd for digest in digests if digest.revenue_usd is not None]
    return {
        "teams": dg.MetadataValue.int(len(digests)),
        # No visitor and no session is of two teams.
        "visitors": dg.MetadataValue.int(sum(digest.visitors or 0 for digest in digests)),
        "sessions": dg.MetadataValue.int(sum(digest.sessions or 0 for digest in digests)),
        "pageviews": dg.MetadataValue.int(sum(digest.pageviews or 0 for digest in digests)),
        "revenue_events": dg.MetadataValue.int(sum(digest.revenue_events for digest in digests)),
        "revenue_events_converted": dg.MetadataValue.int(sum(digest.revenue_events_converted for digest in digests)),
        # Left out where it is not known, since it is not zero.
        **({"revenue_usd": dg.MetadataValue.float(float(sum(known, Decimal(0))))} if known or not digests else {}),
        "digest": dg.MetadataValue.md(digest_markdown(digests)),
    }


def digest_markdown(digests: Sequence[Digest]) -> str:
    """The digest of a day for people: the busiest teams, then the pages with most pageviews."""
    if not digests:
        return "No visits and no revenue events."
    busiest = sorted(digests, key=lambda digest: (-(digest.pageviews or 0), digest.team_id))
    rows = [
        [
            digest.team_id,
            *("unknown" if one is None else f"{one:,}" for one in (digest.visitors, digest.sessions, digest.pageviews)),
            digest.revenue_events,
            "unknown" if digest.revenue_usd is None else f"{digest.revenue_usd:,}",
            not_converted(digest),
        ]
        for digest in busiest[:SHOWN_TEAMS]
    ]
    head = ["team", "visitors", "sessions", "pageviews", "revenue events", "US dollars", "not converted"]
    parts = [markdown_table(head, "rrrrrrl", rows)]
    if len(digests) > SHOWN_TEAMS:
        parts.append(f"and {len(digests) - SHOWN_TEAMS} more teams")
    pages: list[tuple[int, Page]] = [(digest.team_id, page) for digest in digests for page in digest.top_pages]
    pages.sort(key=lambda pair: (-pair[1].pageviews, pair[0], pair[1]))
    shown = [[team_id, code(page.host), code(page.pathname), page.pageviews] for team_id, page in pages[:SHOWN_PAGES]]
    parts.append(markdown_table(["team", "host", "path", "pageviews"], "rllr", shown))
    return "\n\n".join(part for part in parts if part)


def not_converted(digest: Digest) -> str:
    """In words, which revenue events are in no sum and why; empty when all are."""
    reasons = []
    if digest.revenue_events_without_rate:
        currencies = ", ".join(code(one) or "no currency" for one in digest.currencies_without_rate[:SHOWN_PAGES])
        reasons.append(f"{digest.revenue_events_without_rate} without a rate ({currencies})")
    if digest.revenue_events_without_amount:
        reasons.append(f"{digest.revenue_events_without_amount} without an amount")
    return ", ".join(reasons)


def _days_never_computed(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster, days: Sequence[dt.date]
) -> list[str]:
    """Of these days, those without a row in the web tables that no run has computed either."""
    query = Query(DAYS_WITH_TRAFFIC_STATEMENT, {"first": min(days), "last": max(days)})
    with_traffic = {day for (day,) in cluster.any_host(query).result()}
    missing = [day for day in days if day not in with_traffic]
    computed = _days_computed(instance) if missing else set()
    return [str(day) for day in missing if day not in computed]


def _days_computed(instance: dg.DagsterInstance) -> set[dt.date]:
    keys = set.intersection(*(instance.get_materialized_partitions(table) for table in WEB_TABLES))
    return {dt.date.fromisoformat(key) for key in keys}
