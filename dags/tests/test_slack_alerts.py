import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from pydantic import SecretStr

from dags import slack_alerts
from dags.alerts.deliver import DeliveryError
from dags.common.resources import SlackResource
from dags.common.settings import Settings, get_settings
from dags.definitions import load_locations
from dags.slack_alerts import (
    alert_policy,
    get_job_owner_for_alert,
    notification_channel_per_team,
    notify_slack_on_failure,
    run_tick,
    summary,
)
from dags.tests.alerts.world import World, local_instance, op_job
from dags.tests.resources import slack_resource


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with local_instance(tmp_path / "home") as instance:
        yield World(instance)


def test_exactly_one_location_has_the_sensor_and_it_runs_by_default() -> None:
    having = [
        name
        for name, location in load_locations().items()
        for sensor in location.sensors or []
        if sensor.name == "notify_slack_on_failure"
    ]
    assert having == ["shared"]
    assert notify_slack_on_failure.default_status is dg.DefaultSensorStatus.RUNNING


def test_a_tick_notifies_once_and_says_that_messages_are_not_sent_outside_production(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLOUD_DEPLOYMENT", raising=False)
    get_settings.cache_clear()
    world.forward(-60)
    world.fail(op_job("plain", ("team-ingestion",)))
    with caplog.at_level("INFO"):
        for _ in range(2):
            context = dg.build_sensor_context(instance=world.instance)
            result = notify_slack_on_failure(context, slack=SlackResource())
    assert isinstance(result, dg.SensorResult)
    assert result.cursor is not None
    assert "Not production" in str(result.skip_reason)
    sent = [record.getMessage() for record in caplog.records if "Not sent: chat.postMessage" in record.getMessage()]
    assert len(sent) == 1
    assert "#alerts-ingestion" in sent[0]


def test_a_tick_fails_when_slack_takes_no_messages(world: World) -> None:
    from dags.common.slack import make_client
    from dags.tests.alerts.fake_slack import serving

    world.forward(-60)
    world.fail(op_job("plain", ("team-ingestion",)))
    with serving("#alerts-ingestion", "#alerts-data-platform") as slack:
        client = make_client("xoxb-of-somebody-else", slack.base_url)
        with pytest.raises(DeliveryError):
            notify_slack_on_failure(dg.build_sensor_context(instance=world.instance), slack=slack_resource(client))


def test_in_production_the_client_makes_each_call_once() -> None:
    production = Settings(
        cloud_deployment="EU",
        slack_token=SecretStr("xoxb-1"),
        clickhouse_password=SecretStr("secret-1"),
        object_storage_access_key_id="key",
        object_storage_secret_access_key=SecretStr("secret-2"),
        postgres_password=SecretStr("secret-3"),
        visitor_hash_key=SecretStr("secret-of-sixteen-characters"),
    )
    client = slack_alerts.client_for(production)
    assert client.token == "xoxb-1"  # noqa: S105 - a planted one
    assert client.retry_handlers == []


def test_a_tick_without_events_says_so(world: World) -> None:
    settings = Settings()
    report = run_tick(world.instance, settings, slack_alerts.client_for(settings))
    assert summary(report, is_production=True).startswith("0 new events, 0 failures. 0 messages sent, 0 waiting.")


def test_the_policy_is_that_of_this_module_and_the_environment() -> None:
    policy = alert_policy(Settings(dagster_default_slack_alerts_channel="#elsewhere", dagster_domain="dagster.example"))
    assert policy.channel_of_owner == notification_channel_per_team
    assert policy.thresholds["web_pre_aggregate_current_day_hourly_job"] == 3
    assert (policy.default_channel, policy.domain) == ("#elsewhere", "dagster.example")


def test_the_owner_of_a_run_is_that_of_the_step_else_of_the_run() -> None:
    run = dg.DagsterRun(job_name="a_job", tags={"owner": "team-clickhouse"})
    assert get_job_owner_for_alert(run) == "team-clickhouse"
    assert get_job_owner_for_alert(run, "team-ingestion") == "team-ingestion"
    assert get_job_owner_for_alert(dg.DagsterRun(job_name="a_job")) is None


def test_the_location_of_the_sensor_loads_without_the_code_of_any_team() -> None:
    program = (
        "import sys; import dags.locations.shared; "
        "print([name for name in sys.modules if name.startswith(('dags.', 'slack_sdk', 'dagster_slack', 'requests'))])"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    for team in ("events", "exchange_rate", "web_preaggregated", "clickhouse_schema"):
        assert f"'dags.{team}" not in found.stdout
    assert "'slack_sdk" not in found.stdout
