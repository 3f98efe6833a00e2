"""One tick of the alert router: ingest, classify, decide, compose, deliver.

Every step leaves rows from which the next tick continues, so a tick may end anywhere. Two ticks at once do the same
work twice and write it once.
"""

import datetime as dt
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import dagster as dg
import sqlalchemy as sa

from dags.alerts import mutes, transitions
from dags.alerts.apply_outcomes import apply_findings, apply_outcomes, close_ended_backfills
from dags.alerts.classify import CHECK_SERIES, RunReader, classify
from dags.alerts.decide import SETTLE_TIME
from dags.alerts.deliver import Delivered, deliver
from dags.alerts.enqueue_updates import enqueue_updates
from dags.alerts.ingest import ingest, sweep
from dags.alerts.queries import attempts, outcomes
from dags.alerts.queries.stored_values import get_value, set_value
from dags.alerts.redact import redact
from dags.alerts.retention import delete_old_rows
from dags.alerts.store import reading, transaction
from dags.alerts.values import Attempt, AttemptStatus, ClassifiedAttempt, Finding, Policy
from dags.common.event_log.run_records import read_records
from dags.common.tags import RETRY_RUN_TAG

if TYPE_CHECKING:
    from slack_sdk import WebClient

logger = logging.getLogger(__name__)

# Dagster stops waiting for a tick after 60 seconds, and the tick goes on unseen. Its steps together stay below that.
MAX_INGEST_SECONDS = 10
MAX_DECIDE_SECONDS = 10
# The calls that are running at its end may take 8 more seconds, and the watch rules some.
MAX_DELIVER_SECONDS = 22
MAX_ATTEMPTS_PER_CHUNK = 250
MAX_ERROR_CHARACTERS = 500
SWEEP_INTERVAL = dt.timedelta(minutes=5)
WATCH_INTERVAL = dt.timedelta(minutes=2)
RETENTION_INTERVAL = dt.timedelta(hours=6)
# Names of stored values: when a tick last ended, the watch rules last ran, and so on.
TICKED_AT = "ticked_at"
WATCHED_AT = "watched_at"
SWEPT_AT = "swept_at"
RETAINED_AT = "retained_at"

Clock = Callable[[], dt.datetime]


class WatchError(Exception):
    """The watch rules could not run. Failed runs are reported nevertheless."""


@dataclass(frozen=True)
class TickReport:
    """What a tick did. All events before `horizon` are decided; `delivered` may name problems that need a person.

    `rescued` are failed runs whose event was never seen, `undecodable` the ids of events that could not be decoded, and
    `faults` say why the watch rules could not run.
    """

    horizon: dt.datetime
    events: int
    failures: int
    drafts: int
    delivered: Delivered
    rescued: Sequence[str] = ()
    undecodable: Sequence[int] = ()
    faults: Sequence[str] = ()

    def raise_for_problems(self) -> None:
        """Raise DeliveryError or WatchError when a person must act."""
        self.delivered.raise_for_problems()
        if self.faults:
            raise WatchError(" ".join(self.faults))


@dataclass(frozen=True)
class TickContext:
    """What the steps of a tick share. `secrets` are values that must reach neither the store nor Slack."""

    instance: dg.DagsterInstance
    store: sa.Engine
    policy: Policy
    clock: Clock
    secrets: Collection[str] = field(default=(), repr=False)

    def redact(self, text: str) -> str:
        """Return a text without secrets."""
        return redact(text, self.secrets)


def tick(
    instance: dg.DagsterInstance,
    store: sa.Engine,
    slack: "WebClient",
    policy: Policy,
    clock: Clock,
    *,
    secrets: Collection[str] = (),
    watch: Callable[[], Sequence[Finding]] | None = None,
    pace: transitions.Pace = transitions.DEFAULT_PACE,
) -> TickReport:
    """Read what is new, decide, and notify. `watch` runs the watch rules; it is called every WATCH_INTERVAL.

    Raises what the databases raise; what was committed stays, and the next tick continues from there.
    """
    context = TickContext(instance, store, policy, clock, secrets)
    until = clock() + dt.timedelta(seconds=MAX_INGEST_SECONDS)
    ingested = ingest(instance, store, clock, context.redact, until)
    if ingested.undecodable:
        logger.error("Undecodable events, reported with what is known of their runs: %s", ingested.undecodable)
    rescued: Sequence[str] = ()
    faults: Sequence[str] = ()
    if _is_time(context, SWEPT_AT, SWEEP_INTERVAL):
        rescued = sweep(instance, store, clock())
        _set_time(context, SWEPT_AT)
    horizon, failures = decide_due(context, ingested.known_until - SETTLE_TIME)
    close_ended_backfills(instance, store, horizon)
    if watch is not None and _is_time(context, WATCHED_AT, WATCH_INTERVAL):
        faults = _watch(context, watch)
        _set_time(context, WATCHED_AT)
    drafts = enqueue_updates(instance, store, policy, horizon, clock(), secrets)
    drafts += mutes.enqueue_summaries(store, policy, horizon, clock(), secrets)
    delivered = deliver(store, slack, policy, clock, MAX_DELIVER_SECONDS, pace)
    if _is_time(context, RETAINED_AT, RETENTION_INTERVAL):
        delete_old_rows(store, clock())
        _set_time(context, RETAINED_AT)
    _set_time(context, TICKED_AT)
    return TickReport(horizon, ingested.events, failures, drafts, delivered, rescued, ingested.undecodable, faults)


def decide_due(context: TickContext, horizon: dt.datetime) -> tuple[dt.datetime, int]:
    """Decide what is due before a horizon, in order; return how far that came and how many failures there were."""
    reader = RunReader(context.instance, context.policy, context.redact)
    until = context.clock() + dt.timedelta(seconds=MAX_DECIDE_SECONDS)
    failures = 0
    while True:
        with reading(context.store) as connection:
            due = attempts.due(connection, horizon, MAX_ATTEMPTS_PER_CHUNK)
        if not due:
            return horizon, failures
        failures += _decide_chunk(context, reader, due, horizon)
        if context.clock() >= until:
            return min(horizon, due[-1].at), failures


def _decide_chunk(context: TickContext, reader: RunReader, due: Sequence[Attempt], horizon: dt.datetime) -> int:
    with reading(context.store) as connection:
        needed, unneeded = _divided(connection, due)
    records, unreadable = read_records(context.instance, sorted({attempt.run_id for attempt in needed}))
    if unreadable:
        logger.error("Runs that this version of Dagster cannot read, reported nevertheless: %s", unreadable)
    runs = [record.dagster_run for record in records.values()]
    retry_ids = {retry_id for run in runs if (retry_id := run.tags.get(RETRY_RUN_TAG)) is not None}
    retries, _ = read_records(context.instance, sorted(retry_ids - records.keys()))
    parent_ids = {run.parent_run_id for run in runs if run.parent_run_id is not None}
    with reading(context.store) as connection:
        parents = attempts.failed_runs(connection, sorted(parent_ids))
    classified: list[ClassifiedAttempt] = []
    for attempt in needed:
        one = classify(reader, attempt, parents, {**records, **retries}, horizon)
        classified.append(one)
        if attempt.status is AttemptStatus.FAILED and not attempt.subject:
            # A later attempt of the same chunk may retry this one.
            found = replace(attempt, series=one.series, execution=one.execution, backfill_id=one.backfill_id)
            parents[attempt.run_id] = found
    with transaction(context.store) as connection:
        attempts.skip(connection, unneeded)
        return apply_outcomes(connection, classified, context.policy)


def _divided(connection: sa.Connection, due: Sequence[Attempt]) -> tuple[list[Attempt], list[Attempt]]:
    """Return the attempts whose runs must be read, and the successes where nothing fails, which need no reading.

    The former include skipped successes that came after a failure which is due only now.
    """
    earliest: dict[str, dt.datetime] = {}
    for attempt in due:
        if attempt.status is AttemptStatus.FAILED:
            earliest[attempt.job_name] = min(attempt.at, earliest.get(attempt.job_name, attempt.at))
    failing = outcomes.jobs_with_open_failures(connection) | attempts.jobs_with_held_failures(connection)
    failing |= earliest.keys()
    passed = [f"{CHECK_SERIES}{one.subject}" for one in due if one.subject and one.status is AttemptStatus.SUCCEEDED]
    failing_checks = outcomes.series_with_open_failures(connection, passed)
    needed: list[Attempt] = []
    unneeded: list[Attempt] = []
    for attempt in due:
        is_awaited = attempt.job_name in failing or f"{CHECK_SERIES}{attempt.subject}" in failing_checks
        (needed if attempt.status is not AttemptStatus.SUCCEEDED or is_awaited else unneeded).append(attempt)
    return needed + attempts.skipped_after(connection, earliest), unneeded


def _watch(context: TickContext, watch: Callable[[], Sequence[Finding]]) -> Sequence[str]:
    """Apply what the watch rules find, and return why they could not run."""
    try:
        findings = watch()
    except Exception as error:
        # Open incidents stay as they are, and failed runs are reported nevertheless.
        logger.exception("The watch rules could not run.")
        fault = f"The watch rules could not run: {type(error).__name__}: {error}"
        return [context.redact(fault)[:MAX_ERROR_CHARACTERS]]
    with transaction(context.store) as connection:
        apply_findings(connection, findings, context.policy, context.clock())
    return []


def _is_time(context: TickContext, name: str, interval: dt.timedelta) -> bool:
    """Return whether a periodic step last ran that long ago."""
    with reading(context.store) as connection:
        value = get_value(connection, name)
    return value is None or context.clock() - dt.datetime.fromisoformat(value) >= interval


def _set_time(context: TickContext, name: str) -> None:
    with transaction(context.store) as connection:
        set_value(connection, name, context.clock().isoformat())
