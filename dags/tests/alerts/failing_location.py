"""Code locations for tests: jobs and assets that fail in different ways, and the alert router with a fake Slack.

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
from dags.alerts.tick import tick
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.settings import get_settings
from dags.common.slack import make_client
from dags.common.tags import RETRY_NUMBER_TAG
from dags.tests.alerts.fake_slack import TOKEN

# A name for which the project's own policy has a threshold.
(THRESHOLD_JOB,) = slack_alerts.CONSECUTIVE_FAILURE_THRESHOLDS
PARTITIONS = dg.StaticPartitionsDefinition([f"part_{number:02}" for number in range(50)])
MAX_WAIT_SECONDS = 300


class Wait(dg.Config):
    """A file that the step waits for before it fails. Without one it fails at once."""

    until: str = ""


@dg.op
def wait_and_fail(config: Wait) -> None:
    """Fail, at once or when a file exists."""
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while config.until and not Path(config.until).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Nobody has made {config.until}.")
        time.sleep(0.05)
    raise ValueError("the table is gone")


@dg.op
def fail_at_first(context: dg.OpExecutionContext) -> None:
    """Fail unless the run is a retry."""
    if RETRY_NUMBER_TAG not in context.run.tags:
        raise ValueError("not at the first attempt")


@dg.job(**owned_by(JobOwners.TEAM_CLICKHOUSE))
def failing_job() -> None:
    """Fail."""
    wait_and_fail()


@dg.job(name=THRESHOLD_JOB, **owned_by(JobOwners.TEAM_WEB_ANALYTICS))
def threshold_job() -> None:
    """Fail. The threshold of the job is 3 consecutive failures."""
    wait_and_fail()


@dg.job(**owned_by(JobOwners.TEAM_INGESTION))
def killed_job() -> None:
    """Fail when the file exists."""
    wait_and_fail()


@dg.job(**owned_by(JobOwners.TEAM_INGESTION, **{"dagster/max_runtime": "20"}))
def abandoned_job() -> None:
    """Fail when the file exists, with a time limit of 20 seconds."""
    wait_and_fail()


@dg.job(**owned_by(JobOwners.TEAM_ANALYTICS_PLATFORM, **{"dagster/max_retries": "1"}))
def recovering_job() -> None:
    """Fail, and succeed in the retry."""
    fail_at_first()


@dg.job(**owned_by(JobOwners.TEAM_ANALYTICS_PLATFORM, **{"dagster/max_retries": "1"}))
def retried_in_vain_job() -> None:
    """Fail, and fail again in the retry."""
    wait_and_fail()


@dg.asset(**owned_by(JobOwners.TEAM_INGESTION), op_tags=owner_tags(JobOwners.TEAM_INGESTION))
def good_before() -> None:
    """Succeed."""


@dg.asset(
    deps=[good_before],
    **owned_by(JobOwners.TEAM_CLICKHOUSE),
    op_tags=owner_tags(JobOwners.TEAM_CLICKHOUSE),
)
def bad_between() -> None:
    """Fail."""
    raise ValueError("the rate is gone")


@dg.asset(deps=[good_before], **owned_by(JobOwners.TEAM_INGESTION), op_tags=owner_tags(JobOwners.TEAM_INGESTION))
def good_beside() -> None:
    """Succeed."""


@dg.asset(
    partitions_def=PARTITIONS,
    **owned_by(JobOwners.TEAM_WEB_ANALYTICS),
    op_tags=owner_tags(JobOwners.TEAM_WEB_ANALYTICS),
)
def bad_parts(context: dg.AssetExecutionContext) -> None:
    """Fail in each partition."""
    raise ValueError(f"no data for {context.partition_key}")


@dg.sensor(job=failing_job, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def launch_once(_context: dg.SensorEvaluationContext) -> dg.RunRequest:
    """Launch the failing job once on an instance."""
    return dg.RunRequest(run_key="once")


def alert_sensor(slack_base_url: str, controls: Path) -> dg.SensorDefinition:
    """Return the project's alert sensor with its policy, another Slack, and the controls of a file.

    The file is a JSON object with `clock_ahead_seconds` and optionally `webserver_url`.
    """

    @dg.sensor(
        name=slack_alerts.notify_slack_on_failure.name,
        minimum_interval_seconds=1,
        default_status=dg.DefaultSensorStatus.RUNNING,
        tags=owner_tags(JobOwners.TEAM_DATA_PLATFORM),
    )
    def notify(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        settings = json.loads(controls.read_text())
        now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=settings["clock_ahead_seconds"])
        started = time.monotonic()

        def clock() -> dt.datetime:
            return now + dt.timedelta(seconds=time.monotonic() - started)

        policy = slack_alerts.alert_policy(get_settings())
        opened = store.open_store(store.address_of(context.instance))
        try:
            find = partial(
                watch.findings,
                context.instance,
                opened,
                policy,
                clock,
                redact,
                webserver_url=settings.get("webserver_url"),
            )
            client = make_client(TOKEN, slack_base_url)
            report = tick(context.instance, opened, client, policy, clock, watch=find)
        finally:
            opened.dispose()
        report.raise_for_problems()
        return dg.SkipReason(slack_alerts.summary(report, is_production=True))

    return notify


def router(slack_base_url: str, controls: Path) -> dg.Definitions:
    """Return the location of the alert router: see `alert_sensor`."""
    return dg.Definitions(sensors=[alert_sensor(slack_base_url, controls)])


def failing(sensors: Sequence[dg.SensorDefinition] = ()) -> dg.Definitions:
    """Return the location of the failing jobs and assets."""
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
    """Return both in one location, with a sensor that launches the failing job."""
    return failing([alert_sensor(slack_base_url, controls), launch_once])
