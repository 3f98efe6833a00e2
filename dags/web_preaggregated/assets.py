"""The assets of web analytics: the sessions of closed days, those of the current day, and the selection of teams."""

import datetime as dt

import dagster as dg
from pydantic import Field

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.staging import drop_leftovers
from dags.common.clickhouse.tables import WEB_PRE_AGGREGATED_TEAMS, WEB_SESSIONS
from dags.common.failures import fail_without_retry
from dags.common.markdown import code, markdown_table
from dags.common.metadata import PARTITION_ROW_COUNT, table_metadata
from dags.common.owners import JobOwners, owner_tags
from dags.common.resources import ClickhouseResource
from dags.common.schedules import run_is_finished
from dags.common.settings import Settings, SettingsError
from dags.common.tags import NO_CHECK_BECAUSE, WEB_TABLES_POOL
from dags.web_preaggregated.aggregate import AggregationOutcome, DayNumbers, pre_aggregate
from dags.web_preaggregated.teams import select_teams, selected_teams

OWNER = JobOwners.TEAM_WEB_ANALYTICS
GROUP = "web_analytics"

# Events are loaded into this asset.
EVENTS = dg.AssetKey("events")
SESSIONS_DAILY = dg.AssetKey("web_sessions_daily")
SESSIONS_CURRENT_DAY = dg.AssetKey("web_sessions_current_day")
TEAM_SELECTION = dg.AssetKey("web_analytics_team_selection")

# The pool of every step that computes web tables. Its limit in dagster.yaml is one run at a time.
POOL = WEB_TABLES_POOL

# The last partition is yesterday: another asset computes the current day of the same table. The start is early enough
# for imports.
DAILY_PARTITIONS = dg.DailyPartitionsDefinition(start_date="2015-01-01", timezone="UTC")
RETRY_POLICY = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
# For so long after midnight yesterday is computed with the current day: the daily job may not have computed it yet.
YESTERDAY_GRACE_PERIOD = dt.timedelta(hours=3)


class CurrentDayConfig(dg.Config):
    """Run config of the current day."""

    now: str | None = Field(
        default=None,
        description="Time to compute as of, in ISO 8601 with a time zone. Default: the time of the run.",
    )


class TeamSelectionConfig(dg.Config):
    """Run config of the selection of teams."""

    team_ids: list[int] = Field(
        default_factory=list,
        description="Compute only these teams, and remove the sessions of all others. Default or "
        "empty: all teams. An added team has sessions from the next run on: backfill its earlier days.",
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


def web_sessions_daily(partitions_per_run: int) -> dg.AssetsDefinition:
    """Return the asset of the sessions of closed days."""

    @dg.asset(
        key=SESSIONS_DAILY,
        deps=[EVENTS, TEAM_SELECTION],
        description="The sessions of a day in the table web_sessions, one row for each, with their pages.",
        group_name=GROUP,
        kinds={"clickhouse"},
        metadata=table_metadata(WEB_SESSIONS),
        op_tags=owner_tags(OWNER),
        partitions_def=DAILY_PARTITIONS,
        backfill_policy=backfill_policy(partitions_per_run),
        retry_policy=RETRY_POLICY,
        pool=POOL,
    )
    def web_sessions_daily(context: dg.AssetExecutionContext, clickhouse: ClickhouseResource) -> None:
        days = [dt.date.fromisoformat(key) for key in context.partition_keys]
        outcome = _compute(context, clickhouse.cluster(context), days)
        for day in days:
            numbers = outcome.days[day]
            metadata = {PARTITION_ROW_COUNT: dg.MetadataValue.int(numbers.sessions), **_metadata(outcome, numbers)}
            context.add_asset_metadata(metadata, partition_key=day.isoformat())

    return web_sessions_daily


@dg.asset(
    key=SESSIONS_CURRENT_DAY,
    deps=[EVENTS, TEAM_SELECTION],
    description="The sessions of the current day in the table web_sessions, and of yesterday for some hours after "
    "midnight. The daily job computes the day again when its sessions have ended.",
    group_name=GROUP,
    kinds={"clickhouse"},
    metadata=table_metadata(WEB_SESSIONS),
    op_tags=owner_tags(OWNER),
    retry_policy=RETRY_POLICY,
    pool=POOL,
    # It is computed every hour.
    freshness_policy=dg.FreshnessPolicy.time_window(dt.timedelta(hours=4), dt.timedelta(hours=2)),
)
def web_sessions_current_day(
    context: dg.AssetExecutionContext, config: CurrentDayConfig, clickhouse: ClickhouseResource
) -> dg.MaterializeResult[None]:
    """Compute today, and yesterday shortly after midnight."""
    now = dt.datetime.fromisoformat(config.now) if config.now else dt.datetime.now(dt.UTC)
    if now.tzinfo is None:
        raise dg.Failure(f"now is {config.now}, without a time zone. Add one, such as +00:00.", allow_retries=False)
    today = now.astimezone(dt.UTC).date()
    days = sorted({(now.astimezone(dt.UTC) - YESTERDAY_GRACE_PERIOD).date(), today})
    outcome = _compute(context, clickhouse.cluster(context), days)
    return dg.MaterializeResult(metadata=_metadata(outcome, outcome.days[today]))


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
    """The teams that are computed: those of the run config, or all. The sessions of other teams are removed."""
    cluster = clickhouse.cluster(context)
    change = select_teams(cluster, config.team_ids)
    return dg.MaterializeResult(
        metadata={
            "selected_teams": len(set(config.team_ids)),
            "all_teams": not config.team_ids,
            "added": list(change.added),
            "removed": list(change.removed),
            "sessions_removed": change.sessions_removed,
        }
    )


def _compute(context: dg.AssetExecutionContext, cluster: ClickhouseCluster, days: list[dt.date]) -> AggregationOutcome:
    dropped = drop_leftovers(cluster, lambda run_id: run_is_finished(context.instance, run_id))
    if dropped:
        context.log.info(f"Dropped staging tables of finished runs: {', '.join(dropped)}")
    teams = selected_teams(cluster)
    with fail_without_retry():
        outcome = pre_aggregate(cluster, days, run_id=context.run.run_id, team_ids=teams)
    context.log.info(
        f"{len(days)} days, {'all teams' if teams is None else f'{len(teams)} teams'}: "
        f"{sum(day.pageviews for day in outcome.days.values())} pageviews in {outcome.seconds:.1f} seconds, "
        f"{outcome.rows_read} rows read, {outcome.peak_memory_bytes / 2**20:.0f} MiB of peak memory"
    )
    return outcome


def _metadata(outcome: AggregationOutcome, day: DayNumbers) -> dict[str, dg.MetadataValue]:
    """Return the metadata of one day. The cost is that of the run, which computes its days together."""
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
        "raw_pageviews": dg.MetadataValue.int(day.raw_pageviews),
        "left_out_pageviews": dg.MetadataValue.int(sum(day.left_out.values())),
        **{f"left_out_{rule}": dg.MetadataValue.int(count) for rule, count in day.left_out.items()},
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
