"""What no single product team owns. team-data-platform."""

from dags.locations import build_definitions
from dags.slack_alerts import notify_slack_on_failure

defs = build_definitions(sensors=[notify_slack_on_failure])
