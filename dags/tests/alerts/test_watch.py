import contextlib
import datetime as dt
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.definitions.freshness import FreshnessState, FreshnessStateChange
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import RemoteInstigatorOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.storage.runs.schema import RunsTable
from dagster._daemon.types import DaemonHeartbeat

from dags.alerts import redact, store, watch, watch_rules, watch_sources
from dags.alerts.queries.stored_values import get_value, set_value
from dags.alerts.values import Finding
from dags.alerts.watch import Sources
from dags.alerts.watch_rules import Observation, WatchContext
from dags.alerts.watch_sources import FreshnessPolicy, Location, WebserverError, read_workspace
from dags.local import ports
from dags.tests.alerts.site import POLICY, Site
from dags.tests.alerts.world import op_job, origin, user_error

MINUTE = 60
HOUR = 3600
SECRET = "hunter2-secret"  # noqa: S105 - a test value


def observed(site: Site, webserver_url: str | None = None, **how: Any) -> dict[str, Finding]:
    """Return what the rules report now, by key."""
    found = watch.findings(
        site.world.instance,
        site.store,
        POLICY,
        site.world,
        partial(redact.redact, secrets=[SECRET]),
        webserver_url=webserver_url,
        **how,
    )
    return {one.key: one for one in found}


def only(rule: str) -> Mapping[str, watch.Rule]:
    return {rule: watch.RULES[rule]}


@dataclass
class RunningInstigator:
    """A schedule or sensor that is on, whose ticks end as a test wants."""

    site: Site
    name: str
    kind: InstigatorType = InstigatorType.SCHEDULE
    location: str = "web"
    state: InstigatorState = field(init=False)

    def __post_init__(self) -> None:
        repository = origin("any", self.location).repository_origin
        self.state = InstigatorState(
            RemoteInstigatorOrigin(repository, self.name),
            self.kind,
            InstigatorStatus.RUNNING,
            ScheduleInstigatorData("0 0 * * *") if self.kind is InstigatorType.SCHEDULE else None,
        )
        self.site.world.instance.add_instigator_state(self.state)

    def tick(self, status: TickStatus, error: str = "boom") -> None:
        """Add a tick that ends now."""
        failed = status is TickStatus.FAILURE
        self.site.world.instance.create_tick(
            TickData(
                self.state.instigator_origin_id,
                self.name,
                self.kind,
                status,
                self.site.world.now.timestamp(),
                error=user_error("ValueError", error) if failed else None,
                selector_id=self.state.selector_id,
                run_ids=[],
                run_keys=[],
            )
        )
        self.site.world.forward(1)

    def stop(self) -> None:
        """Stop it, as people do in the web interface."""
        self.site.world.instance.update_instigator_state(self.state.with_status(InstigatorStatus.STOPPED))


def test_a_failed_tick_of_a_schedule_is_observed_until_a_later_one_succeeds(site: Site) -> None:
    schedule = RunningInstigator(site, "nightly")
    schedule.tick(TickStatus.SUCCESS)
    assert observed(site, rules=only("ticks")) == {}
    failed_at = site.world.now
    schedule.tick(TickStatus.FAILURE)
    schedule.tick(TickStatus.FAILURE, f"cannot sign in with {SECRET}")
    schedule.tick(TickStatus.STARTED)
    (found,) = observed(site, rules=only("ticks")).values()
    assert (found.key, found.owner, found.location) == ("schedule/web/nightly", "team-a", "web")
    assert abs(found.since - failed_at) < dt.timedelta(milliseconds=1)
    assert "ValueError: cannot sign in" in found.detail
    assert SECRET not in found.detail
    assert "2 consecutive ticks" in found.detail
    schedule.tick(TickStatus.SKIPPED)
    assert observed(site, rules=only("ticks")) == {}


def test_a_sensor_is_reported_when_it_fails_for_minutes_because_it_retries_by_itself(site: Site) -> None:
    sensor = RunningInstigator(site, "watching", InstigatorType.SENSOR)
    sensor.tick(TickStatus.FAILURE)
    assert observed(site, rules=only("ticks")) == {}
    site.world.forward(2 * MINUTE)
    sensor.tick(TickStatus.FAILURE)
    assert set(observed(site, rules=only("ticks"))) == {"sensor/web/watching"}


def test_a_stopped_schedule_is_ignored(site: Site) -> None:
    schedule = RunningInstigator(site, "nightly")
    schedule.tick(TickStatus.FAILURE)
    schedule.stop()
    assert observed(site, rules=only("ticks")) == {}


def test_a_schedule_that_was_removed_from_the_code_is_ignored_when_that_is_known(site: Site) -> None:
    schedule = RunningInstigator(site, "nightly")
    schedule.tick(TickStatus.FAILURE)
    workspaces: list[dict[str, Location]] = [
        {"web": Location("web", tags={"nightly": {"owner": "team-b"}})},
        {"web": Location("web", error="boom")},
        {"web": Location("web")},
        {},
    ]
    instigators = list(watch_sources.read_instigators(site.world.instance))
    found = [list(watch_rules.failed_ticks(context_of(site, workspace), instigators)) for workspace in workspaces]
    assert [[one.finding.owner for one in some] for some in found] == [["team-b"], ["team-a"], [], []]


def context_of(site: Site, workspace: Mapping[str, Location]) -> WatchContext:
    return WatchContext(POLICY, site.world.now, str, workspace)


def beat(site: Site, name: str) -> None:
    site.world.instance.add_daemon_heartbeat(DaemonHeartbeat(site.world.now.timestamp(), name, "id", []))


def test_a_daemon_without_a_heartbeat_is_reported_and_so_is_one_that_never_ran(site: Site) -> None:
    for name in site.world.instance.get_required_daemon_types():
        if name != "BACKFILL":
            beat(site, name)
    assert observed(site, rules=only("daemons")) == {}
    site.world.forward(11 * MINUTE)
    beat(site, "SENSOR")
    found = observed(site, rules=only("daemons"))
    assert {"daemon/SCHEDULER", "daemon/BACKFILL"} <= set(found)
    assert "daemon/SENSOR" not in found
    assert found["daemon/SCHEDULER"].owner is None
    assert "never" in found["daemon/BACKFILL"].detail
    beat(site, "SCHEDULER")
    assert "daemon/SCHEDULER" not in observed(site, rules=only("daemons"))


def set_run(site: Site, run_id: str, **values: Any) -> None:
    storage: Any = site.world.instance.run_storage
    with storage.connect() as connection:
        connection.execute(sa.update(RunsTable).where(RunsTable.c.run_id == run_id).values(**values))


def started(site: Site, job: str, limit: str | None = None, tags: Mapping[str, str] | None = None) -> str:
    run_id = site.world.start(op_job(job), tags={**(tags or {}), **({"dagster/max_runtime": limit} if limit else {})})
    set_run(site, run_id, start_time=site.world.now.timestamp())
    return run_id


def test_a_run_that_exceeds_its_limit_is_reported_after_some_minutes(site: Site) -> None:
    run_id = started(site, "slow", "600")
    started(site, "without_a_limit")
    started(site, "not_over_yet", "7200")
    site.world.forward(19 * MINUTE)
    assert observed(site, rules=only("runs")) == {}
    site.world.forward(2 * MINUTE)
    (found,) = observed(site, rules=only("runs")).values()
    assert (found.owner, found.job_name, found.location) == ("team-a", "slow", "web")
    assert run_id in found.detail
    assert "10 min" in found.detail
    site.world.end(run_id, "slow", dg.DagsterEventType.RUN_CANCELED)
    assert observed(site, rules=only("runs")) == {}


def test_many_overdue_runs_of_a_job_are_one_finding(site: Site) -> None:
    runs = [started(site, "slow", "60") for _ in range(7)]
    site.world.forward(HOUR)
    (found,) = observed(site, rules=only("runs")).values()
    assert sum(run in found.detail for run in runs) == 5
    assert "and 2 more" in found.detail


def test_runs_that_do_not_start_or_stay_queued_for_very_long_are_reported(site: Site) -> None:
    starting, queued = site.world.start(op_job("a")), site.world.start(op_job("b"))
    naive = site.world.now.replace(tzinfo=None)
    set_run(site, starting, status="STARTING", update_timestamp=naive)
    set_run(site, queued, status="QUEUED", create_timestamp=naive)
    site.world.forward(59 * MINUTE)
    assert observed(site, rules=only("runs")) == {}
    site.world.forward(2 * MINUTE)
    assert set(observed(site, rules=only("runs"))) == {"starting/web/a/team-a"}
    site.world.forward(12 * HOUR)
    assert set(observed(site, rules=only("runs"))) == {"starting/web/a/team-a", "queued/web/b/team-a"}


def boom(_sources: Sources, context: WatchContext) -> Iterable[Observation]:
    raise RuntimeError(f"no {SECRET} for {context.now}")


def test_a_rule_that_fails_is_a_finding_and_stops_no_other_rule(site: Site) -> None:
    RunningInstigator(site, "nightly").tick(TickStatus.FAILURE)
    rules = {"broken": boom, **only("ticks")}
    assert set(observed(site, rules=rules)) == {"schedule/web/nightly"}
    site.world.forward(6 * MINUTE)
    found = observed(site, rules=rules)
    assert set(found) == {"schedule/web/nightly", "watch/broken"}
    assert "RuntimeError" in found["watch/broken"].detail
    assert SECRET not in found["watch/broken"].detail
    with store.reading(site.store) as connection:
        assert SECRET not in (get_value(connection, watch.OBSERVATIONS) or "")


def test_observations_stand_while_their_rule_fails(site: Site) -> None:
    RunningInstigator(site, "nightly").tick(TickStatus.FAILURE)
    before = observed(site, rules=only("ticks"))
    assert observed(site, rules={"ticks": boom}) == before
    assert set(observed(site, rules={"ticks": lambda _sources, _context: ()})) == set()


def test_observations_that_cannot_be_read_are_started_over(site: Site) -> None:
    RunningInstigator(site, "nightly").tick(TickStatus.FAILURE)
    with store.transaction(site.store) as connection:
        set_value(connection, watch.OBSERVATIONS, '{"ticks": {"x": 1}}')
    assert set(observed(site, rules=only("ticks"))) == {"schedule/web/nightly"}


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def webserver(answer: Answer) -> Iterator[str]:
    """Serve an answer to every request; yields the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer((ports.LOOPBACK, 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{ports.LOOPBACK}:{server.server_address[1]}"
        server.shutdown()


def says(body: bytes, status: int = 200) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def drips(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    with contextlib.suppress(OSError):
        while True:
            request.wfile.write(b" ")
            request.wfile.flush()
            time.sleep(0.05)


@pytest.mark.parametrize(
    "answer",
    [
        says(b"<html>sign in</html>"),
        says(b"", 502),
        says(b'{"errors": [{"message": "Cannot query field"}]}'),
        says(b'{"data": {"workspaceOrError": {"__typename": "PythonError", "message": "no workspace"}}}'),
        says(b'{"data": {"workspaceOrError": {"__typename": "Workspace"}}}'),
    ],
    ids=["a page", "a proxy's fault", "an error of GraphQL", "no workspace", "no locations"],
)
def test_an_answer_that_is_no_workspace_is_an_error(answer: Answer) -> None:
    with webserver(answer) as url, pytest.raises(WebserverError):
        read_workspace(url)


def test_an_answer_that_never_ends_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_sources, "MAX_ANSWER_SECONDS", 0.5)
    with webserver(drips) as url, pytest.raises(WebserverError, match="took more than"):
        read_workspace(url)


def test_a_web_interface_that_does_not_answer_is_reported_after_minutes_and_hides_no_broken_location(
    site: Site,
) -> None:
    entry = {
        "name": "web",
        "loadStatus": "LOADED",
        "locationOrLoadError": {
            "__typename": "PythonError",
            "className": "ModuleNotFoundError",
            "message": f"no module named {SECRET}",
            "errorChain": [],
        },
    }
    body = {"data": {"workspaceOrError": {"__typename": "Workspace", "locationEntries": [entry]}}}
    with webserver(says(json.dumps(body).encode())) as url:
        observed(site, url, rules=only("locations"))
        site.world.forward(2 * MINUTE)
        (found,) = observed(site, url, rules=only("locations")).values()
        assert (found.key, found.owner) == ("location/web", "team-a")
        assert SECRET not in found.detail
    assert set(observed(site, url, rules=only("locations"))) == {"location/web"}
    site.world.forward(5 * MINUTE)
    found_later = observed(site, url, rules=only("locations"))
    assert set(found_later) == {"location/web", "watch/locations"}
    assert "does not answer" in found_later["watch/locations"].title
    entry["locationOrLoadError"] = {"__typename": "RepositoryLocation", "repositories": []}
    with webserver(says(json.dumps(body).encode())) as url:
        assert observed(site, url, rules=only("locations")) == {}


def test_without_an_address_no_location_is_checked(site: Site) -> None:
    assert observed(site, None, rules=only("locations")) == {}


CODE = """
import datetime

import dagster as dg

@dg.op
def work(): ...

@dg.asset(
    owners=["team:team-a"],
    tags={"owner": "team-a"},
    freshness_policy=dg.FreshnessPolicy.time_window(datetime.timedelta(hours=3)),
)
def fresh(): ...

@dg.asset
def without_policy(): ...

@dg.job
def some_job():
    work()

@dg.schedule(job=some_job, cron_schedule="0 0 * * *", tags={"owner": "team-b"})
def nightly():
    return dg.RunRequest()

@dg.sensor(job=some_job, tags={"owner": "team-a"})
def watching():
    return dg.SkipReason("nothing")

defs = dg.Definitions(assets=[fresh, without_policy], jobs=[some_job], schedules=[nightly], sensors=[watching])
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error loading repository location broken")
def test_the_real_web_interface_shows_broken_locations_and_the_owners_of_schedules(
    tmp_path: Path, memory_path: Path
) -> None:
    import uvicorn
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context

    (tmp_path / "good.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("import a_module_that_is_not_there\n")
    workspace_file = tmp_path / "workspace.yaml"
    workspace_file.write_text(
        "load_from:\n"
        "  - python_file: {relative_path: good.py, location_name: good}\n"
        "  - python_file: {relative_path: broken.py, location_name: broken}\n"
    )
    (memory_path / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    with (
        dg.DagsterInstance.from_config(str(memory_path)) as instance,
        WorkspaceProcessContext(instance, WorkspaceFileTarget([str(workspace_file)])) as context,
    ):
        port = ports.free_port()
        app = create_app_from_workspace_process_context(context)
        server = uvicorn.Server(uvicorn.Config(app, ports.LOOPBACK, port, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.05)
            found = read_workspace(f"http://{ports.LOOPBACK}:{port}/")
        finally:
            server.should_exit = True
            thread.join()
    assert found["good"] == Location(
        "good",
        tags={"nightly": {"owner": "team-b"}, "watching": {"owner": "team-a"}},
        freshness_policies={dg.AssetKey("fresh"): FreshnessPolicy(dt.timedelta(hours=3), "team-a")},
    )
    assert "No module named 'a_module_that_is_not_there'" in (found["broken"].error or "")


def location_with_policy(max_age: dt.timedelta, owner: str | None = "team-a") -> Location:
    return Location("web", freshness_policies={dg.AssetKey("events"): FreshnessPolicy(max_age, owner)})


def set_freshness(site: Site, state: FreshnessState) -> None:
    """Record a state as Dagster's freshness daemon does."""
    change = FreshnessStateChange(
        key=dg.AssetKey("events"),
        new_state=state,
        previous_state=FreshnessState.UNKNOWN,
        state_change_timestamp=site.world.now.timestamp(),
    )
    site.world.instance._report_runless_asset_event(change)


def stale_assets(site: Site, workspace: Mapping[str, Location]) -> list[Observation]:
    states = watch_sources.read_freshness(site.world.instance, [dg.AssetKey("events")])
    return list(watch_rules.stale_assets(context_of(site, workspace), states))


def test_an_asset_that_is_too_old_is_reported_to_its_owner_until_it_is_materialized(site: Site) -> None:
    workspace = {"web": location_with_policy(dt.timedelta(hours=24))}
    set_freshness(site, FreshnessState.FAIL)
    failed_at = site.world.now
    site.world.forward(HOUR)
    (found,) = stale_assets(site, workspace)
    assert found.finding.key == "freshness/web/events"
    assert (found.finding.owner, found.finding.since, found.grace) == ("team-a", failed_at, dt.timedelta())
    assert found.finding.title == "Asset events is not fresh"
    assert "older than 24 h" in found.finding.detail
    for state in (FreshnessState.PASS, FreshnessState.WARN):
        set_freshness(site, state)
        assert stale_assets(site, workspace) == []


@pytest.mark.parametrize("state", [None, FreshnessState.UNKNOWN])
def test_an_asset_that_was_never_materialized_is_reported_after_as_long_as_its_policy_allows(
    site: Site, state: FreshnessState | None
) -> None:
    if state is not None:
        set_freshness(site, state)
    workspace = {"web": location_with_policy(dt.timedelta(hours=3), owner=None)}

    def rule(sources: Sources, context: WatchContext) -> Iterable[Observation]:
        states = watch_sources.read_freshness(sources.instance, [dg.AssetKey("events")])
        return watch_rules.stale_assets(replace(context, workspace=workspace), states)

    assert observed(site, rules={"freshness": rule}) == {}
    site.world.forward(3 * HOUR - MINUTE)
    assert observed(site, rules={"freshness": rule}) == {}
    site.world.forward(2 * MINUTE)
    (found,) = observed(site, rules={"freshness": rule}).values()
    assert found.owner == POLICY.team_of_location("web")
    assert "never materialized" in found.detail


def test_a_web_interface_that_does_not_answer_is_one_finding_for_all_rules_that_need_it(site: Site) -> None:
    rules = {**only("locations"), **only("freshness")}
    nobody = f"http://{ports.LOOPBACK}:{ports.free_port()}"
    observed(site, nobody, rules=rules)
    site.world.forward(6 * MINUTE)
    assert set(observed(site, nobody, rules=rules)) == {"watch/locations"}
