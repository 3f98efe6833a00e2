"""Runs that really fail, in processes of their own, and an alert router that a real daemon ticks.

They compare with the messages that the fake Slack stored. `test_tick.py` covers the messages in detail.
"""

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import psutil
import pytest
import sqlalchemy as sa
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from dags import slack_alerts
from dags.alerts import store, tables
from dags.alerts.decide import SETTLE_TIME
from dags.alerts.queries.stored_values import get_value
from dags.alerts.tick import WATCHED_AT
from dags.alerts.values import AttemptState
from dags.common.owners import JobOwners
from dags.common.tags import ASSET_JOB
from dags.tests import webserver
from dags.tests.alerts.failing_location import PARTITIONS, THRESHOLD_JOB
from dags.tests.alerts.fake_slack import FakeSlack, Stored, serving
from dags.tests.webserver import ROOT, START_SECONDS, Webserver, daemon, wait_for, worker_of

LOCATION = "failing"
CHANNELS = slack_alerts.notification_channel_per_team
# A run's process, 20 seconds in which its failure settles, and ticks; several times over on a busy machine.
NOTIFY_SECONDS = 150
BACKFILL_SECONDS = 900
# All that the daemon does at intervals, it does often here.
CONFIGURATION = """
telemetry:
  enabled: false
run_coordinator:
  module: dagster
  class: QueuedRunCoordinator
  config:
    dequeue_interval_seconds: 1
concurrency:
  runs:
    max_concurrent_runs: 4
run_monitoring:
  enabled: true
  poll_interval_seconds: 2
run_retries:
  enabled: true
code_servers:
  local_startup_timeout: 180
"""


# A team has it, by the project's own policy.
BREAKABLE = "web_analytics"
RELOAD = """
mutation($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) { __typename }
}
"""


def write_home(home: Path, locations: Mapping[str, str], **controls: object) -> None:
    """Write the configuration of an instance, its controls, and its locations, given the code of their definitions."""
    (home / "dagster.yaml").write_text(CONFIGURATION)
    control(home, **{"clock_ahead_seconds": 0, **controls})
    for name, made_by in locations.items():
        (home / f"{name}.py").write_text(
            f"from pathlib import Path\n\nfrom dags.tests.alerts import failing_location\n\ndefs = {made_by}\n"
        )
    entries = "".join(
        f"  - python_file:\n      relative_path: {home / name}.py\n      location_name: {name}\n"
        f"      working_directory: {ROOT}\n"
        for name in locations
    )
    (home / "workspace.yaml").write_text(f"load_from:\n{entries}")


def control(home: Path, **controls: object) -> None:
    """Set the controls of the next ticks of the alert router."""
    # Replaced at once, because a tick may be reading it.
    (home / "controls.new").write_text(json.dumps(controls))
    (home / "controls.new").replace(home / "controls.json")


def router_of(home: Path, slack: FakeSlack, name: str = "router") -> str:
    """Return the code of the definitions of a location with the alert router."""
    return f"failing_location.{name}({slack.base_url!r}, Path({str(home / 'controls.json')!r}))"


@dataclass(frozen=True)
class Platform:
    """Dagster as people run it, and the Slack that gets its alerts."""

    home: Path
    server: Webserver
    instance: dg.DagsterInstance
    slack: FakeSlack

    def launch(self, job: str, **how: object) -> str:
        """Launch a run of a job, and return its id."""
        return self.server.launch(LOCATION, job, **how)  # type: ignore[arg-type]

    def posts(self, about: str) -> list[Stored]:
        """Return the messages that contain a text and are no replies."""
        with self.slack.lock:
            return [one for one in self.slack.messages if one.thread_ts is None and about in one.text]

    def replies(self, post: Stored) -> list[Stored]:
        """Return the replies to a message."""
        with self.slack.lock:
            return [one for one in self.slack.messages if one.thread_ts == post.ts]

    def status(self, run_id: str) -> dg.DagsterRunStatus | None:
        """Return the status of a run."""
        run = self.instance.get_run_by_id(run_id)
        return None if run is None else run.status

    def worker(self, run_id: str) -> psutil.Process:
        """Wait for the process of a run."""
        return wait_for(lambda: worker_of(self.instance, run_id), NOTIFY_SECONDS, "the run has a process")

    def wait_for_end(self, run_id: str) -> dg.DagsterRunStatus:
        """Wait for the end of a run, and return its status."""
        return webserver.wait_for_run(self.instance, run_id, NOTIFY_SECONDS)

    def wait_for_post(self, about: str, seconds: float = NOTIFY_SECONDS) -> Stored:
        """Wait for a message that contains a text."""
        return wait_for(lambda: next(iter(self.posts(about)), None), seconds, f"Slack has a message about {about}")

    def wait_until_decided(self, run_ids: Sequence[str]) -> None:
        """Wait until the router has decided about each of these failed or successful runs."""
        query = sa.select(tables.attempts.c.run_id).where(
            tables.attempts.c.run_id.in_(run_ids), tables.attempts.c.state == AttemptState.DONE
        )

        def decided(connection: sa.Connection) -> bool:
            return set(connection.execute(query).scalars()) == set(run_ids)

        self._wait_for_store(decided, "the router has decided")

    def wait_for_watch_rules(self, clock_ahead_seconds: float) -> None:
        """Wait until the router, with its clock so far ahead, has evaluated the watch rules."""
        after = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=clock_ahead_seconds)

        def watched(connection: sa.Connection) -> bool:
            watched_at = get_value(connection, WATCHED_AT)
            return watched_at is not None and dt.datetime.fromisoformat(watched_at) >= after

        self._wait_for_store(watched, "the router has evaluated the watch rules")

    def _wait_for_store(self, condition: Callable[[sa.Connection], bool], what: str) -> None:
        opened = store.connect(store.address_of(self.instance))

        def met() -> bool | None:
            with store.reading(opened) as connection:
                return condition(connection) or None

        try:
            wait_for(met, NOTIFY_SECONDS, what)
        finally:
            opened.dispose()


@contextlib.contextmanager
def running(home: Path, **more_locations: str) -> Iterator[Platform]:
    """Run a web server, a daemon, and code servers for the alert router, the failing jobs and more locations."""
    with serving(*CHANNELS.values()) as slack:
        locations = {"router": router_of(home, slack), LOCATION: "failing_location.failing()", **more_locations}
        write_home(home, locations)
        with (
            webserver.serving(home, webserver.DEVELOPMENT, {}) as server,
            dg.DagsterInstance.from_config(str(home)) as instance,
        ):
            yield Platform(home, server, instance, slack)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Run a platform for all tests that do not damage it. Each of them uses a job of its own."""
    with running(tmp_path_factory.mktemp("home")) as made:
        yield made


def waiting_for(path: Path) -> dict[str, object]:
    """Return the configuration of a run that fails as soon as a file exists."""
    return {"ops": {"wait_and_fail": {"config": {"until": str(path)}}}}


def ended_ticks(instance: dg.DagsterInstance) -> Sequence[InstigatorTick]:
    """Return the ticks of the alert sensor that have ended."""
    name = slack_alerts.notify_slack_on_failure.name
    states = [state for state in instance.all_instigator_state() if state.instigator_name == name]
    ticks = [tick for state in states for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)]
    return [tick for tick in ticks if tick.status is not TickStatus.STARTED]


def test_a_failing_op_is_notified_once_by_a_real_daemon(tmp_path: Path) -> None:
    with serving(*CHANNELS.values()) as slack:
        # The clock is ahead, so that the test does not wait until the failure is due.
        locations = {LOCATION: router_of(tmp_path, slack, "router_and_failing")}
        write_home(tmp_path, locations, clock_ahead_seconds=SETTLE_TIME.total_seconds())
        with daemon(tmp_path, {}), dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            wait_for(lambda: slack.messages or None, NOTIFY_SECONDS, "Slack has a message")
            (run,) = instance.get_runs()
            ended = len(ended_ticks(instance))
            # The tick that sent the message may not have ended yet. The next one must send nothing.
            wait_for(
                lambda: len(ended_ticks(instance)) > ended + 1 or None, NOTIFY_SECONDS, "the sensor has ticked again"
            )
        (message,) = slack.messages
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert message.channel == CHANNELS[JobOwners.TEAM_CLICKHOUSE.value]
    assert "`failing_job` is failing" in message.text
    assert "the table is gone" in message.text


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 3 * NOTIFY_SECONDS)
def test_the_sensor_of_the_shared_location_ticks_by_default_and_outside_production_only_logs(tmp_path: Path) -> None:
    write_home(tmp_path, {LOCATION: "failing_location.failing([failing_location.launch_once])"})
    with (tmp_path / "workspace.yaml").open("a") as workspace:
        workspace.write(
            "  - python_module:\n      module_name: dags.locations.shared\n      location_name: shared\n"
            f"      working_directory: {ROOT}\n"
        )
    with daemon(tmp_path, {}), dg.DagsterInstance.from_config(str(tmp_path)) as instance:

        def sending_tick() -> str | None:
            reasons = [tick.skip_reason or "" for tick in ended_ticks(instance)]
            return next((one for one in reasons if "1 messages sent" in one), None)

        reason = wait_for(sending_tick, NOTIFY_SECONDS, "a tick says that it has sent a message")
    assert "1 failures" in reason
    assert "Not production: messages are logged and not sent." in reason


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 3 * NOTIFY_SECONDS)
def test_a_failing_asset_among_good_ones_is_notified_only_to_its_own_team(platform: Platform) -> None:
    run_id = platform.launch(ASSET_JOB, asset_keys=["good_before", "bad_between", "good_beside"])
    post = platform.wait_for_post("bad_between")
    platform.wait_until_decided([run_id])
    assert post.channel == CHANNELS[JobOwners.TEAM_CLICKHOUSE.value]
    assert "the rate is gone" in post.text
    assert platform.posts(run_id) == [post]
    assert platform.posts("good_be") == []


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + BACKFILL_SECONDS + NOTIFY_SECONDS)
def test_a_backfill_of_fifty_partitions_that_all_fail_is_one_message_with_its_end_below(platform: Platform) -> None:
    platform.server.backfill(["bad_parts"], PARTITIONS.get_partition_keys())
    post = platform.wait_for_post("bad_parts", BACKFILL_SECONDS)
    (reply,) = wait_for(lambda: platform.replies(post) or None, BACKFILL_SECONDS, "Slack has a reply about its end")
    runs = platform.instance.get_runs(dg.RunsFilter(tags={"dagster/partition": PARTITIONS.get_partition_keys()}))
    assert [run.status for run in runs] == [dg.DagsterRunStatus.FAILURE] * 50
    platform.wait_until_decided([run.run_id for run in runs])
    assert platform.posts("bad_parts") == [post]
    assert post.channel == CHANNELS[JobOwners.TEAM_WEB_ANALYTICS.value]
    assert platform.replies(post) == [reply]
    assert "50 runs failed" in reply.text


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 3 * NOTIFY_SECONDS)
def test_a_run_whose_automatic_retry_succeeds_sends_no_message(platform: Platform) -> None:
    first = platform.launch("recovering_job")
    platform.wait_until_decided([first])
    (retry,) = platform.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": first}))
    assert retry.status is dg.DagsterRunStatus.SUCCESS
    assert all("recovering_job" not in message.text for message in platform.slack.messages)


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 3 * NOTIFY_SECONDS)
def test_a_run_whose_automatic_retry_fails_is_one_message(platform: Platform) -> None:
    first = platform.launch("retried_in_vain_job")
    post = platform.wait_for_post("retried_in_vain_job")
    (retry,) = platform.instance.get_runs(dg.RunsFilter(tags={"dagster/parent_run_id": first}))
    platform.wait_until_decided([first, retry.run_id])
    assert retry.run_id in post.text
    assert "Attempt: 2" in post.text
    assert platform.posts("retried_in_vain_job") == [post]


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 6 * NOTIFY_SECONDS)
def test_the_third_consecutive_failure_is_notified_while_a_fourth_run_is_in_progress(platform: Platform) -> None:
    for run_id in [platform.launch(THRESHOLD_JOB) for _ in range(2)]:
        platform.wait_for_end(run_id)
    gates = [platform.home / name for name in ("third", "fourth")]
    third, fourth = (platform.launch(THRESHOLD_JOB, config=waiting_for(gate)) for gate in gates)
    for run_id in (third, fourth):
        platform.worker(run_id)
    gates[0].touch()
    post = platform.wait_for_post(THRESHOLD_JOB)
    assert platform.status(fourth) is dg.DagsterRunStatus.STARTED
    assert "3 consecutive failures" in post.text

    gates[1].touch()
    platform.wait_for_end(fourth)
    platform.wait_until_decided([fourth])
    assert platform.posts(THRESHOLD_JOB) == [post]


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 4 * NOTIFY_SECONDS)
def test_a_run_worker_that_is_killed_is_one_message(platform: Platform) -> None:
    run_id = platform.launch("killed_job", config=waiting_for(platform.home / "never"))
    platform.worker(run_id).kill()
    post = platform.wait_for_post("killed_job")
    platform.wait_until_decided([run_id])
    assert post.channel == CHANNELS[JobOwners.TEAM_INGESTION.value]
    assert run_id in post.text
    assert "marked as failed from outside" in post.text
    assert platform.posts("killed_job") == [post]


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 4 * NOTIFY_SECONDS)
def test_a_run_that_is_lost_with_its_code_server_is_failed_by_run_monitoring_and_notified_once(tmp_path: Path) -> None:
    with running(tmp_path) as platform:
        run_id = platform.launch("abandoned_job", config=waiting_for(tmp_path / "never"))
        worker = platform.worker(run_id)
        wait_for(
            lambda: platform.status(run_id) is dg.DagsterRunStatus.STARTED or None, NOTIFY_SECONDS, "it has started"
        )
        # The code server would see the run end. It is killed first, as on a lost machine.
        code_server = worker.parent()
        assert code_server is not None
        code_server.kill()
        worker.kill()
        post = platform.wait_for_post("abandoned_job")
        platform.wait_until_decided([run_id])
        assert platform.posts("abandoned_job") == [post]
    assert post.channel == CHANNELS[JobOwners.TEAM_INGESTION.value]
    assert run_id in post.text
    assert "forcibly marked as failed" in post.text


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 4 * NOTIFY_SECONDS)
def test_a_location_whose_import_breaks_is_notified_to_its_team_once_and_when_it_is_fixed(tmp_path: Path) -> None:
    with running(tmp_path, **{BREAKABLE: "failing_location.dg.Definitions()"}) as platform:
        source = tmp_path / f"{BREAKABLE}.py"
        whole = source.read_text()
        source.write_text("raise RuntimeError('no such module of ours')\n")
        platform.server.query(RELOAD, name=BREAKABLE)
        # The rule runs every two minutes, and reports after two minutes.
        for ahead in (130, 260):
            control(tmp_path, clock_ahead_seconds=ahead, webserver_url=platform.server.address)
            platform.wait_for_watch_rules(ahead)
        post = platform.wait_for_post(BREAKABLE)
        assert post.channel == CHANNELS[JobOwners.TEAM_WEB_ANALYTICS.value]
        assert "no such module of ours" in post.text

        source.write_text(whole)
        platform.server.query(RELOAD, name=BREAKABLE)
        control(tmp_path, clock_ahead_seconds=390, webserver_url=platform.server.address)
        (reply,) = wait_for(lambda: platform.replies(post) or None, NOTIFY_SECONDS, "Slack has a reply about it")
        assert platform.posts(BREAKABLE) == [post]
    assert "Resolved: `Code location web_analytics does not load`" in reply.text
