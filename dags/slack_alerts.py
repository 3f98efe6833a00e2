"""Alert policy: which Slack channel hears of which team's failures, from how many on; and the sensor that tells them.

Belongs here: what people edit. Not here: how failures are read, judged and delivered (`dags/alerts`).
"""

import datetime as dt
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from dags.alerts import route
from dags.alerts.values import Policy
from dags.common.owners import JobOwners, owner_tags

if TYPE_CHECKING:
    from slack_sdk import WebClient

    from dags.alerts.engine import TickReport
    from dags.common.settings import Settings

notification_channel_per_team: Mapping[str, str] = {
    JobOwners.TEAM_ANALYTICS_PLATFORM.value: "#alerts-analytics-platform",
    JobOwners.TEAM_CLICKHOUSE.value: "#alerts-clickhouse",
    JobOwners.TEAM_DATA_PLATFORM.value: "#alerts-data-platform",
    JobOwners.TEAM_INGESTION.value: "#alerts-ingestion",
    JobOwners.TEAM_REVENUE_ANALYTICS.value: "#alerts-revenue-analytics",
    JobOwners.TEAM_WEB_ANALYTICS.value: "#alerts-web-analytics",
}

# Failures in a row from which on a job's team is told; one where nothing stands here.
CONSECUTIVE_FAILURE_THRESHOLDS: Mapping[str, int] = {
    # It runs every hour over the same day: the next run makes good what one has missed.
    "web_pre_aggregate_current_day_hourly_job": 3,
}

SECONDS_BETWEEN_TICKS = 10


def get_job_owner_for_alert(run: dg.DagsterRun, step_owner: str | None = None) -> str | None:
    """The team that hears of a failed run: that of the failed step, else of the run's tag, else of its location.

    None is nobody: such a failure goes to the default channel.
    """
    return route.get_job_owner_for_alert(run, step_owner)


def alert_policy(settings: "Settings") -> Policy:
    """Everything above, with what the environment adds."""
    return Policy(
        channel_of_owner=notification_channel_per_team,
        default_channel=settings.dagster_default_slack_alerts_channel,
        thresholds=CONSECUTIVE_FAILURE_THRESHOLDS,
        domain=settings.dagster_domain,
    )


@dg.sensor(
    minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells the owning team of each failure on this instance. Exactly one of these runs on an instance.",
    tags=owner_tags(JobOwners.TEAM_DATA_PLATFORM),
)
def notify_slack_on_failure(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """One tick of the alert engine. Its cursor is for show: what it knows is in its own store."""
    from dags.common.settings import get_settings

    settings = get_settings()
    report = run_tick(context.instance, settings, client_for(settings))
    report.raise_for_problems()
    return dg.SensorResult(
        cursor=f"{report.horizon:%Y-%m-%d %H:%M:%S} UTC",
        skip_reason=dg.SkipReason(summary(report, is_production=settings.cloud_deployment is not None)),
    )


def client_for(settings: "Settings") -> "WebClient":
    """Slack in production; anywhere else a client that only logs."""
    from dags.alerts.slack import make_client, make_logging_client

    if settings.cloud_deployment is None or settings.slack_token is None:
        return make_logging_client()
    return make_client(settings.slack_token.get_secret_value())


def run_tick(instance: dg.DagsterInstance, settings: "Settings", client: "WebClient") -> "TickReport":
    """One tick on the instance's own store."""
    from dags.alerts import engine, redact, store, watch

    policy = alert_policy(settings)
    clock = partial(dt.datetime.now, dt.UTC)
    secrets = redact.secret_values(settings)
    opened = store.open_store(store.address_of(instance))
    try:
        find = partial(
            watch.findings,
            instance,
            opened,
            policy,
            clock,
            partial(redact.redact, secrets=secrets),
            webserver_url=settings.dagster_webserver_url,
        )
        return engine.tick(instance, opened, client, policy, clock, secrets=secrets, find=find)
    finally:
        opened.dispose()


def summary(report: "TickReport", *, is_production: bool) -> str:
    """What a tick has done, in a line for the list of ticks."""
    words = [
        f"{report.events} new events, {report.failures} failures.",
        f"{report.delivered.sent} messages sent, {report.delivered.waiting} waiting.",
    ]
    if not is_production:
        words.append("Not production: messages are logged, none leaves this machine.")
    if report.rescued:
        words.append(f"{len(report.rescued)} failed runs were found by the sweep alone.")
    if report.set_aside:
        words.append(f"{len(report.set_aside)} events could not be decoded.")
    words += [f"{channel}: {fault}." for channel, fault in report.delivered.faults.items()]
    return " ".join(words)
