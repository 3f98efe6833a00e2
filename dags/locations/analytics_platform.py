"""The daily digest of every team's visits and revenue, and an example to copy from."""

from dags.common.owners import JobOwners
from dags.daily_digest.assets import analytics_digest_daily
from dags.daily_digest.checks import analytics_digest_daily_equals_web_tables
from dags.daily_digest.jobs import analytics_digest_daily_job, digest_follows_web_tables
from dags.locations import build_definitions

defs = build_definitions(
    owner=JobOwners.TEAM_ANALYTICS_PLATFORM,
    assets=[analytics_digest_daily],
    asset_checks=[analytics_digest_daily_equals_web_tables],
    jobs=[analytics_digest_daily_job],
    sensors=[digest_follows_web_tables],
)
