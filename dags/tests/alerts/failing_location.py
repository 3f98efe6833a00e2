"""Code locations for tests: jobs and assets that fail as tests want it, and the alert engine on a Slack of the test.

A test lists in its workspace files that call `failing` and `router`. Nothing here is loaded by a deployment.
"""

import datetime as dt
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import dagster as dg

from dags import slack_alerts
from dags.alerts import store, watch
from dags.alerts.redact import redact
from dags.alerts.slack import make_client
from dags.alerts.tick import tick
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.settings import get_settings
from dags.tests.alerts.fake_slack import TOKEN

# A name for which the project's own policy has a threshold.
(THRESHOLD_JOB,) = slack_alerts.CONSECUTIVE_FAILURE_THRESHOLDS
PARTITIONS = dg.StaticPartitionsDefinition([f"part_{number:02}" for number in range(50)])
RETRY_NUMBER_TAG = "dagster/retry_number"
LONGEST_WAIT_SECONDS = 300


class Wait(dg.Config):
    """A file that the step waits for before it fails; without one it fails at once."""

    until: str = ""


@dg.op
def wait_and_fail(config: Wait) -> None:
    """Fails, sooner or later."""
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while config.until and not Path(config.until).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Nobody has made {config.until}.")
        time.sleep(0.05)
    raise ValueError("the table is gone")


@dg.op
def fail_at_first(context: dg.OpExecutionContext) -> None:
    """Fails unless its run repeats another."""
    if RETRY_NUMBER_TAG not in context.run.tags:
        raise ValueError("not at the first attempt")


@dg.job(**owned_by(JobOwners.TEAM_CLICKHOUSE))
def failing_job() -> None:
    """Fails."""
    wait_and_fail()


@dg.job(name=THRESHOLD_JOB, **owned_by(JobOwners.TEAM_WEB_ANALYTICS))
def threshold_job() -> None:
    """Fails; its team hears of the third time in a row."""
    wait_and_fail()


@dg.job(**owned_by(JobOwners.TEAM_INGESTION))
def killed_job() -> None:
    """Fails when it is let."""
    wait_and_fail()


@dg.job(**owned_by(JobOwners.TEAM_INGESTION, **{"dagster/max_runtime": "20"}))
def abandoned_job() -> None:
    """Fails when it is let, and may run for 20 seconds."""
    wait_and_fail()


@dg.job(**owned_by(JobOwners.TEAM_ANALYTICS_PLATFORM, **{"dagster/max_retries": "1"}))
def recovering_job() -> None:
    """Fails, and succeeds when Dagster runs it again."""
    fail_at_first()


@dg.job(**owned_by(JobOwners.TEAM_ANALYTICS_PLATFORM, **{"dagster/max_retries": "1"}))
def retried_in_vain_job() -> None:
    """Fails, and again when Dagster runs it again."""
    wait_and_fail()


@dg.asset(**owned_by(JobOwners.TEAM_INGESTION), op_tags=owner_tags(JobOwners.TEAM_INGESTION))
def good_before() -> None:
    """Succeeds."""


@dg.asset(
    deps=[good_before],
    **owned_by(JobOwners.TEAM_CLICKHOUSE),
    op_tags=owner_tags(JobOwners.TEAM_CLICKHOUSE),
)
def bad_between() -> None:
    """Fails."""
    raise ValueError("the rate is gone")


@dg.asset(deps=[good_before], **owned_by(JobOwners.TEAM_INGESTION), op_tags=owner_tags(JobOwners.TEAM_INGESTION))
def good_beside() -> None:
    """Succeeds."""


@dg.asset(
    partitions_def=PARTITIONS,
    **owned_by(JobOwners.TEAM_WEB_ANALYTICS),
    op_tags=owner_tags(JobOwners.TEAM_WEB_ANALYTICS),
)
def bad_parts(context: dg.AssetExecutionContext) -> None:
    """Fails in each partition."""
    raise ValueError(f"no data for {context.partition_key}")


@dg.sensor(job=failing_job, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def launch_once(_context: dg.SensorEvaluationContext) -> dg.RunRequest:
    """Launches the failing job once in the life of the instance."""
    return dg.RunRequest(run_key="once")


def alert_sensor(slack_base_url: str, controls: Path) -> dg.SensorDefinition:
    """The project's alert sensor with its policy, another Slack, and what the file `controls` says now.

    That is an object in JSON: `clock_ahead_seconds`, and perhaps `webserver_url`.
    """

    @dg.sensor(
        name=slack_alerts.notify_slack_on_failure.name,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        tags=owner_tags(JobOwners.TEAM_DATA_PLATFORM),
    )
    def notify(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        told = json.loads(controls.read_text())
        now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=told["clock_ahead_seconds"])
        started = time.monotonic()

        def clock() -> dt.datetime:
            return now + dt.timedelta(seconds=time.monotonic() - started)

        policy = slack_alerts.alert_policy(get_settings())
        opened = store.open_store(store.address_of(context.instance))
        try:
            find = partial(
                watch.findings, context.instance, opened, policy, clock, redact, webserver_url=told.get("webserver_url")
            )
            client = make_client(TOKEN, slack_base_url)
            report = tick(context.instance, opened, client, policy, clock, watch=find)
        finally:
            opened.dispose()
        report.raise_for_problems()
        return dg.SkipReason(slack_alerts.summary(report, is_production=True))

    return notify


def router(slack_base_url: str, controls: Path) -> dg.Definitions:
    """The location of the alert engine: see `alert_sensor`."""
    return dg.Definitions(sensors=[alert_sensor(slack_base_url, controls)])


def failing(sensors: Sequence[dg.SensorDefinition] = ()) -> dg.Definitions:
    """The location of what fails."""
    return dg.Definitions(
        assets=[good_before, bad_between, good_beside, bad_parts],
        jobs=[
            abandoned_job,
            failing_job,
            killed_job,
            recovering_job,
            retried_in_vain_job,
            threshold_job,
        ],
        sensors=sensors,
        # A process for each run and none for each step.
        executor=dg.in_process_executor,
    )


def router_and_failing(slack_base_url: str, controls: Path) -> dg.Definitions:
    """Both in one location, which launches the failing job by itself."""
    return failing([alert_sensor(slack_base_url, controls), launch_once])
