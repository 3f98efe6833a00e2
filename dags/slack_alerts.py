"""Alert policy: the Slack channel of each team, the thresholds of jobs, and the sensor that notifies.

How failures are read, decided and delivered is in `dags/alerts`.
"""

import datetime as dt
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from dags.alerts import route
from dags.alerts.values import Policy
from dags.common.owners import JobOwners, owner_tags
from dags.common.resources import SlackResource
from dags.common.slack import make_slack

if TYPE_CHECKING:
    from slack_sdk import WebClient

    from dags.alerts.tick import TickReport
    from dags.common.settings import Settings

notification_channel_per_team: Mapping[str, str] = {
    JobOwners.TEAM_ANALYTICS_PLATFORM.value: "#alerts-analytics-platform",
    JobOwners.TEAM_CLICKHOUSE.value: "#alerts-clickhouse",
    JobOwners.TEAM_DATA_PLATFORM.value: "#alerts-data-platform",
    JobOwners.TEAM_INGESTION.value: "#alerts-ingestion",
    JobOwners.TEAM_REVENUE_ANALYTICS.value: "#alerts-revenue-analytics",
    JobOwners.TEAM_WEB_ANALYTICS.value: "#alerts-web-analytics",
}

# Consecutive failures of a job after which its team is notified. Jobs without an entry: 1.
CONSECUTIVE_FAILURE_THRESHOLDS: Mapping[str, int] = {
    # It recomputes the same day every hour, so the next run makes up for a failed one.
    "web_pre_aggregate_current_day_hourly_job": 3,
}

SECONDS_BETWEEN_TICKS = 10


def get_job_owner_for_alert(run: dg.DagsterRun, step_owner: str | None = None) -> str | None:
    """Return the team to notify of a failed run: the owner of the failed step, else of the run, else of its location.

    None means unowned: such a failure goes to the default channel.
    """
    return route.get_job_owner_for_alert(run, step_owner)


def alert_policy(settings: "Settings") -> Policy:
    """Return the channels and thresholds above, with what the environment adds."""
    return Policy(
        channel_of_owner=notification_channel_per_team,
        default_channel=settings.dagster_default_slack_alerts_channel,
        thresholds=CONSECUTIVE_FAILURE_THRESHOLDS,
        domain=settings.dagster_domain,
    )


@dg.sensor(
    minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notifies the owning team of each failure on this instance. Exactly one of these runs on an instance.",
    tags=owner_tags(JobOwners.TEAM_DATA_PLATFORM),
)
def notify_slack_on_failure(context: dg.SensorEvaluationContext, slack: SlackResource) -> dg.SensorResult:
    """Run one tick of the alert router. The cursor is only shown; the state is in the router's own store."""
    from dags.common.settings import get_settings

    settings = get_settings()
    report = run_tick(context.instance, settings, slack.client())
    report.raise_for_problems()
    return dg.SensorResult(
        cursor=f"{report.horizon:%Y-%m-%d %H:%M:%S} UTC",
        skip_reason=dg.SkipReason(summary(report, is_production=settings.cloud_deployment is not None)),
    )


def client_for(settings: "Settings") -> "WebClient":
    """Return a client of Slack in production, and one that only logs elsewhere."""
    return make_slack(settings)


def run_tick(instance: dg.DagsterInstance, settings: "Settings", client: "WebClient") -> "TickReport":
    """Run one tick on the store of the instance."""
    from dags.alerts import redact, store, watch
    from dags.alerts.tick import tick

    policy = alert_policy(settings)
    clock = partial(dt.datetime.now, dt.UTC)
    secrets = redact.secret_values(settings)
    opened = store.open_store(store.address_of(instance))
    try:
        rules = partial(
            watch.findings,
            instance,
            opened,
            policy,
            clock,
            partial(redact.redact, secrets=secrets),
            webserver_url=settings.dagster_webserver_url,
        )
        return tick(instance, opened, client, policy, clock, secrets=secrets, watch=rules)
    finally:
        opened.dispose()


def summary(report: "TickReport", *, is_production: bool) -> str:
    """Return what a tick did, in one line for the list of ticks."""
    words = [
        f"{report.events} new events, {report.failures} failures.",
        f"{report.delivered.sent} messages sent, {report.delivered.waiting} waiting.",
    ]
    if not is_production:
        words.append("Not production: messages are logged and not sent.")
    if report.rescued:
        words.append(f"{len(report.rescued)} failed runs were found only by the sweep.")
    if report.undecodable:
        words.append(f"{len(report.undecodable)} events could not be decoded.")
    words += [f"{channel}: {fault}." for channel, fault in report.delivered.faults.items()]
    return " ".join(words)
