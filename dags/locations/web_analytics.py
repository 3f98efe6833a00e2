"""Web analytics: the table of sessions, its checks and its exports."""

from dags.common.owners import JobOwners
from dags.locations import build_definitions
from dags.web_preaggregated.assets import (
    max_partitions_per_run,
    web_analytics_team_selection,
    web_sessions_current_day,
    web_sessions_daily,
)
from dags.web_preaggregated.checks import web_checks
from dags.web_preaggregated.exports import web_exports
from dags.web_preaggregated.jobs import (
    exports_follow_web_tables,
    recompute_stale_days,
    record_override_days_job,
    web_analytics_daily_job,
    web_analytics_daily_schedule,
    web_pre_aggregate_current_day_hourly_job,
    web_pre_aggregate_current_day_hourly_schedule,
    web_sessions_check_job,
    web_sessions_check_schedule,
)

# Dagster takes this number from the definitions, so it is read when they are loaded.
PARTITIONS_PER_RUN = max_partitions_per_run()

defs = build_definitions(
    owner=JobOwners.TEAM_WEB_ANALYTICS,
    assets=[
        web_sessions_daily(PARTITIONS_PER_RUN),
        web_sessions_current_day,
        web_analytics_team_selection,
        *web_exports(PARTITIONS_PER_RUN),
    ],
    asset_checks=web_checks,
    jobs=[
        record_override_days_job,
        web_analytics_daily_job,
        web_pre_aggregate_current_day_hourly_job,
        web_sessions_check_job,
    ],
    schedules=[
        web_analytics_daily_schedule,
        web_pre_aggregate_current_day_hourly_schedule,
        web_sessions_check_schedule,
    ],
    sensors=[exports_follow_web_tables, recompute_stale_days],
)
