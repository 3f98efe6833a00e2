"""One tick of the alert engine: ingest, decide, speak, deliver, report.

Belongs here: what is done in which order, and what a tick may cost. Not here: the rules (`decide.py`), reading runs
(`settle.py`), rows (`verdicts.py`, `speech.py`), Slack (`deliver.py`).

Every step leaves rows from which the next tick goes on, so a tick may end anywhere. Two ticks at once do the same work
twice and write it once.
"""

import datetime as dt
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import dagster as dg
import sqlalchemy as sa

from dags.alerts import deliver, incidents, ingest, mutes, settle, speech, tables, transitions, verdicts
from dags.alerts.decide import SETTLE
from dags.alerts.redact import redact
from dags.alerts.store import reading, transaction
from dags.alerts.tables import attempts
from dags.alerts.values import OPEN_STATES, Attempt, AttemptState, AttemptStatus, ClassifiedAttempt, Finding, Policy
from dags.common.tags import RETRY_RUN_TAG

if TYPE_CHECKING:
    from slack_sdk import WebClient

logger = logging.getLogger(__name__)

# Dagster gives up on a tick after 60 seconds, and the tick goes on unseen: its parts together stay below that.
INGEST_SECONDS = 10
DECIDE_SECONDS = 10
# Calls under way at its end may take as long as a call may (8 s), and the look for what makes no run some seconds.
DELIVER_SECONDS = 22
ATTEMPTS_IN_A_CHUNK = 250
JOBS_IN_A_STATEMENT = 100
SWEEP_INTERVAL = dt.timedelta(minutes=5)
FIND_INTERVAL = dt.timedelta(minutes=2)
RETENTION_INTERVAL = dt.timedelta(hours=6)
# The name of the time of the last tick that came to its end, in the store's values.
TICKED_AT = "ticked_at"
RETENTION = dt.timedelta(days=90)
# A success matters only to a failure that comes late.
RETENTION_OF_SUCCESSES = dt.timedelta(days=3)

Clock = Callable[[], dt.datetime]


class FindError(Exception):
    """The search for what makes no run has failed. Failed runs are told all the same."""


@dataclass(frozen=True)
class TickReport:
    """What a tick has done. All events before `horizon` are decided; `delivered` may name problems that need somebody.

    `rescued` are failed runs whose event was never seen, `set_aside` the ids of events that could not be decoded, and
    `faults` say what kept the tick from looking for what makes no run.
    """

    horizon: dt.datetime
    events: int
    failures: int
    drafts: int
    delivered: deliver.Delivered
    rescued: Sequence[str] = ()
    set_aside: Sequence[int] = ()
    faults: Sequence[str] = ()

    def raise_for_problems(self) -> None:
        """Raises DeliveryError or FindError when something needs somebody."""
        self.delivered.raise_for_problems()
        if self.faults:
            raise FindError(" ".join(self.faults))


@dataclass(frozen=True)
class Engine:
    """What the steps of a tick share. `secrets` are values that never reach the store or Slack."""

    instance: dg.DagsterInstance
    store: sa.Engine
    policy: Policy
    clock: Clock
    secrets: Collection[str] = field(default=(), repr=False)

    def redact(self, text: str) -> str:
        """The text as it may be kept."""
        return redact(text, self.secrets)


def tick(
    instance: dg.DagsterInstance,
    store: sa.Engine,
    slack: "WebClient",
    policy: Policy,
    clock: Clock,
    *,
    secrets: Collection[str] = (),
    find: Callable[[], Sequence[Finding]] | None = None,
    pace: transitions.Pace = transitions.DEFAULT_PACE,
) -> TickReport:
    """Tells what there is to tell. `find` looks for what makes no run; it is asked every FIND_INTERVAL.

    Raises what the databases raise; what was committed stays, and the next tick goes on from there.
    """
    engine = Engine(instance, store, policy, clock, secrets)
    started = engine.clock()
    found = ingest.ingest(
        engine.instance, engine.store, engine.clock, engine.redact, started + dt.timedelta(seconds=INGEST_SECONDS)
    )
    rescued: Sequence[str] = ()
    faults: Sequence[str] = ()
    if found.set_aside:
        logger.error("Events that could not be decoded, told of by what is known of their runs: %s", found.set_aside)
    if _is_time(engine, "swept_at", SWEEP_INTERVAL):
        rescued = ingest.sweep(engine.instance, engine.store, engine.clock())
        _set_time(engine, "swept_at")
    horizon, failures = decide(engine, found.known_until - SETTLE)
    speech.end_backfills(engine.instance, engine.store, horizon)
    if find is not None and _is_time(engine, "found_at", FIND_INTERVAL):
        faults = _find(engine, find)
        _set_time(engine, "found_at")
    drafts = speech.tell(engine.instance, engine.store, engine.policy, horizon, engine.clock(), engine.secrets)
    drafts += mutes.tell_ended(engine.store, engine.policy, horizon, engine.clock(), engine.secrets)
    delivered = deliver.deliver(engine.store, slack, engine.policy, engine.clock, DELIVER_SECONDS, pace)
    if _is_time(engine, "retained_at", RETENTION_INTERVAL):
        forget(engine.store, engine.clock())
        _set_time(engine, "retained_at")
    _set_time(engine, TICKED_AT)
    return TickReport(horizon, found.events, failures, drafts, delivered, rescued, found.set_aside, faults)


def decide(engine: Engine, horizon: dt.datetime) -> tuple[dt.datetime, int]:
    """Judges what is due before a horizon, in order: how far that came, and how many failures there were."""
    reader = settle.Reader(engine.instance, engine.policy, engine.redact)
    until = engine.clock() + dt.timedelta(seconds=DECIDE_SECONDS)
    failures = 0
    while due := _due(engine, horizon):
        failures += _decide(engine, reader, due, horizon)
        if engine.clock() >= until:
            return min(horizon, due[-1].at), failures
    return horizon, failures


def forget(store: sa.Engine, now: dt.datetime) -> None:
    """Removes what is closed and old. What is still open stays, however old it is."""
    outcomes, threads, incident = tables.outcomes, tables.incidents, tables.incident_series
    with transaction(store) as connection:
        mutes.forget(connection, now - RETENTION)
        old_thread = sa.select(tables.incidents.c.key).where(
            tables.incidents.c.finished, tables.incidents.c.resolved_at < now - RETENTION
        )
        connection.execute(sa.delete(incident).where(incident.c.incident.in_(old_thread)))
        connection.execute(
            sa.delete(outcomes).where(
                sa.not_(outcomes.c.is_open),
                outcomes.c.at < now - RETENTION,
                sa.or_(outcomes.c.incident.is_(None), outcomes.c.incident.in_(old_thread)),
            )
        )
        connection.execute(sa.delete(threads).where(tables.incidents.c.key.in_(old_thread)))
        rows = tables.outbox
        connection.execute(
            sa.delete(rows).where(
                rows.c.state.not_in(OPEN_STATES),
                rows.c.closed_at < now - RETENTION,
                rows.c.thread.not_in(sa.select(tables.incidents.c.key)),
            )
        )
        connection.execute(
            sa.delete(attempts).where(
                attempts.c.state.in_([AttemptState.DONE, AttemptState.SKIPPED]),
                sa.or_(
                    attempts.c.at < now - RETENTION,
                    sa.and_(attempts.c.status != AttemptStatus.FAILED, attempts.c.at < now - RETENTION_OF_SUCCESSES),
                ),
            )
        )


def _find(engine: Engine, find: Callable[[], Sequence[Finding]]) -> Sequence[str]:
    """Compares what is broken now with what was; what kept it from that."""
    try:
        findings = find()
    except Exception as error:
        # Its incidents stay as they are, and failed runs are told all the same.
        logger.exception("What makes no run could not be looked for.")
        return [engine.redact(f"What makes no run could not be looked for: {type(error).__name__}: {error}")[:500]]
    with transaction(engine.store) as connection:
        speech.compare_findings(connection, findings, engine.policy, engine.clock())
    return []


def _due(engine: Engine, horizon: dt.datetime) -> Sequence[Attempt]:
    query = (
        sa.select(attempts)
        .where(attempts.c.state.in_([AttemptState.NEW, AttemptState.HELD]), attempts.c.due_at <= horizon)
        .order_by(attempts.c.due_at, attempts.c.event_id, attempts.c.run_id)
        .limit(ATTEMPTS_IN_A_CHUNK)
    )
    with reading(engine.store) as connection:
        return _attempts(connection, query)


def _decide(engine: Engine, reader: settle.Reader, due: Sequence[Attempt], horizon: dt.datetime) -> int:
    with reading(engine.store) as connection:
        needed, idle = _divided(connection, due)
    run_ids = sorted({attempt.run_id for attempt in needed})
    records, unreadable = ingest.read_records(engine.instance, run_ids)
    if unreadable:
        logger.error("Runs that this version of Dagster cannot read, told of all the same: %s", unreadable)
    runs = [record.dagster_run for record in records.values()]
    retry_ids = {retry_id for run in runs if (retry_id := run.tags.get(RETRY_RUN_TAG)) is not None}
    retries, _ = ingest.read_records(engine.instance, sorted(retry_ids - records.keys()))
    parent_ids = {run.parent_run_id for run in runs if run.parent_run_id is not None}
    with reading(engine.store) as connection:
        parents = _failed(connection, sorted(parent_ids))
    settled = _settled_in_order(reader, needed, parents, {**records, **retries}, horizon)
    with transaction(engine.store) as connection:
        _skip(connection, idle)
        return verdicts.write(connection, settled, engine.policy)


def _settled_in_order(
    reader: settle.Reader,
    needed: Sequence[Attempt],
    parents: dict[str, Attempt],
    records: dict[str, dg.RunRecord],
    horizon: dt.datetime,
) -> list[ClassifiedAttempt]:
    """Settles attempts one after another: one may repeat another of the same chunk."""
    found = []
    for attempt in needed:
        settled = settle.settle(reader, attempt, parents, records, horizon)
        found.append(settled)
        if attempt.status == AttemptStatus.FAILED and not attempt.subject:
            parents[attempt.run_id] = replace(
                attempt, series=settled.series, execution=settled.execution, backfill_id=settled.backfill_id
            )
    return found


def _divided(connection: sa.Connection, due: Sequence[Attempt]) -> tuple[list[Attempt], list[Attempt]]:
    """The attempts whose runs must be read, and those that nothing waits for: successes where nothing fails."""
    held = sa.select(attempts.c.job_name).where(attempts.c.state == AttemptState.HELD).distinct()
    failing = incidents.jobs_that_fail(connection) | set(connection.execute(held).scalars())
    failing |= {attempt.job_name for attempt in due if attempt.status == AttemptStatus.FAILED}
    passed = [f"check:{one.subject}" for one in due if one.subject and one.status == AttemptStatus.SUCCEEDED]
    failing_checks = incidents.series_that_fail(connection, passed)
    needed: list[Attempt] = []
    idle: list[Attempt] = []
    for attempt in due:
        is_awaited = attempt.job_name in failing or f"check:{attempt.subject}" in failing_checks
        (needed if attempt.status != AttemptStatus.SUCCEEDED or is_awaited else idle).append(attempt)
    return needed + _passed_over(connection, due), idle


def _passed_over(connection: sa.Connection, due: Sequence[Attempt]) -> list[Attempt]:
    """Successes that nothing waited for when they came, and that came after a failure that is due only now."""
    earliest: dict[str, dt.datetime] = {}
    for attempt in due:
        if attempt.status == AttemptStatus.FAILED:
            earliest[attempt.job_name] = min(attempt.at, earliest.get(attempt.job_name, attempt.at))
    found: list[Attempt] = []
    for chunk in incidents.chunks(sorted(earliest.items()), JOBS_IN_A_STATEMENT):
        after = (sa.and_(attempts.c.job_name == name, attempts.c.at >= at) for name, at in chunk)
        found += _attempts(
            connection, sa.select(attempts).where(attempts.c.state == AttemptState.SKIPPED, sa.or_(*after))
        )
    return found


def _failed(connection: sa.Connection, run_ids: Sequence[str]) -> dict[str, Attempt]:
    found: dict[str, Attempt] = {}
    for chunk in incidents.chunks(run_ids, incidents.ROWS_IN_A_STATEMENT):
        query = sa.select(attempts).where(
            attempts.c.run_id.in_(list(chunk)), attempts.c.subject == "", attempts.c.status == AttemptStatus.FAILED
        )
        found |= {attempt.run_id: attempt for attempt in _attempts(connection, query)}
    return found


def _skip(connection: sa.Connection, idle: Sequence[Attempt]) -> None:
    for chunk in incidents.chunks(idle, incidents.ROWS_IN_A_STATEMENT):
        connection.execute(
            sa.update(attempts)
            .where(
                attempts.c.run_id.in_([attempt.run_id for attempt in chunk]),
                attempts.c.status == AttemptStatus.SUCCEEDED,
                attempts.c.state == AttemptState.NEW,
            )
            .values(state=AttemptState.SKIPPED)
        )


def _attempts(connection: sa.Connection, query: sa.Select[tuple[object, ...]]) -> list[Attempt]:
    return [
        Attempt(
            run_id=row.run_id,
            subject=row.subject,
            status=row.status,
            event_id=row.event_id,
            at=row.at,
            job_name=row.job_name,
            state=row.state,
            detail=row.detail,
            series=row.series,
            execution=row.execution,
            backfill_id=row.backfill_id,
        )
        for row in connection.execute(query)
    ]


def _is_time(engine: Engine, name: str, interval: dt.timedelta) -> bool:
    """Whether something that is done now and then was last done that long ago."""
    with reading(engine.store) as connection:
        value = ingest.get_value(connection, name)
    return value is None or engine.clock() - dt.datetime.fromisoformat(value) >= interval


def _set_time(engine: Engine, name: str) -> None:
    with transaction(engine.store) as connection:
        ingest.set_value(connection, name, engine.clock().isoformat())
