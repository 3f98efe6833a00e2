"""The job of the daily digest, and the sensor that requests the days whose web tables were computed."""

import dagster as dg

from dags.common.automation import following_sensor
from dags.common.owners import owned_by
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.daily_digest.assets import OWNER, analytics_digest_daily

MAX_RUNTIME_SECONDS = 1800

analytics_digest_daily_job = dg.define_asset_job(
    "analytics_digest_daily_job",
    selection=dg.AssetSelection.assets(analytics_digest_daily),
    description="Computes days of the digest.",
    # Computing a day again converges, so a run whose process died is started again.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: str(MAX_RUNTIME_SECONDS), MAX_RETRIES_TAG: "1"}),
)

digest_follows_web_tables = following_sensor(
    "digest_follows_web_tables", dg.AssetSelection.assets(analytics_digest_daily), OWNER, MAX_RUNTIME_SECONDS
)
