"""What no single product team owns."""

from dags.common.owners import JobOwners
from dags.locations import build_definitions
from dags.maintenance.run_retention import run_retention_job, run_retention_schedule
from dags.slack_alerts import notify_slack_on_failure

defs = build_definitions(
    owner=JobOwners.TEAM_DATA_PLATFORM,
    jobs=[run_retention_job],
    schedules=[run_retention_schedule],
    sensors=[notify_slack_on_failure],
)
