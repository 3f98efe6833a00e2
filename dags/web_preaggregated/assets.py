"""The assets of web analytics: the two daily tables, the two hourly tables, and the selection of teams."""

import datetime as dt
from collections.abc import Iterator, Mapping

import dagster as dg
from pydantic import Field

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import Table
from dags.common.clickhouse.staging import drop_leftovers
from dags.common.clickhouse.tables import WEB_PRE_AGGREGATED_TEAMS
from dags.common.failures import fail_without_retry
from dags.common.markdown import code, markdown_table
from dags.common.metadata import PARTITION_ROW_COUNT, table_metadata
from dags.common.owners import JobOwners, owner_tags
from dags.common.resources import ClickhouseResource
from dags.common.schedules import run_is_finished
from dags.common.settings import Settings, SettingsError
from dags.common.tags import NO_CHECK_BECAUSE
from dags.web_preaggregated.aggregate import AggregationOutcome, DayNumbers, pre_aggregate
from dags.web_preaggregated.statements import DAILY, HOURLY, ONE_DAY, Grain
from dags.web_preaggregated.teams import select_teams, selected_teams

OWNER = JobOwners.TEAM_WEB_ANALYTICS
GROUP = "web_analytics"

# Events are loaded into this asset.
EVENTS = dg.AssetKey("events")
STATS_DAILY = dg.AssetKey("web_analytics_stats_table_daily")
BOUNCES_DAILY = dg.AssetKey("web_analytics_bounces_daily")
STATS_HOURLY = dg.AssetKey("web_analytics_stats_table_hourly")
BOUNCES_HOURLY = dg.AssetKey("web_analytics_bounces_hourly")
TEAM_SELECTION = dg.AssetKey("web_analytics_team_selection")

# The pool of every step that computes web tables. Its limit in dagster.yaml is one run at a time.
POOL = "web_pre_aggregation"

# The last partition is yesterday: the current day is in the hourly tables. The start is early enough for imports.
DAILY_PARTITIONS = dg.DailyPartitionsDefinition(start_date="2015-01-01", timezone="UTC")
RETRY_POLICY = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
# For so long after midnight the hourly tables also compute yesterday, which the daily tables may not have yet.
YESTERDAY_GRACE_PERIOD = dt.timedelta(hours=3)


class CurrentDayConfig(dg.Config):
    """Run config of the hourly tables."""

    now: str | None = Field(
        default=None,
        description="Time to compute as of, in ISO 8601 with a time zone. Default: the time of the run.",
    )


class TeamSelectionConfig(dg.Config):
    """Run config of the selection of teams."""

    team_ids: list[int] = Field(
        default_factory=list,
        description="Compute only these teams, and remove the rows of all others from the web tables. Default or "
        "empty: all teams. An added team has rows from the next run on: backfill its earlier days.",
    )


def _spec(key: dg.AssetKey, table: Table, description: str, metadata: Mapping[str, str] | None = None) -> dg.AssetSpec:
    return dg.AssetSpec(
        key,
        deps=[EVENTS, TEAM_SELECTION],
        description=description,
        group_name=GROUP,
        kinds={"clickhouse"},
        metadata={**table_metadata(table), **(metadata or {})},
    )


def max_partitions_per_run() -> int:
    """Return the maximum number of days per run of a backfill, from the environment.

    Dagster takes it from the definitions, so it is read when a location loads. Invalid settings give the default: they
    must not keep the location from loading, and every run and tick reports them.
    """
    try:
        return Settings().dagster_web_preaggregated_max_partitions_per_run
    except SettingsError:
        return int(Settings.model_fields["dagster_web_preaggregated_max_partitions_per_run"].default)


def backfill_policy(partitions_per_run: int) -> dg.BackfillPolicy:
    """Return a policy of several days per run: consecutive days share one pass over their events."""
    return dg.BackfillPolicy.multi_run(max_partitions_per_run=partitions_per_run)


def daily_web_tables(partitions_per_run: int) -> dg.AssetsDefinition:
    """Return the asset of both daily tables, which are computed from the same sessions in one pass."""

    @dg.multi_asset(
        name="web_analytics_daily_tables",
        specs=[
            _spec(STATS_DAILY, DAILY.stats, "Pageviews, visitors and sessions of a day by page."),
            _spec(BOUNCES_DAILY, DAILY.bounces, "Sessions, bounces and duration of a day."),
        ],
        op_tags=owner_tags(OWNER),
        partitions_def=DAILY_PARTITIONS,
        backfill_policy=backfill_policy(partitions_per_run),
        retry_policy=RETRY_POLICY,
        pool=POOL,
    )
    def web_analytics_daily_tables(
        context: dg.AssetExecutionContext, clickhouse: ClickhouseResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        days = [dt.date.fromisoformat(key) for key in context.partition_keys]
        outcome = _compute(context, clickhouse.cluster(context), DAILY, days)
        for key, table in ((STATS_DAILY, DAILY.stats.name), (BOUNCES_DAILY, DAILY.bounces.name)):
            for day in days:
                numbers = outcome.days[day]
                metadata = {
                    PARTITION_ROW_COUNT: dg.MetadataValue.int(numbers.rows[table]),
                    **_metadata(outcome, numbers),
                }
                context.add_asset_metadata(metadata, asset_key=key, partition_key=day.isoformat())
            yield dg.MaterializeResult(asset_key=key)

    return web_analytics_daily_tables


@dg.multi_asset(
    name="web_analytics_hourly_tables",
    specs=[
        _spec(STATS_HOURLY, HOURLY.stats, "Pageviews, visitors and sessions of the current day by hour and page."),
        _spec(
            BOUNCES_HOURLY,
            HOURLY.bounces,
            "Sessions, bounces and duration of the current day by hour.",
            {NO_CHECK_BECAUSE: "It is computed with web_analytics_stats_table_hourly, whose freshness is checked."},
        ),
    ],
    op_tags=owner_tags(OWNER),
    retry_policy=RETRY_POLICY,
    pool=POOL,
)
def web_analytics_hourly_tables(
    context: dg.AssetExecutionContext, config: CurrentDayConfig, clickhouse: ClickhouseResource
) -> Iterator[dg.MaterializeResult[None]]:
    """The current day, and yesterday for some hours after midnight. Older days are dropped."""
    now = dt.datetime.fromisoformat(config.now) if config.now else dt.datetime.now(dt.UTC)
    if now.tzinfo is None:
        raise dg.Failure(f"now is {config.now}, without a time zone. Add one, such as +00:00.", allow_retries=False)
    today = now.astimezone(dt.UTC).date()
    days = sorted({(now.astimezone(dt.UTC) - YESTERDAY_GRACE_PERIOD).date(), today})
    outcome = _compute(context, clickhouse.cluster(context), HOURLY, days, drop_before=today - ONE_DAY)
    for key, table in ((STATS_HOURLY, HOURLY.stats.name), (BOUNCES_HOURLY, HOURLY.bounces.name)):
        numbers = outcome.days[today]
        metadata = {"rows_today": dg.MetadataValue.int(numbers.rows[table]), **_metadata(outcome, numbers)}
        yield dg.MaterializeResult(asset_key=key, metadata=metadata)


@dg.asset(
    key=TEAM_SELECTION,
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    kinds={"clickhouse"},
    retry_policy=RETRY_POLICY,
    pool=POOL,
    metadata={
        **table_metadata(WEB_PRE_AGGREGATED_TEAMS),
        NO_CHECK_BECAUSE: "It is a manual choice: there is nothing to compare it with.",
    },
)
def web_analytics_team_selection(
    context: dg.AssetExecutionContext, config: TeamSelectionConfig, clickhouse: ClickhouseResource
) -> dg.MaterializeResult[None]:
    """The teams that are computed: those of the run config, or all. The rows of other teams are removed."""
    cluster = clickhouse.cluster(context)
    change = select_teams(cluster, config.team_ids)
    return dg.MaterializeResult(
        metadata={
            "selected_teams": len(set(config.team_ids)),
            "all_teams": not config.team_ids,
            "added": list(change.added),
            "removed": list(change.removed),
            **{f"rows_removed_from_{table}": rows for table, rows in change.rows_removed.items()},
        }
    )


def _compute(
    context: dg.AssetExecutionContext,
    cluster: ClickhouseCluster,
    grain: Grain,
    days: list[dt.date],
    drop_before: dt.date | None = None,
) -> AggregationOutcome:
    dropped = drop_leftovers(cluster, lambda run_id: run_is_finished(context.instance, run_id))
    if dropped:
        context.log.info(f"Dropped staging tables of finished runs: {', '.join(dropped)}")
    teams = selected_teams(cluster)
    with fail_without_retry():
        outcome = pre_aggregate(
            cluster, grain, days, run_id=context.run.run_id, team_ids=teams, drop_before=drop_before
        )
    context.log.info(
        f"{len(days)} days, {'all teams' if teams is None else f'{len(teams)} teams'}: "
        f"{sum(day.pageviews for day in outcome.days.values())} pageviews in {outcome.seconds:.1f} seconds, "
        f"{outcome.rows_read} rows read, {outcome.peak_memory_bytes / 2**20:.0f} MiB of peak memory"
    )
    return outcome


def _metadata(outcome: AggregationOutcome, day: DayNumbers) -> dict[str, dg.MetadataValue]:
    """Return the metadata of one day of a table. The cost is that of the run, which computes its days together."""
    # Without sessions a rate is unknown, not zero, so it is left out.
    rates = (
        {
            "bounce_rate_percent": 100 * day.bounces / day.sessions,
            "mean_session_duration_seconds": day.session_seconds / day.sessions,
        }
        if day.sessions
        else {}
    )
    return {
        "pageviews": dg.MetadataValue.int(day.pageviews),
        "visitors": dg.MetadataValue.int(day.visitors),
        "sessions": dg.MetadataValue.int(day.sessions),
        "bounces": dg.MetadataValue.int(day.bounces),
        **{name: dg.MetadataValue.float(round(rate, 3)) for name, rate in rates.items()},
        "teams": dg.MetadataValue.int(day.teams),
        "pageviews_without_session": dg.MetadataValue.int(day.pageviews_without_session),
        "seconds_of_run": dg.MetadataValue.float(round(outcome.seconds, 3)),
        "rows_read_by_run": dg.MetadataValue.int(outcome.rows_read),
        "bytes_read_by_run": dg.MetadataValue.int(outcome.bytes_read),
        "peak_memory_of_run_bytes": dg.MetadataValue.int(outcome.peak_memory_bytes),
        "days_in_run": dg.MetadataValue.int(len(outcome.days)),
        "top_pages": dg.MetadataValue.md(_top_pages_table(day)),
    }


def _top_pages_table(day: DayNumbers) -> str:
    rows = [
        [page.team_id, code(page.host), code(page.pathname), page.pageviews, page.visitors] for page in day.top_pages
    ]
    return markdown_table(["team", "host", "path", "pageviews", "visitors"], "rllrr", rows) or "No pageviews."
