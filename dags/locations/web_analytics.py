"""Web analytics: the pre-aggregated tables of pageviews, visitors, sessions and bounces. team-web-analytics."""

from dags.locations import build_definitions
from dags.web_preaggregated.assets import (
    daily_web_tables,
    max_partitions_per_run,
    web_analytics_hourly_tables,
    web_analytics_team_selection,
)
from dags.web_preaggregated.checks import (
    web_bounces_daily_equals_raw_events,
    web_bounces_daily_has_data,
    web_stats_daily_equals_raw_events,
    web_stats_daily_has_data,
    web_stats_daily_is_fresh,
    web_stats_hourly_is_fresh,
)
from dags.web_preaggregated.exports import web_exports
from dags.web_preaggregated.jobs import (
    web_analytics_daily_job,
    web_analytics_daily_schedule,
    web_pre_aggregate_current_day_hourly_job,
    web_pre_aggregate_current_day_hourly_schedule,
)

# Dagster takes it from the definitions, so it is read when they are loaded: see `max_partitions_per_run`.
PARTITIONS_PER_RUN = max_partitions_per_run()

defs = build_definitions(
    assets=[
        daily_web_tables(PARTITIONS_PER_RUN),
        web_analytics_hourly_tables,
        web_analytics_team_selection,
        *web_exports(max_partitions_per_run()),
    ],
    asset_checks=[
        web_bounces_daily_equals_raw_events,
        web_bounces_daily_has_data,
        web_stats_daily_equals_raw_events,
        web_stats_daily_has_data,
        web_stats_daily_is_fresh,
        web_stats_hourly_is_fresh,
    ],
    jobs=[web_analytics_daily_job, web_pre_aggregate_current_day_hourly_job],
    schedules=[web_analytics_daily_schedule, web_pre_aggregate_current_day_hourly_schedule],
)
