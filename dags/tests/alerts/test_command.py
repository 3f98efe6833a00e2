import datetime as dt
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner, Result
from dagster._daemon.types import DaemonHeartbeat

from dags.alerts.__main__ import main
from dags.alerts.values import Policy
from dags.common.settings import Settings, get_settings
from dags.common.slack import make_logging_client
from dags.tests.alerts.fake_slack import Kind
from dags.tests.alerts.site import POLICY, Site, opened
from dags.tests.alerts.world import op_job, user_error

if TYPE_CHECKING:
    from slack_sdk import WebClient

ROOT = Path(__file__).resolve().parents[3]
clients: "list[WebClient]" = []


@pytest.fixture
def site(memory_path: Path) -> Iterator[Site]:
    """Open a site in files: the commands do the same on either database."""
    with opened(memory_path / "home") as made:
        made.tick()
        yield made


def alert_policy(settings: Settings) -> Policy:
    """Return the policy: this module is the policy module of the commands under test."""
    del settings
    return POLICY


def client_for(settings: Settings) -> "WebClient":
    del settings
    return clients[0] if clients else make_logging_client()


def run(site: Site, *arguments: str) -> Result:
    """Run a command on the instance of the site."""
    environment = {"DAGSTER_HOME": site.world.instance.root_directory}
    return CliRunner(env=environment).invoke(main, ["--policy-module", __name__, *arguments])


def facts(output: str) -> dict[str, str]:
    return dict(re.findall(r"^([A-Z][A-Za-z ]+): +(.*)$", output.partition("\nThe message")[0], re.MULTILINE))


def test_a_preview_of_a_failure_shows_the_message_and_the_reasons(site: Site) -> None:
    run_id = site.world.fail(op_job("two_teams", ("team-a", "team-b")), ["step_1"])
    result = run(site, "preview", run_id)
    assert result.exit_code == 0, result.output
    shown = facts(result.output)
    assert shown["Owner"] == "team-b, by the tag of the failed step step_1"
    assert (shown["Channel"], shown["Series"]) == ("#b", "web/two_teams/manual")
    assert (shown["Consecutive failures"], shown["Threshold"]) == ("1", "1, the default")
    assert shown["Incident"] == f"new: {run_id}/team-b"
    assert shown["Disposition"] == "notified: opens an incident"
    assert shown["On record"] == "nothing: the router has not decided about it yet"
    assert "`two_teams` is failing" in result.output
    site.settle()
    assert site.posts("#b")[0].text.splitlines()[0] in result.output


def test_a_preview_of_a_notified_failure_says_where(site: Site) -> None:
    run_id = site.world.fail(op_job("plain"))
    site.settle()
    shown = facts(run(site, "preview", run_id).output)
    assert shown["Incident"].startswith(f"{run_id}/team-a, opened")
    assert shown["Disposition"] == "notified: in the thread of its incident"
    assert "sent to #a (ts " in shown["On record"]


def test_a_preview_shows_a_failure_below_the_threshold_and_a_muted_one(site: Site) -> None:
    first = site.world.fail(op_job("thrice"))
    site.settle()
    second = site.world.fail(op_job("thrice"))
    shown = facts(run(site, "preview", second).output)
    assert shown["Threshold"] == "3, of thrice in CONSECUTIVE_FAILURE_THRESHOLDS"
    assert shown["Disposition"] == "not notified: below the threshold, 2 of 3"
    assert "below the threshold" in facts(run(site, "preview", first).output)["On record"]
    assert run(site, "mute", "--match", "job:plain", "--for", "1h", "--reason", "known").exit_code == 0
    site.world.now = dt.datetime.now(dt.UTC)
    muted = site.world.fail(op_job("plain"))
    assert facts(run(site, "preview", muted).output)["Disposition"] == "not notified: muted by mute 1"


def test_a_preview_of_runs_that_did_not_fail_says_that_nobody_is_notified(site: Site) -> None:
    job = op_job("plain")
    runs = [site.world.start(job), site.world.succeed(job), site.world.cancel(job)]
    words = [facts(run(site, "preview", one).output)["Disposition"] for one in runs]
    assert words == [
        "none: the run has not ended",
        "not notified: the run succeeded",
        "not notified: canceled",
    ]
    site.world.fail(job)
    site.settle()
    assert "ends the consecutive failures" in facts(run(site, "preview", site.world.succeed(job)).output)["Disposition"]


def test_a_preview_sends_and_changes_nothing(site: Site) -> None:
    run_id = site.world.fail(op_job("plain"))
    for _ in range(2):
        run(site, "preview", run_id)
    assert site.posts("#a") == []
    assert site.dispositions() == {}


def test_a_preview_is_the_same_without_a_store_and_makes_none(memory_path: Path) -> None:
    with opened(memory_path / "home") as site:
        run_id = site.world.fail(op_job("plain"))
        with_store = run(site, "preview", run_id)
        site.store.dispose()
        for file in (memory_path / "home").glob("alerts.sqlite*"):
            file.unlink()
        assert run(site, "preview", run_id).output == with_store.output
        assert not list((memory_path / "home").glob("alerts.sqlite*"))


def test_a_preview_for_programs_is_the_message_as_slack_gets_it_without_secrets(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "hunter2-secret"  # noqa: S105 - a test value
    monkeypatch.setenv("CLICKHOUSE_PASSWORD", secret)
    get_settings.cache_clear()
    run_id = site.world.fail(op_job("plain"), error=user_error("ValueError", f"cannot use {secret}"))
    result = run(site, "preview", run_id, "--json")
    (shown,) = json.loads(result.output)
    assert {block["type"] for block in shown["message"]["blocks"]} >= {"header", "section"}
    assert secret not in result.output


def test_a_missing_run_and_a_missing_instance_are_one_line_errors(site: Site) -> None:
    result = run(site, "preview", "no-such-run")
    assert result.exit_code == 1
    assert result.output.startswith("Error: This instance has no run no-such-run")
    nowhere = CliRunner(env={"DAGSTER_HOME": ""}).invoke(main, ["status"])
    assert nowhere.exit_code == 1
    assert len(nowhere.output.splitlines()) == 1
    assert "DAGSTER_HOME" in nowhere.output


def test_a_test_message_goes_to_the_owners_channel_and_is_marked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "clients", [site.client])
    result = run(site, "send-test", "--owner", "team-a")
    assert result.exit_code == 0, result.output
    (post,) = site.posts("#a")
    assert "🧪" in post.text
    assert "test" in post.text
    unknown = run(site, "send-test", "--owner", "team-x")
    assert "team-x has no channel" in unknown.output
    assert len(site.posts(POLICY.default_channel)) == 1


def test_a_test_message_that_slack_refuses_says_why(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "clients", [site.client])
    site.slack.fail(Kind.ERROR, code="not_in_channel")
    result = run(site, "send-test", "--owner", "team-a")
    assert result.exit_code == 1
    assert "not_in_channel" in result.output
    assert "notification_channel_per_team" in result.output


def test_a_test_message_is_only_logged_outside_production(site: Site) -> None:
    result = run(site, "send-test", "--owner", "team-a")
    assert result.exit_code == 0, result.output
    assert "nothing was sent" in result.output
    assert site.posts("#a") == []


def test_status_shows_the_figures_for_people_and_for_programs(site: Site) -> None:
    site.world.fail(op_job("plain"))
    site.settle()
    result = run(site, "status")
    assert result.exit_code == 0, result.output
    assert "#a: plain, 1 failure, opened" in result.output
    assert "Code locations are not checked: DAGSTER_WEBSERVER_URL is not set." in result.output
    figures = json.loads(run(site, "status", "--json").output)
    assert figures["incidents"][0]["title"] == "plain"
    assert figures["waiting"] == []


def test_mutes_are_made_listed_and_ended(site: Site) -> None:
    assert run(site, "mutes").output == "No mutes.\n"
    made = run(site, "mute", "--match", "asset:web_*", "--for", "4h", "--reason", "moving password=hunter2")
    assert made.output.startswith("Mute 1: asset:web_* until ")
    listed = run(site, "mutes").output
    assert "0 suppressed" in listed
    assert "hunter2" not in listed
    assert run(site, "unmute", "1").output.startswith("Mute 1 (asset:web_*) has ended.")
    assert run(site, "unmute", "1").exit_code == 1


@pytest.mark.parametrize(
    ("match", "length", "words"),
    [("web_*", "4h", "as in job:web_*"), ("job:web_*", "15d", "14 days"), ("job:web_*", "soon", "30m, 4h or 2d")],
)
def test_an_invalid_mute_is_refused_with_the_remedy(site: Site, match: str, length: str, words: str) -> None:
    result = run(site, "mute", "--match", match, "--for", length, "--reason", "known")
    assert result.exit_code == 1
    assert words in result.output


def health_of(home: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dags.alerts", "health"],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": home},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_exit_code_of_health_is_0_for_healthy_1_for_not_and_2_for_unknown(site: Site) -> None:
    home = site.world.instance.root_directory
    unhealthy = health_of(home)
    assert (unhealthy.returncode, unhealthy.stdout) == (1, "")
    assert "The sensor daemon has never run" in unhealthy.stderr
    site.world.instance.add_daemon_heartbeat(DaemonHeartbeat(dt.datetime.now().timestamp(), "SENSOR", "id", []))  # noqa: DTZ005
    site.tick()
    healthy = health_of(home)
    assert (healthy.returncode, healthy.stderr) == (0, "")
    assert healthy.stdout.startswith("Healthy. The last tick ended ")
    unknown = health_of("/there/is/no/such/directory")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("Unknown: ")


def test_every_command_has_help() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        shown = CliRunner().invoke(main, [name, "--help"]).output
        assert "Usage:" in shown
    assert {"preview", "send-test", "status", "mute", "unmute", "mutes", "health"} == set(main.commands)


def test_every_test_and_command_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "alerts.md").read_text()
    there = {
        name
        for path in (ROOT / "dags" / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 40
    assert [name for name in named if name not in there] == [], "give docs/alerts.md the new name of the test"
    commands = re.findall(r"python -m dags\.alerts ([a-z-]+)", page)
    assert commands
    assert set(commands) <= set(main.commands)
    for name in main.commands:
        assert f"`{name}" in page, f"docs/alerts.md does not describe the command {name}"
