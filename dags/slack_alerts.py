"""Alert policy: which Slack channel hears of which team's failures."""

from collections.abc import Mapping

from dags.common.owners import JobOwners

notification_channel_per_team: Mapping[str, str] = {
    JobOwners.TEAM_ANALYTICS_PLATFORM.value: "#alerts-analytics-platform",
    JobOwners.TEAM_CLICKHOUSE.value: "#alerts-clickhouse",
    JobOwners.TEAM_DATA_PLATFORM.value: "#alerts-data-platform",
    JobOwners.TEAM_INGESTION.value: "#alerts-ingestion",
    JobOwners.TEAM_REVENUE_ANALYTICS.value: "#alerts-revenue-analytics",
    JobOwners.TEAM_WEB_ANALYTICS.value: "#alerts-web-analytics",
}
