"""What the router makes of one run, and why: for people who ask, by the code and the rows that the router itself uses.

Belongs here: putting the answer together. Nothing is written, and nothing is sent.
"""

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import dagster as dg
import sqlalchemy as sa

from dags.alerts import incidents, ingest, message, mutes, route, settle, speech, store, tables
from dags.alerts.decide import count_executions, notice_of, streaks, thread_key
from dags.alerts.settle import Reader
from dags.alerts.values import (
    Attempt,
    AttemptState,
    AttemptStatus,
    ClassifiedAttempt,
    ExecutionOutcome,
    Incident,
    IncidentKind,
    Message,
    Policy,
    Streak,
)
from dags.common.owners import OWNER_TAG
from dags.common.tags import RETRY_RUN_TAG

STATUSES: Mapping[dg.DagsterRunStatus, AttemptStatus] = {
    dg.DagsterRunStatus.FAILURE: AttemptStatus.FAILED,
    dg.DagsterRunStatus.SUCCESS: AttemptStatus.SUCCEEDED,
    dg.DagsterRunStatus.CANCELED: AttemptStatus.CANCELED,
}
BACKFILL_SERIES = "backfill:"


class NoSuchRunError(Exception):
    """The instance has no run of this id, or its record cannot be read."""


@dataclass(frozen=True)
class Preview:
    """What one owner is told of a run: why, fact by fact, and the message. Without a message nothing would be told."""

    facts: Sequence[tuple[str, str]]
    message: Message | None = None
    is_notified: bool = False


@dataclass(frozen=True)
class _Question:
    """What the answer is put together from."""

    instance: dg.DagsterInstance
    policy: Policy
    now: dt.datetime
    secrets: Collection[str]
    connection: sa.Connection
    reader: Reader
    run: dg.DagsterRun
    settled: ClassifiedAttempt


def previews(
    instance: dg.DagsterInstance,
    opened: sa.Engine,
    policy: Policy,
    run_id: str,
    now: dt.datetime,
    redact: Callable[[str], str],
    *,
    secrets: Collection[str] = (),
) -> Sequence[Preview]:
    """What each owner is told of a run, by the store as it is now. Raises NoSuchRunError."""
    records, _ = ingest.read_records(instance, [run_id])
    record = records.get(run_id)
    if record is None:
        raise NoSuchRunError(f"This instance has no run {run_id} that can be read. Is DAGSTER_HOME the right one?")
    run = record.dagster_run
    status = STATUSES.get(run.status)
    if status is None:
        return [Preview([("Run", f"{run_id}, {run.status.value}"), ("Disposition", "not ended: nothing to tell yet")])]
    retry_id = run.tags.get(RETRY_RUN_TAG)
    retries, _ = ingest.read_records(instance, [retry_id] if retry_id else [])
    reader = Reader(instance, policy, redact)
    with store.reading(opened) as connection:
        attempt = _attempt(connection, run_id, status) or Attempt(
            run_id, "", status, 0, ingest.ended_at(record), run.job_name, AttemptState.NEW
        )
        parent = _attempt(connection, run.parent_run_id or "", AttemptStatus.FAILED)
        parents = {} if parent is None else {parent.run_id: parent}
        settled = settle.settle(reader, attempt, parents, {**records, **retries}, now)
        question = _Question(instance, policy, now, secrets, connection, reader, run, settled)
        found = [one for one in mutes.apply(connection, settled.outcomes) if one.failed]
        if found:
            return [_failure(question, group) for group in _by_owner(found)]
        return [_quiet(question)]


def _attempt(connection: sa.Connection, run_id: str, status: str) -> Attempt | None:
    table = tables.attempts
    row = connection.execute(
        sa.select(table).where(table.c.run_id == run_id, table.c.subject == "", table.c.status == status)
    ).one_or_none()
    if row is None:
        return None
    return Attempt(
        run_id=row.run_id,
        subject="",
        status=row.status,
        event_id=row.event_id,
        at=row.at,
        job_name=row.job_name,
        state=row.state,
        series=row.series,
        execution=row.execution,
        backfill_id=row.backfill_id,
    )


def _by_owner(found: Sequence[ExecutionOutcome]) -> Sequence[Sequence[ExecutionOutcome]]:
    groups: dict[str, list[ExecutionOutcome]] = {}
    for one in found:
        groups.setdefault(one.owner or "", []).append(one)
    return list(groups.values())


def _quiet(question: _Question) -> Preview:
    """A run that is no failure to be told of."""
    settled = question.settled
    if settled.held_until is not None:
        disposition = settled.disposition or "held"
    elif settled.outcomes:
        failing = incidents.series_that_fail(question.connection, [one.series for one in settled.outcomes])
        disposition = "succeeded: nothing is told"
        if failing:
            disposition = (
                f"succeeded: ends the streak of {', '.join(sorted(failing))}, told as recovered if it was told"
            )
    else:
        disposition = f"nothing is told: {settled.disposition or 'a backfill does not recover, it ends'}"
    return Preview([*_head(question), ("Series", settled.series or "-"), ("Disposition", disposition)])


def _head(question: _Question) -> list[tuple[str, str]]:
    ended_at = f"{question.settled.attempt.at:%Y-%m-%d %H:%M:%S} UTC"
    return [("Run", f"{question.run.run_id} of {question.run.job_name}, {question.run.status.value} at {ended_at}")]


def _failure(question: _Question, group: Sequence[ExecutionOutcome]) -> Preview:
    """What an owner is told of what failed of theirs."""
    first = group[0]
    is_backfill = first.series.startswith(BACKFILL_SERIES)
    threshold = 1 if is_backfill else question.policy.thresholds.get(question.run.job_name, 1)
    judged = [(one, _streak(question, one, threshold)) for one in group]
    key = next((streak.incident for _, streak in judged if streak is not None and streak.incident is not None), None)
    if is_backfill:
        key = thread_key(first.series, first.owner)
    existing = None if key is None else incidents.get_thread(question.connection, key)
    known = [] if existing is None else incidents.failures_of(question.connection, existing.key)
    failures = {one.key: one for one in [*group, *known]}
    for _, streak in judged:
        failures |= {one.key: one for one in (streak.failures if streak else ())}
    told = sorted(failures.values(), key=lambda one: one.order)
    thread = existing or Incident(
        key=key or "",
        kind=IncidentKind.BACKFILL if is_backfill else IncidentKind.RUN,
        channel=route.channel_of(first.owner, question.policy),
        owner=first.owner,
        opened_at=first.at,
        threshold=threshold,
        failures=count_executions(told),
    )
    notice = notice_of(thread, told)
    if first.failure is not None:
        success = speech.last_success(
            question.instance, question.run.job_name, first.failure.asset_keys, told[0].at if told else first.at
        )
        notice = replace(notice, last_success_at=success)
    facts = [
        *_head(question),
        ("Owner", f"{first.owner or 'nobody'}, {_why(question, first)}"),
        ("Channel", thread.channel),
        ("Series", ", ".join(one.series for one in group)),
        ("Streak", _streak_in_words(judged, is_backfill=is_backfill)),
        ("Threshold", f"{threshold}, {_why_threshold(question, threshold)}"),
        ("Incident", _incident_in_words(existing, key)),
        ("Disposition", _disposition(first, key, threshold, judged, existing)),
        ("On record", _on_record(question, first)),
    ]
    is_notified = first.muted_by is None and key is not None
    return Preview(facts, message.compose(notice, question.policy, question.secrets), is_notified)


def _streak(question: _Question, outcome: ExecutionOutcome, threshold: int) -> Streak | None:
    """The streak that a failure is part of; None when it is part of none, because it is muted."""
    history = incidents.history(question.connection, [outcome], ingest.HORIZON_OF_SWEEP).get(outcome.series, [])
    seen = [one for one in history if not one.failed or one.owner == outcome.owner]
    # What is kept of the same failure stands in place of it: it knows where it was told.
    found = streaks([outcome, *seen], threshold)
    return next((one for one in found if any(failure.key == outcome.key for failure in one.failures)), None)


def _why(question: _Question, outcome: ExecutionOutcome) -> str:
    run, failure = question.run, outcome.failure
    plan = question.reader.plans.of(run)
    steps = () if failure is None else failure.step_keys
    location = route.location_of(run)
    if outcome.owner is None:
        return "as no failed step, no tag of the run and no location says whose it is"
    if any(plan[step].owner == outcome.owner for step in steps if step in plan):
        return f"by the tag of the failed step {', '.join(steps)}"
    if run.tags.get(OWNER_TAG) == outcome.owner:
        return "by the tag of the run"
    if question.policy.team_of_location(location or "") == outcome.owner:
        return f"the team of the location {location}"
    return "by the plan of the run"


def _why_threshold(question: _Question, threshold: int) -> str:
    if question.run.job_name in question.policy.thresholds:
        return f"of {question.run.job_name} in CONSECUTIVE_FAILURE_THRESHOLDS"
    return "the default" if threshold == 1 else ""


def _streak_in_words(judged: Sequence[tuple[ExecutionOutcome, Streak | None]], *, is_backfill: bool) -> str:
    if is_backfill:
        return "none: a backfill is told as a whole"
    found = [streak for _, streak in judged if streak is not None]
    if not found:
        return "none: what is muted does not count"
    longest = max(found, key=lambda one: one.executions)
    ended = "" if longest.resolved_at is None else f", ended {longest.resolved_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{longest.executions} in a row{ended}"


def _incident_in_words(existing: Incident | None, key: str | None) -> str:
    if existing is None:
        return "none" if key is None else f"a new one, {key}"
    state = "open" if existing.resolved_at is None else f"over since {existing.resolved_at:%Y-%m-%d %H:%M:%S} UTC"
    return f"{existing.key}, opened {existing.opened_at:%Y-%m-%d %H:%M:%S} UTC, {existing.failures} failures, {state}"


def _disposition(
    first: ExecutionOutcome,
    key: str | None,
    threshold: int,
    judged: Sequence[tuple[ExecutionOutcome, Streak | None]],
    existing: Incident | None,
) -> str:
    if first.muted_by is not None:
        return f"not told: muted by {first.muted_by}"
    if key is None:
        most = max((streak.executions for _, streak in judged if streak is not None), default=1)
        return f"not told: below the threshold, {most} of {threshold}"
    if existing is None:
        return "told: opens an incident"
    return "told: in the thread of its incident" if existing.posted else "told: its incident is about to be posted"


def _on_record(question: _Question, outcome: ExecutionOutcome) -> str:
    """What the router has done about this failure."""
    table = tables.outcomes
    fate = question.connection.execute(
        sa.select(table.c.disposition, table.c.incident).where(
            table.c.run_id == outcome.run_id, table.c.failed, table.c.owner == (outcome.owner or "")
        )
    ).first()
    if fate is None:
        return "nothing: the router has not judged it"
    row = question.connection.execute(
        sa.select(tables.outbox.c.state, tables.outbox.c.channel, tables.outbox.c.ts, tables.outbox.c.note).where(
            tables.outbox.c.key == (fate.incident or "")
        )
    ).first()
    if row is None:
        return str(fate.disposition)
    sent = (
        f"{row.state} to {row.channel}" + (f" (ts {row.ts})" if row.ts else "") + (f", {row.note}" if row.note else "")
    )
    return f"{fate.disposition}; its message is {sent}"
