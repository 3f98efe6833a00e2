"""What breaks without a run that fails: ticks, code locations, daemons, runs that do not come to an end.

Belongs here: looking, by rules each of which may fail alone. Not here: telling of it (`speech.py`).

A rule that cannot look takes nothing for mended: what it saw last stands, and that it cannot look is a finding too.
"""

import datetime as dt
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import dagster as dg
import sqlalchemy as sa

from dags.alerts import ingest, route
from dags.alerts.records import Finding, Policy
from dags.alerts.steps import Plans, cause_of, only_owner, shortened
from dags.alerts.store import reading, transaction
from dags.common.owners import OWNER_TAG
from dags.common.tags import MAX_RUNTIME_TAG

if TYPE_CHECKING:
    import requests
    from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick

logger = logging.getLogger(__name__)

# How long a thing must be seen before it is told. A sensor tries again within seconds, and a schedule does not.
NO_GRACE = dt.timedelta()
SENSOR_GRACE = dt.timedelta(minutes=2)
LOCATION_GRACE = dt.timedelta(minutes=2)
LOADING_GRACE = dt.timedelta(minutes=15)
WEBSERVER_GRACE = dt.timedelta(minutes=5)
FAULT_GRACE = dt.timedelta(minutes=5)
NEVER_STARTED_GRACE = dt.timedelta(minutes=10)
# Daemons beat every 30 seconds, and less often while one of their rounds takes long.
HEARTBEAT_TOLERANCE = dt.timedelta(minutes=10)
# Run monitoring looks every two minutes for runs that are over their time, and then has to end them.
RUNTIME_MARGIN = dt.timedelta(minutes=10)
LONGEST_START = dt.timedelta(hours=1)
# A large backfill may well wait for hours.
LONGEST_QUEUE = dt.timedelta(hours=12)

TICKS_READ = 20
RUNS_READ = 2000
RUNS_NAMED = 5
CONNECT_SECONDS = 2
ANSWER_SECONDS = 5
MOST_ANSWER_BYTES = 32 * 1024 * 1024
# Of an error as it is kept until it is told.
MOST_DETAIL_CHARACTERS = 2500
# The name of what the rules saw last, in the store's values, and in it that of rules that could not look.
MEMORY = "watch"
FAULTS = "faults"

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
            }
          }
        }
      }
    }
  }
}
"""


class WebserverError(Exception):
    """The web interface did not answer, or not what it was asked."""


@dataclass(frozen=True)
class Location:
    """A code location as the web interface knows it. `tags` are those of its schedules and sensors, by name."""

    name: str
    error: str | None = None
    is_loading: bool = False
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


Workspace = Mapping[str, Location]


@dataclass(frozen=True)
class Observation:
    """What a rule sees now. It is told when it has been seen for `grace`; without `since`, it began when first seen."""

    finding: Finding
    grace: dt.timedelta = NO_GRACE


@dataclass(frozen=True)
class WatchContext:
    """What the rules look with. `workspace` is None when nobody can be asked; `webserver_fault` is why."""

    instance: dg.DagsterInstance
    policy: Policy
    now: dt.datetime
    redact: Callable[[str], str]
    workspace: Workspace | None = None
    webserver_fault: Exception | None = None


Rule = Callable[[WatchContext], Iterable[Observation]]
# Sightings by key, each with the time when it was first seen.
Seen = Mapping[str, tuple[dt.datetime, Observation]]


def findings(
    instance: dg.DagsterInstance,
    store: sa.Engine,
    policy: Policy,
    clock: Callable[[], dt.datetime],
    redact: Callable[[str], str],
    *,
    webserver_url: str | None = None,
    rules: "Mapping[str, Rule] | None" = None,
) -> Sequence[Finding]:
    """What is broken now, and has been for long enough to be told. Without an address, no code location is looked at.

    Raises what the store raises, and nothing else.
    """
    now = clock()
    workspace, fault = _ask(webserver_url)
    look = WatchContext(instance, policy, now, redact, workspace, fault)
    before = remembered(store)
    after: dict[str, Seen] = {}
    faults: list[Observation] = []
    for name, rule in (RULES if rules is None else rules).items():
        try:
            after[name] = _aged(rule(look), before.get(name, {}), now)
        except Exception as error:
            # Whatever is wrong with one rule, the others look, and failures are told.
            trace = None if isinstance(error, WebserverError) else error
            logger.warning("The rule '%s' of the alert router could not look: %s", name, error, exc_info=trace)
            after[name] = before.get(name, {})
            faults.append(_fault(look, name, error))
    after[FAULTS] = _aged(faults, before.get(FAULTS, {}), now)
    if after != before:
        with transaction(store) as connection:
            ingest.set_value(connection, MEMORY, _to_json(after))
    return [
        replace(one.finding, title=redact(one.finding.title), detail=redact(one.finding.detail))
        for seen in after.values()
        for first_seen_at, one in seen.values()
        if now - first_seen_at >= one.grace
    ]


def failed_ticks(look: WatchContext) -> Iterable[Observation]:
    """Schedules and sensors that are on and whose newest ended tick failed."""
    for state in look.instance.all_instigator_state():
        if not state.is_running or not _exists(look, state):
            continue
        ticks = look.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=TICKS_READ)
        failed = _failed_in_a_row(ticks)
        if failed:
            yield _failing(look, state, failed)


def broken_locations(look: WatchContext) -> Iterable[Observation]:
    """Code locations that do not load. Raises what made the web interface unreadable."""
    if look.webserver_fault is not None:
        raise look.webserver_fault
    for location in (look.workspace or {}).values():
        finding = Finding(
            key=f"location/{location.name}",
            owner=look.policy.team_of_location(location.name),
            title=f"Code location {location.name} does not load",
            detail=shortened(look.redact(location.error or ""), MOST_DETAIL_CHARACTERS),
            since=look.now,
            location=location.name,
        )
        if location.error is not None:
            yield Observation(finding, LOCATION_GRACE)
        elif location.is_loading:
            detail = f"The web interface has been loading it for more than {_words(LOADING_GRACE)}."
            yield Observation(replace(finding, detail=detail), LOADING_GRACE)


def silent_daemons(look: WatchContext) -> Iterable[Observation]:
    """Daemons that the instance needs and that give no sign of life."""
    heartbeats = look.instance.get_daemon_heartbeats()
    for name in sorted(look.instance.get_required_daemon_types()):
        heartbeat = heartbeats.get(name)
        finding = Finding(
            key=f"daemon/{name}",
            owner=None,
            title=f"Dagster's daemon {name} gives no sign of life",
            detail="It has never given one.",
            since=look.now,
        )
        if heartbeat is None:
            yield Observation(finding, NEVER_STARTED_GRACE)
            continue
        beat_at = dt.datetime.fromtimestamp(heartbeat.timestamp, dt.UTC)
        if look.now - beat_at > HEARTBEAT_TOLERANCE:
            detail = f"The last was at {_at(beat_at)}. WatchContext at the log of dagster-daemon, and start it again."
            yield Observation(replace(finding, since=beat_at, detail=detail))


def overdue_runs(look: WatchContext) -> Iterable[Observation]:
    """Runs that go on beyond their limit, or hang before they begin: one sighting for each job and state."""
    found: dict[tuple[str, str, str, str], list[tuple[dt.datetime, str]]] = {}
    plans = Plans(look.instance)
    for record, state, since, words in _overdue(look):
        run = record.dagster_run
        owner = route.get_job_owner_for_alert(
            run, (only_owner(plans.of(run)) or (None,))[0], look.policy.team_of_location
        )
        key = (state, route.location_of(run) or "", run.job_name, owner or "")
        found.setdefault(key, []).append((since, f"run {run.run_id}: {words}"))
    for (state, location, job_name, owner), runs in sorted(found.items()):
        runs.sort()
        lines = [words for _, words in runs[:RUNS_NAMED]]
        if len(runs) > RUNS_NAMED:
            lines.append(f"and {len(runs) - RUNS_NAMED} more")
        yield Observation(
            Finding(
                key=f"{state}/{location or '-'}/{job_name}/{owner or 'unowned'}",
                owner=owner or None,
                title=f"{job_name}: {STATES[state]}",
                detail=look.redact("\n".join(lines)),
                since=runs[0][0],
                location=location or None,
                job_name=job_name,
            )
        )


STATES = {
    "overdue": "runs go on beyond their limit",
    "starting": "runs do not start",
    "queued": "runs stay in the queue",
}

RULES: Mapping[str, Rule] = {
    "ticks": failed_ticks,
    "locations": broken_locations,
    "daemons": silent_daemons,
    "runs": overdue_runs,
}


def read_workspace(url: str) -> Workspace:
    """The code locations, as the web interface at an address sees them. Raises WebserverError."""
    import requests
    import urllib3

    ends_at = time.monotonic() + ANSWER_SECONDS
    try:
        with requests.Session() as session:
            # A service of our own: no proxy stands before it.
            session.trust_env = False
            with session.post(
                f"{url.rstrip('/')}/graphql",
                json={"query": WORKSPACE_QUERY},
                timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
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
        raise WebserverError(f"{url} gave an answer that cannot be read ({answer.status_code}): {excerpt}") from error


def _body(answer: "requests.Response", ends_at: float) -> bytes:
    """The whole answer, however slowly it comes in, up to a time."""
    parts = []
    size = 0
    # What has come in, and not a whole part of a size, which may never come.
    while part := answer.raw.read1(64 * 1024, decode_content=True):
        parts.append(part)
        size += len(part)
        if size > MOST_ANSWER_BYTES or time.monotonic() > ends_at:
            raise WebserverError(f"{answer.url} took more than {ANSWER_SECONDS} s, or said more than is reasonable.")
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
        # The innermost error is the one of the team's code; Dagster's stand round it.
        inner = [link["error"] for link in found["errorChain"]]
        error = (inner or [found])[-1]
        return Location(entry["name"], error=(error["message"] or error["className"] or "").strip())
    return Location(
        entry["name"],
        tags={
            one["name"]: {tag["key"]: tag["value"] for tag in one["tags"]}
            for repository in found["repositories"]
            for one in [*repository["schedules"], *repository["sensors"]]
        },
    )


def _ask(url: str | None) -> tuple[Workspace | None, Exception | None]:
    if url is None:
        return None, None
    try:
        return read_workspace(url), None
    except Exception as error:  # noqa: BLE001
        # It is the fault of one rule, which raises it in its turn.
        return None, error


def _aged(sightings: Iterable[Observation], before: Seen, now: dt.datetime) -> Seen:
    found: dict[str, tuple[dt.datetime, Observation]] = {}
    for one in sightings:
        first_seen_at = before[one.finding.key][0] if one.finding.key in before else now
        since = min(one.finding.since, first_seen_at)
        found[one.finding.key] = (first_seen_at, replace(one, finding=replace(one.finding, since=since)))
    return found


def _fault(look: WatchContext, rule: str, error: Exception) -> Observation:
    detail = shortened(look.redact(f"{type(error).__name__}: {error}"), MOST_DETAIL_CHARACTERS)
    is_webserver = isinstance(error, WebserverError)
    return Observation(
        Finding(
            key=f"watch/{rule}",
            owner=None,
            title="Dagster's web interface does not answer the alert router"
            if is_webserver
            else f"The alert router cannot look after {rule}",
            detail=f"{detail}\nWhat it saw last is taken to stand.",
            since=look.now,
        ),
        WEBSERVER_GRACE if is_webserver else FAULT_GRACE,
    )


def _exists(look: WatchContext, state: "InstigatorState") -> bool:
    """Whether there still is such a schedule or sensor. Dagster keeps the state of those that were removed."""
    if look.workspace is None:
        return True
    location = look.workspace.get(_location_of(state))
    if location is None:
        return False
    return location.error is not None or location.is_loading or state.instigator_name in location.tags


def _failed_in_a_row(ticks: Sequence["InstigatorTick"]) -> Sequence["InstigatorTick"]:
    """The failed ticks since the last good one, the newest first."""
    ended = [tick for tick in ticks if tick.status.value in ("SUCCESS", "SKIPPED", "FAILURE")]
    good = next((number for number, tick in enumerate(ended) if tick.status.value != "FAILURE"), len(ended))
    return ended[:good]


def _failing(look: WatchContext, state: "InstigatorState", failed: Sequence["InstigatorTick"]) -> Observation:
    location = _location_of(state)
    kind = state.instigator_type.value.lower()
    cause = cause_of(failed[0].error, look.redact)
    lines = [] if cause is None else [f"{cause.error_class}: {shortened(cause.message, MOST_DETAIL_CHARACTERS)}"]
    if len(failed) > 1:
        lines.append(f"{len(failed)}{' or more' if len(failed) == TICKS_READ else ''} ticks in a row have failed.")
    if kind == "schedule":
        lines.append("A failed tick of a schedule starts no run, and is not made up for.")
    return Observation(
        Finding(
            key=f"{kind}/{location}/{state.instigator_name}",
            owner=_owner_of(look, state),
            title=f"The {kind} {state.instigator_name} fails",
            detail="\n".join(lines),
            since=dt.datetime.fromtimestamp(failed[-1].timestamp, dt.UTC),
            location=location,
        ),
        NO_GRACE if kind == "schedule" else SENSOR_GRACE,
    )


def _location_of(state: "InstigatorState") -> str:
    return state.origin.repository_origin.code_location_origin.location_name


def _owner_of(look: WatchContext, state: "InstigatorState") -> str | None:
    location = _location_of(state)
    known = (look.workspace or {}).get(location, Location(location)).tags.get(state.instigator_name, {})
    return known.get(OWNER_TAG) or look.policy.team_of_location(location)


def _overdue(look: WatchContext) -> Iterable[tuple[dg.RunRecord, str, dt.datetime, str]]:
    """Runs with their state, since when they should have left it, and that in words."""
    now = look.now
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], created_before=now - RUNTIME_MARGIN)
    for record in _records(look, started):
        limit = _limit(look.instance, record.dagster_run)
        if limit is None or record.start_time is None:
            continue
        started_at = dt.datetime.fromtimestamp(record.start_time, dt.UTC)
        if now > started_at + limit + RUNTIME_MARGIN:
            words = f"started {_at(started_at)}, and may take {_words(limit)}"
            yield record, "overdue", started_at + limit, words
    starting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING], updated_before=now - LONGEST_START)
    for record in _records(look, starting):
        since = record.update_timestamp.replace(tzinfo=dt.UTC)
        yield record, "starting", since, f"starting since {_at(since)}"
    queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED], created_before=now - LONGEST_QUEUE)
    for record in _records(look, queued):
        since = record.create_timestamp.replace(tzinfo=dt.UTC)
        yield record, "queued", since, f"in the queue since {_at(since)}"


def _records(look: WatchContext, filters: dg.RunsFilter) -> Iterable[dg.RunRecord]:
    run_ids = look.instance.get_run_ids(filters, limit=RUNS_READ)
    records, _ = ingest.read_records(look.instance, run_ids)
    return records.values()


def _limit(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dt.timedelta | None:
    text = run.tags.get(MAX_RUNTIME_TAG, "")
    seconds = float(text) if text.replace(".", "", 1).isdigit() else float(instance.run_monitoring_max_runtime_seconds)
    return dt.timedelta(seconds=seconds) if seconds else None


def remembered(store: sa.Engine) -> Mapping[str, Seen]:
    """What the rules saw last, by rule; nothing when that cannot be read."""
    with reading(store) as connection:
        text = ingest.get_value(connection, MEMORY)
    if text is None:
        return {}
    try:
        return {rule: {key: _seen(one) for key, one in seen.items()} for rule, seen in json.loads(text).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        # It only says since when things are seen: at worst some are told a little later.
        logger.exception("What the alert router saw last cannot be read: it begins anew.")
        return {}


def _seen(values: Mapping[str, Any]) -> tuple[dt.datetime, Observation]:
    finding = Finding(**values["finding"] | {"since": dt.datetime.fromisoformat(values["finding"]["since"])})
    grace = dt.timedelta(seconds=values["grace_seconds"])
    return dt.datetime.fromisoformat(values["first_seen_at"]), Observation(finding, grace)


def _to_json(after: Mapping[str, Seen]) -> str:
    return json.dumps(
        {
            rule: {
                key: {
                    "first_seen_at": first_seen_at.isoformat(),
                    "grace_seconds": one.grace.total_seconds(),
                    "finding": vars(one.finding) | {"since": one.finding.since.isoformat()},
                }
                for key, (first_seen_at, one) in seen.items()
            }
            for rule, seen in after.items()
        }
    )


def _at(time_of_it: dt.datetime) -> str:
    return f"{time_of_it:%Y-%m-%d %H:%M} UTC"


def _words(duration: dt.timedelta) -> str:
    minutes = int(duration.total_seconds() // 60)
    if minutes < 1:
        return f"{duration.total_seconds():g} s"
    return f"{minutes} min" if minutes % 60 else f"{minutes // 60} h"
