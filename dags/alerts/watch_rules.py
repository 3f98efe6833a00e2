"""Watch rules: what is wrong although no run fails, from values that `watch_sources.py` reads. Without I/O."""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import dagster as dg

from dags.alerts import route
from dags.alerts.steps import cause_of, shortened
from dags.alerts.values import Finding, Policy
from dags.alerts.watch_sources import MAX_TICKS, Instigator, Location, Tick, UnfinishedRun, WebserverError, Workspace
from dags.common.owners import OWNER_TAG

# How long something must be observed before it is reported. A sensor retries within seconds, a schedule does not.
NO_GRACE = dt.timedelta()
SENSOR_GRACE = dt.timedelta(minutes=2)
LOCATION_GRACE = dt.timedelta(minutes=2)
LOADING_GRACE = dt.timedelta(minutes=15)
WEBSERVER_GRACE = dt.timedelta(minutes=5)
FAULT_GRACE = dt.timedelta(minutes=5)
NEVER_STARTED_GRACE = dt.timedelta(minutes=10)
# Daemons send a heartbeat every 30 seconds, and less often while one of their iterations takes long.
MAX_HEARTBEAT_AGE = dt.timedelta(minutes=10)
# Run monitoring checks the runtime of runs every two minutes, and then has to terminate them.
RUNTIME_MARGIN = dt.timedelta(minutes=10)
MAX_START_TIME = dt.timedelta(hours=1)
# A large backfill may well wait for hours.
MAX_QUEUE_TIME = dt.timedelta(hours=12)
# Values of Dagster's freshness states, and that of an asset that its daemon has not evaluated.
FAILS, NEVER_MATERIALIZED, NEVER_EVALUATED = "FAIL", "UNKNOWN", ""
STATES_NOT_FRESH = frozenset({FAILS, NEVER_MATERIALIZED, NEVER_EVALUATED})
MAX_LISTED_RUNS = 5
MAX_DETAIL_CHARACTERS = 2500

# How long a run must have been in a state before `overdue_runs` considers it.
MIN_AGES: Mapping[dg.DagsterRunStatus, dt.timedelta] = {
    dg.DagsterRunStatus.STARTED: RUNTIME_MARGIN,
    dg.DagsterRunStatus.STARTING: MAX_START_TIME,
    dg.DagsterRunStatus.QUEUED: MAX_QUEUE_TIME,
}


@dataclass(frozen=True)
class Observation:
    """What a rule finds wrong now. It is reported once it has been observed for `grace`."""

    finding: Finding
    grace: dt.timedelta = NO_GRACE


@dataclass(frozen=True)
class WatchContext:
    """What all rules share. `workspace` is None when the code locations are not known."""

    policy: Policy
    now: dt.datetime
    redact: Callable[[str], str]
    workspace: Workspace | None = None


def failed_ticks(context: WatchContext, instigators: Iterable[Instigator]) -> Iterator[Observation]:
    """Yield schedules and sensors whose newest tick failed."""
    for instigator in instigators:
        failed = list(takewhile(lambda tick: tick.failed, instigator.ticks))
        if failed and _is_in_code(context, instigator):
            yield _failing(context, instigator, failed)


def broken_locations(context: WatchContext) -> Iterator[Observation]:
    """Yield code locations that do not load."""
    for location in (context.workspace or {}).values():
        finding = Finding(
            key=f"location/{location.name}",
            owner=context.policy.team_of_location(location.name),
            title=f"Code location {location.name} does not load",
            detail=shortened(context.redact(location.error or ""), MAX_DETAIL_CHARACTERS),
            since=context.now,
            location=location.name,
        )
        if location.error is not None:
            yield Observation(finding, LOCATION_GRACE)
        elif location.is_loading:
            detail = f"Dagster's web interface has been loading it for more than {_duration(LOADING_GRACE)}."
            yield Observation(replace(finding, detail=detail), LOADING_GRACE)


def silent_daemons(context: WatchContext, heartbeats: Mapping[str, dt.datetime | None]) -> Iterator[Observation]:
    """Yield daemons without a recent heartbeat."""
    for name, beat_at in heartbeats.items():
        finding = Finding(
            key=f"daemon/{name}",
            owner=None,
            title=f"Dagster's daemon {name} sends no heartbeat",
            detail="It has never sent one. Start dagster-daemon.",
            since=context.now,
        )
        if beat_at is None:
            yield Observation(finding, NEVER_STARTED_GRACE)
        elif context.now - beat_at > MAX_HEARTBEAT_AGE:
            detail = f"The last heartbeat was at {_time(beat_at)}. Check the log of dagster-daemon and restart it."
            yield Observation(replace(finding, since=beat_at, detail=detail))


def stale_assets(context: WatchContext, states: Mapping[dg.AssetKey, tuple[str, dt.datetime]]) -> Iterator[Observation]:
    """Yield assets whose freshness policy fails, and those that were never materialized for as long as it allows."""
    for location in (context.workspace or {}).values():
        for asset, policy in location.freshness_policies.items():
            state, since = states.get(asset, (NEVER_EVALUATED, context.now))
            if state not in STATES_NOT_FRESH:
                continue
            name = asset.to_user_string()
            finding = Finding(
                key=f"freshness/{location.name}/{name}",
                owner=policy.owner or context.policy.team_of_location(location.name),
                title=f"Asset {name} is not fresh",
                detail=f"Its newest materialization is older than {_duration(policy.max_age)}. Check the runs that "
                "materialize it, and what they wait for.",
                since=since,
                location=location.name,
            )
            if state == FAILS:
                yield Observation(finding)
            else:
                # Since it is observed and not since it is in the code: a new asset has as long as an old one.
                detail = f"It was never materialized, and must be at least every {_duration(policy.max_age)}."
                yield Observation(replace(finding, since=context.now, detail=detail), policy.max_age)


def overdue_runs(
    context: WatchContext, runs: Iterable[UnfinishedRun], owner_of: Callable[[dg.DagsterRun], str | None]
) -> Iterator[Observation]:
    """Yield runs that exceed their time limit or never start, as one observation for each job, state and owner."""
    found: dict[tuple[str, str, str, str], list[tuple[dt.datetime, str]]] = {}
    for unfinished in runs:
        overdue = _overdue(context, unfinished)
        if overdue is not None:
            run = unfinished.run
            state, since, words = overdue
            key = (state, route.location_of(run) or "", run.job_name, owner_of(run) or "")
            found.setdefault(key, []).append((since, f"run {run.run_id}: {words}"))
    for (state, location, job_name, owner), described in sorted(found.items()):
        described.sort()
        lines = [words for _, words in described[:MAX_LISTED_RUNS]]
        if len(described) > MAX_LISTED_RUNS:
            lines.append(f"and {len(described) - MAX_LISTED_RUNS} more")
        yield Observation(
            Finding(
                key=f"{state}/{location or '-'}/{job_name}/{owner or 'unowned'}",
                owner=owner or None,
                title=f"{job_name}: {_OVERDUE_TITLES[state]}",
                detail=context.redact("\n".join(lines)),
                since=described[0][0],
                location=location or None,
                job_name=job_name,
            )
        )


_OVERDUE_TITLES = {
    "overdue": "runs exceed their time limit",
    "starting": "runs do not start",
    "queued": "runs stay queued",
}


def failed_rule(context: WatchContext, rule: str, error: Exception) -> Observation:
    """Return the observation that a rule itself fails."""
    detail = shortened(context.redact(f"{type(error).__name__}: {error}"), MAX_DETAIL_CHARACTERS)
    is_webserver = isinstance(error, WebserverError)
    return Observation(
        Finding(
            key=f"watch/{rule}",
            owner=None,
            title="Dagster's web interface does not answer the alert router"
            if is_webserver
            else f"The watch rule '{rule}' of the alert router fails",
            detail=f"{detail}\nThe last observations of the rule stay open until it works again.",
            since=context.now,
        ),
        WEBSERVER_GRACE if is_webserver else FAULT_GRACE,
    )


def _is_in_code(context: WatchContext, instigator: Instigator) -> bool:
    if context.workspace is None:
        return True
    location = context.workspace.get(instigator.location)
    if location is None:
        return False
    return location.error is not None or location.is_loading or instigator.name in location.tags


def _failing(context: WatchContext, instigator: Instigator, failed: Sequence[Tick]) -> Observation:
    is_schedule = instigator.kind == "schedule"
    cause = cause_of(failed[0].error, context.redact)
    lines = [] if cause is None else [f"{cause.error_class}: {shortened(cause.message, MAX_DETAIL_CHARACTERS)}"]
    if len(failed) > 1:
        lines.append(f"{len(failed)}{' or more' if len(failed) == MAX_TICKS else ''} consecutive ticks failed.")
    if is_schedule:
        lines.append("A failed tick of a schedule starts no run and is not repeated.")
    return Observation(
        Finding(
            key=f"{instigator.kind}/{instigator.location}/{instigator.name}",
            owner=_owner_of(context, instigator),
            title=f"Ticks of the {instigator.kind} {instigator.name} fail",
            detail="\n".join(lines),
            since=failed[-1].at,
            location=instigator.location,
        ),
        NO_GRACE if is_schedule else SENSOR_GRACE,
    )


def _owner_of(context: WatchContext, instigator: Instigator) -> str | None:
    location = (context.workspace or {}).get(instigator.location, Location(instigator.location))
    tags = location.tags.get(instigator.name, {})
    return tags.get(OWNER_TAG) or context.policy.team_of_location(instigator.location)


def _overdue(context: WatchContext, unfinished: UnfinishedRun) -> tuple[str, dt.datetime, str] | None:
    """Return the state of an overdue run, since when it should have left that state, and both in words."""
    since, age = unfinished.since, context.now - unfinished.since
    match unfinished.run.status:
        case dg.DagsterRunStatus.STARTED:
            limit = unfinished.max_runtime
            if limit is None or age <= limit + RUNTIME_MARGIN:
                return None
            return "overdue", since + limit, f"started {_time(since)}, time limit {_duration(limit)}"
        case dg.DagsterRunStatus.STARTING:
            return ("starting", since, f"starting since {_time(since)}") if age > MAX_START_TIME else None
        case _:
            return ("queued", since, f"queued since {_time(since)}") if age > MAX_QUEUE_TIME else None


def _time(time: dt.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _duration(duration: dt.timedelta) -> str:
    minutes = int(duration.total_seconds() // 60)
    if minutes < 1:
        return f"{duration.total_seconds():g} s"
    return f"{minutes} min" if minutes % 60 else f"{minutes // 60} h"
