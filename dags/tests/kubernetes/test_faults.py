"""Faults of a cluster during runs: no memory, no node, no API server."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dags import slack_alerts
from dags.common.owners import JobOwners
from dags.tests.alerts.fake_slack import serving
from dags.tests.kubernetes import site
from dags.tests.kubernetes.server import KubernetesServer
from dags.tests.kubernetes.site import Site
from dags.tests.webserver import START_SECONDS, wait_for

RUN_SECONDS = 120
OUTAGE_SECONDS = 60
# Twice as long as the alert router takes to send.
QUIET_SECONDS = 45
START_TIMEOUT_SECONDS = 20
STEPS = ("wait_and_write", "write_again")
CHANNELS = slack_alerts.notification_channel_per_team
STARTED, SUCCESS, FAILURE = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE


@contextlib.contextmanager
def working(tmp_path: Path, dsn: str, kubernetes: KubernetesServer, **monitoring: Any) -> Iterator[Site]:
    """Yield a site with a location whose jobs wait for a file."""
    target = ["-m", "dags.tests.kubernetes.working_location"]
    with site.running(tmp_path, dsn, kubernetes, "working", target, **monitoring) as made:
        yield made


def work(*ops: str, add_to: Path, until: Path | None = None) -> dict[str, object]:
    """Return the config of a run that adds lines to one file once the other exists."""
    config = {"add_to": str(add_to)} if until is None else {"add_to": str(add_to), "until": str(until)}
    return {"ops": {op: {"config": config} for op in ops}}


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 4 * RUN_SECONDS)
def test_a_pod_killed_for_its_memory_fails_its_run_and_is_notified_once(
    tmp_path: Path, postgres_dsn: str, kubernetes: KubernetesServer
) -> None:
    controls = tmp_path / "controls.json"
    controls.write_text(json.dumps({"clock_ahead_seconds": 0}))
    code = tmp_path / "failing.py"
    with serving(*CHANNELS.values()) as slack:
        sensor = f"failing_location.alert_sensor({slack.base_url!r}, Path({str(controls)!r}))"
        code.write_text(
            "from pathlib import Path\n\nimport dagster as dg\n\n"
            "from dags.tests.alerts import failing_location\n"
            "from dags.tests.kubernetes import working_location\n\n"
            f"defs = dg.Definitions.merge(failing_location.failing([{sensor}]), working_location.defs)\n"
        )
        with site.running(tmp_path, postgres_dsn, kubernetes, "failing", ["-f", str(code)]) as made:
            never = tmp_path / "never"
            waiting = {"ops": {"wait_and_fail": {"config": {"until": str(never)}}}}
            of_run = made.launch("killed_job", config=waiting)
            of_step = made.launch("stepwise_job", config=work(*STEPS, add_to=tmp_path / "lines", until=never))
            for run_id, component in ((of_run, "run_worker"), (of_step, "step_worker")):
                made.wait_for_status(run_id, STARTED, RUN_SECONDS)
                kubernetes.cluster.kill_as_out_of_memory(made.wait_for_pod(run_id, RUN_SECONDS, component))
            for run_id in (of_run, of_step):
                made.wait_for_status(run_id, FAILURE, RUN_SECONDS)
            wait_for(lambda: len(slack.messages) == 2 or None, RUN_SECONDS, "Slack has two messages")
            time.sleep(QUIET_SECONDS)
            events = made.events(of_run)
        messages = {run_id: [one for one in slack.messages if run_id in one.text] for run_id in (of_run, of_step)}
        assert len(slack.messages) == 2
    assert "Terminated with exit code 137: OOMKilled" in events
    for (message,) in messages.values():
        assert message.channel == CHANNELS[JobOwners.TEAM_INGESTION.value]
    assert "OOMKilled" in messages[of_run][0].everything()
    assert "Discovered failed Kubernetes job" in messages[of_step][0].everything()
    assert kubernetes.cluster.refusals == []


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 3 * RUN_SECONDS)
def test_a_pod_without_a_node_fails_its_run_at_the_start_timeout_and_leaves_no_job(
    tmp_path: Path, postgres_dsn: str, kubernetes: KubernetesServer
) -> None:
    lines = tmp_path / "lines"
    kubernetes.cluster.full = True
    with working(tmp_path, postgres_dsn, kubernetes, start_timeout_seconds=START_TIMEOUT_SECONDS) as made:
        run_id = made.launch("working_job", config=work("wait_and_write", add_to=lines))
        made.wait_for_status(run_id, FAILURE, START_TIMEOUT_SECONDS + RUN_SECONDS)
        events = made.events(run_id)
        jobs = kubernetes.cluster.objects["jobs"]
        wait_for(lambda: not jobs or None, RUN_SECONDS, "the Job of the run that could not start is deleted")
        made.wait_for_status(run_id, FAILURE, 0)
    assert f"taking longer than {START_TIMEOUT_SECONDS} seconds to start" in events
    assert "Insufficient memory" in events
    assert not lines.exists()
    assert kubernetes.cluster.refusals == []


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 4 * RUN_SECONDS + OUTAGE_SECONDS)
def test_an_outage_of_the_api_server_for_a_minute_loses_no_run(
    tmp_path: Path, postgres_dsn: str, kubernetes: KubernetesServer
) -> None:
    in_its_pod, in_steps, launched_in_outage = (tmp_path / name for name in ("pod", "steps", "meanwhile"))
    gate, soon = tmp_path / "gate", tmp_path / "soon"
    with working(tmp_path, postgres_dsn, kubernetes) as made:
        runs = [
            made.launch("working_job", config=work("wait_and_write", add_to=in_its_pod, until=gate)),
            made.launch("stepwise_job", config=work(*STEPS, add_to=in_steps, until=soon)),
        ]
        made.wait_for_status(runs[0], STARTED, RUN_SECONDS)
        made.wait_for_pod(runs[1], RUN_SECONDS, "step_worker")
        kubernetes.stop()
        # Its next step is due while no pod can be created.
        soon.touch()
        runs.append(made.launch("working_job", config=work("wait_and_write", add_to=launched_in_outage)))
        time.sleep(OUTAGE_SECONDS)
        kubernetes.start()
        gate.touch()
        for run_id in runs:
            wait_for(lambda run_id=run_id: _has_finished(made, run_id), 2 * RUN_SECONDS, f"run {run_id} has finished")  # type: ignore[misc]
        for run_id in runs:
            events = made.events(run_id)
            assert _status(made, run_id) is SUCCESS, events
            # Run monitoring may mark a run as failed that succeeds later.
            assert "as failed" not in events, events
    assert in_its_pod.read_text().splitlines() == [runs[0]]
    assert in_steps.read_text().splitlines() == [runs[1]] * 2
    assert launched_in_outage.read_text().splitlines() == [runs[2]]
    assert kubernetes.cluster.refusals == []


def _status(made: Site, run_id: str) -> dg.DagsterRunStatus | None:
    run = made.instance.get_run_by_id(run_id)
    return None if run is None else run.status


def _has_finished(made: Site, run_id: str) -> bool | None:
    return _status(made, run_id) in (SUCCESS, FAILURE) or None
