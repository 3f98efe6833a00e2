"""Reading what the watch rules need: code locations, ticks, heartbeats and unfinished runs."""

import datetime as dt
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from dags.common.event_log.run_records import read_records
from dags.common.owners import OWNER_TAG
from dags.common.tags import MAX_RUNTIME_TAG

if TYPE_CHECKING:
    import requests
    from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick
    from dagster_shared.error import SerializableErrorInfo

MAX_TICKS = 20
MAX_RUNS = 2000
CONNECT_SECONDS = 2
MAX_ANSWER_SECONDS = 5
MAX_ANSWER_BYTES = 32 * 1024 * 1024

WORKSPACE_QUERY = """
query AlertRouter {
  workspaceOrError {
    __typename
    ... on PythonError { message }
    ... on Workspace {
      locationEntries {
        name
        loadStatus
        locationOrLoadError {
          __typename
          ... on PythonError { className message errorChain { error { className message } } }
          ... on RepositoryLocation {
            repositories {
              schedules { name tags { key value } }
              sensors { name tags { key value } }
              assetNodes {
                assetKey { path }
                tags { key value }
                internalFreshnessPolicy { ... on TimeWindowFreshnessPolicy { failWindowSeconds } }
              }
            }
          }
        }
      }
    }
  }
}
"""


class WebserverError(Exception):
    """Dagster's web interface gave no answer, or an unexpected one."""


@dataclass(frozen=True)
class FreshnessPolicy:
    """How old the newest materialization of an asset may be. `owner` is the asset's, None without one."""

    max_age: dt.timedelta
    owner: str | None = None


@dataclass(frozen=True)
class Location:
    """A code location as the web interface reports it.

    `tags` are those of its schedules and sensors, by name; `freshness_policies` those of its assets, by key.
    """

    name: str
    error: str | None = None
    is_loading: bool = False
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    freshness_policies: Mapping[dg.AssetKey, FreshnessPolicy] = field(default_factory=dict)


Workspace = Mapping[str, Location]


@dataclass(frozen=True)
class Tick:
    """A tick that has ended."""

    at: dt.datetime
    failed: bool
    error: "SerializableErrorInfo | None"


@dataclass(frozen=True)
class Instigator:
    """A schedule or sensor that is on, with its latest ended ticks, newest first. `kind` says which it is."""

    kind: str
    name: str
    location: str
    ticks: Sequence[Tick]


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that has been in its state since a time. `max_runtime` counts from the start of the run."""

    run: dg.DagsterRun
    since: dt.datetime
    max_runtime: dt.timedelta | None


def read_workspace(url: str) -> Workspace:
    """Return the code locations, as the web interface at an address reports them. Raises WebserverError."""
    import requests
    import urllib3

    ends_at = time.monotonic() + MAX_ANSWER_SECONDS
    try:
        with requests.Session() as session:
            # The web interface is a service of this platform: no proxy is between.
            session.trust_env = False
            with session.post(
                f"{url.rstrip('/')}/graphql",
                json={"query": WORKSPACE_QUERY},
                timeout=(CONNECT_SECONDS, MAX_ANSWER_SECONDS),
                stream=True,
                allow_redirects=False,
            ) as answer:
                body = _body(answer, ends_at)
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise WebserverError(f"{url} does not answer ({type(error).__name__}).") from error
    try:
        return _workspace(json.loads(body)["data"]["workspaceOrError"])
    except (ValueError, KeyError, TypeError) as error:
        excerpt = body[:200].decode(errors="replace")
        raise WebserverError(f"{url} gave an unexpected answer ({answer.status_code}): {excerpt}") from error


def read_instigators(instance: dg.DagsterInstance) -> Iterator[Instigator]:
    """Yield the schedules and sensors that are on. Dagster keeps some that were removed from the code."""
    for state in instance.all_instigator_state():
        if state.is_running:
            ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=MAX_TICKS)
            yield Instigator(
                kind=state.instigator_type.value.lower(),
                name=state.instigator_name,
                location=_location_of(state),
                ticks=[_tick(tick) for tick in ticks if tick.status.value in ("SUCCESS", "SKIPPED", "FAILURE")],
            )


def read_freshness(
    instance: dg.DagsterInstance, assets: Sequence[dg.AssetKey]
) -> Mapping[dg.AssetKey, tuple[str, dt.datetime]]:
    """Return the freshness state of each asset that Dagster's daemon has evaluated, and since when it holds."""
    records = instance.get_freshness_state_records(assets) if assets else {}
    return {key: (record.freshness_state.value, record.updated_at) for key, record in records.items()}


def read_heartbeats(instance: dg.DagsterInstance) -> Mapping[str, dt.datetime | None]:
    """Return the last heartbeat of each daemon that the instance needs, None for one that never ran."""
    heartbeats = instance.get_daemon_heartbeats()
    return {
        name: None if heartbeats.get(name) is None else dt.datetime.fromtimestamp(heartbeats[name].timestamp, dt.UTC)
        for name in sorted(instance.get_required_daemon_types())
    }


def read_unfinished_runs(
    instance: dg.DagsterInstance, now: dt.datetime, min_ages: Mapping[dg.DagsterRunStatus, dt.timedelta]
) -> Iterator[UnfinishedRun]:
    """Yield runs that have been STARTED, STARTING or QUEUED for at least so long."""
    for status, min_age in min_ages.items():
        before = now - min_age
        if status is dg.DagsterRunStatus.STARTING:
            filters = dg.RunsFilter(statuses=[status], updated_before=before)
        else:
            filters = dg.RunsFilter(statuses=[status], created_before=before)
        records, _ = read_records(instance, instance.get_run_ids(filters, limit=MAX_RUNS))
        for record in records.values():
            since = _since(record)
            if since is not None:
                yield UnfinishedRun(record.dagster_run, since, _max_runtime(instance, record.dagster_run))


def _since(record: dg.RunRecord) -> dt.datetime | None:
    match record.dagster_run.status:
        case dg.DagsterRunStatus.STARTED:
            return None if record.start_time is None else dt.datetime.fromtimestamp(record.start_time, dt.UTC)
        case dg.DagsterRunStatus.STARTING:
            return record.update_timestamp.replace(tzinfo=dt.UTC)
        case _:
            return record.create_timestamp.replace(tzinfo=dt.UTC)


def _max_runtime(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dt.timedelta | None:
    text = run.tags.get(MAX_RUNTIME_TAG, "")
    seconds = float(text) if text.replace(".", "", 1).isdigit() else float(instance.run_monitoring_max_runtime_seconds)
    return dt.timedelta(seconds=seconds) if seconds else None


def _location_of(state: "InstigatorState") -> str:
    return state.origin.repository_origin.code_location_origin.location_name


def _tick(tick: "InstigatorTick") -> Tick:
    at = dt.datetime.fromtimestamp(tick.timestamp, dt.UTC)
    return Tick(at, failed=tick.status.value == "FAILURE", error=tick.error)


def _body(answer: "requests.Response", ends_at: float) -> bytes:
    """Return the whole answer, however slowly it arrives, up to a time."""
    parts = []
    size = 0
    # Whatever has arrived: waiting for a part of a fixed size could take forever.
    while part := answer.raw.read1(64 * 1024, decode_content=True):
        parts.append(part)
        size += len(part)
        if size > MAX_ANSWER_BYTES or time.monotonic() > ends_at:
            raise WebserverError(
                f"The answer of {answer.url} took more than {MAX_ANSWER_SECONDS} s or {MAX_ANSWER_BYTES:,} bytes."
            )
    return b"".join(parts)


def _workspace(answer: Mapping[str, Any]) -> Workspace:
    if answer["__typename"] == "PythonError":
        raise WebserverError(f"The web interface cannot load the workspace: {answer['message']}")
    return {entry["name"]: _location(entry) for entry in answer["locationEntries"]}


def _location(entry: Mapping[str, Any]) -> Location:
    found = entry["locationOrLoadError"]
    if found is None:
        return Location(entry["name"], is_loading=True)
    if found["__typename"] == "PythonError":
        # The innermost error is the one of the team's code. Dagster's errors wrap it.
        inner = [link["error"] for link in found["errorChain"]]
        error = (inner or [found])[-1]
        return Location(entry["name"], error=(error["message"] or error["className"] or "").strip())
    repositories = found["repositories"]
    return Location(
        entry["name"],
        tags={
            one["name"]: _tags(one)
            for repository in repositories
            for one in [*repository["schedules"], *repository["sensors"]]
        },
        freshness_policies={
            dg.AssetKey(node["assetKey"]["path"]): FreshnessPolicy(
                dt.timedelta(seconds=policy["failWindowSeconds"]), _tags(node).get(OWNER_TAG)
            )
            for repository in repositories
            for node in repository["assetNodes"]
            # Null without a policy, and empty for one of another kind.
            if (policy := node["internalFreshnessPolicy"])
        },
    )


def _tags(tagged: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in tagged["tags"]}
