"""The asset of the daily digest: its partitions, its metadata, and the days that it cannot compute."""

import datetime as dt
from collections.abc import Mapping, Sequence

import dagster as dg

from dags.common.automation import follow_days
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.staging import drop_leftovers
from dags.common.clickhouse.tables import ANALYTICS_DIGEST_DAILY
from dags.common.failures import fail_without_retry
from dags.common.metadata import PARTITION_ROW_COUNT, table_metadata
from dags.common.owners import JobOwners, owner_tags
from dags.common.resources import ClickhouseResource
from dags.common.schedules import run_is_finished
from dags.common.tags import WEB_TABLES_POOL
from dags.daily_digest.digest import Digest, Totals, read_totals, totals_of, write_digests
from dags.daily_digest.report import PLOT_DAYS, digest_markdown, plot_markdown

OWNER = JobOwners.TEAM_ANALYTICS_PLATFORM
GROUP = "analytics_platform"
ONE_DAY = dt.timedelta(days=1)

EVENTS = dg.AssetKey("events")
EXCHANGE_RATES = dg.AssetKey("daily_exchange_rates_in_clickhouse")
WEB_SESSIONS = dg.AssetKey("web_sessions_daily")

# The same as those of the web tables.
DAILY_PARTITIONS = dg.DailyPartitionsDefinition(start_date="2015-01-01", timezone="UTC")

DAYS_WITH_TRAFFIC_STATEMENT = """
SELECT DISTINCT toDate(started_at) FROM web_sessions
WHERE started_at >= toDateTime64(%(first)s, 6, 'UTC') AND started_at < toDateTime64(%(last)s, 6, 'UTC') + INTERVAL 1 DAY
"""


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    kinds={"clickhouse"},
    description="Visitors, sessions, pageviews, top pages and revenue in US dollars by team and day: the table "
    "analytics_digest_daily. A revenue event is an event order_placed with the properties revenue and currency.",
    metadata=table_metadata(ANALYTICS_DIGEST_DAILY),
    deps=[WEB_SESSIONS, EVENTS, EXCHANGE_RATES],
    partitions_def=DAILY_PARTITIONS,
    automation_condition=follow_days(WEB_SESSIONS),
    pool=WEB_TABLES_POOL,
    backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=31),
    retry_policy=dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
)
def analytics_digest_daily(context: dg.AssetExecutionContext, clickhouse: ClickhouseResource) -> None:
    """Compute the days of the run. A day whose web tables were never computed fails it: that is not a day of zeros."""
    cluster = clickhouse.cluster(context)
    days = [dt.date.fromisoformat(key) for key in context.partition_keys]
    unknown = _days_never_computed(context.instance, cluster, days)
    if unknown:
        raise dg.Failure(
            f"The web tables of {', '.join(unknown)} were never computed: run web_analytics_daily_job for them first. "
            "Nothing was written.",
            allow_retries=False,
        )
    drop_leftovers(cluster, lambda run_id: run_is_finished(context.instance, run_id))
    with fail_without_retry():
        digests = write_digests(cluster, days, context.run.run_id)
    # A replica that answers may not have the days of this run yet.
    totals = {
        **read_totals(cluster, min(days) - PLOT_DAYS * ONE_DAY, max(days)),
        **{day: totals_of(digests[day]) for day in days},
    }
    for day in days:
        context.add_asset_metadata(digest_metadata(digests[day], totals, day), partition_key=day.isoformat())


def digest_metadata(
    digests: Sequence[Digest], totals_by_day: Mapping[dt.date, Totals], day: dt.date
) -> dict[str, dg.MetadataValue]:
    """Return the metadata of a day: sums over all teams, the digest as Markdown, and a plot of the last days."""
    totals = totals_of(digests)
    return {
        PARTITION_ROW_COUNT: dg.MetadataValue.int(len(digests)),
        "teams": dg.MetadataValue.int(len(digests)),
        # No visitor and no session belongs to two teams.
        "visitors": dg.MetadataValue.int(sum(digest.visitors or 0 for digest in digests)),
        "sessions": dg.MetadataValue.int(sum(digest.sessions or 0 for digest in digests)),
        "pageviews": dg.MetadataValue.int(totals.pageviews),
        "revenue_events": dg.MetadataValue.int(sum(digest.revenue_events for digest in digests)),
        "revenue_events_converted": dg.MetadataValue.int(sum(digest.revenue_events_converted for digest in digests)),
        # Left out if unknown, which is not zero.
        **({} if totals.revenue_usd is None else {"revenue_usd": dg.MetadataValue.float(totals.revenue_usd)}),
        "digest": dg.MetadataValue.md(digest_markdown(digests)),
        "plot": dg.MetadataValue.md(plot_markdown(totals_by_day, day)),
    }


def days_computed(instance: dg.DagsterInstance) -> set[dt.date]:
    """Return the days whose sessions were materialized."""
    return {dt.date.fromisoformat(key) for key in instance.get_materialized_partitions(WEB_SESSIONS)}


def _days_never_computed(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster, days: Sequence[dt.date]
) -> list[str]:
    """Return the days that have no row in the web tables and that no run has computed."""
    query = Query(DAYS_WITH_TRAFFIC_STATEMENT, {"first": min(days), "last": max(days)})
    with_traffic = {day for (day,) in cluster.any_host(query).result()}
    missing = [day for day in days if day not in with_traffic]
    computed = days_computed(instance) if missing else set()
    return [str(day) for day in missing if day not in computed]
