"""What the router makes of one run, and why: by the code and the rows that the router itself uses, without writing."""

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import dagster as dg
import sqlalchemy as sa

from dags.alerts import message, mutes, route, store, tables
from dags.alerts.classify import BACKFILL_SERIES, RunReader, classify
from dags.alerts.compose_updates import facts_of_failures
from dags.alerts.decide import count_executions, incident_key, streaks
from dags.alerts.enqueue_updates import last_success
from dags.alerts.ingest import SWEEP_LOOKBACK
from dags.alerts.queries import attempts, incidents
from dags.alerts.queries import outcomes as outcome_queries
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
from dags.common.event_log.run_records import ended_at, read_records
from dags.common.owners import OWNER_TAG
from dags.common.tags import RETRY_RUN_TAG

STATUSES: Mapping[dg.DagsterRunStatus, AttemptStatus] = {
    dg.DagsterRunStatus.FAILURE: AttemptStatus.FAILED,
    dg.DagsterRunStatus.SUCCESS: AttemptStatus.SUCCEEDED,
    dg.DagsterRunStatus.CANCELED: AttemptStatus.CANCELED,
}


class NoSuchRunError(Exception):
    """The instance has no run with this id, or its record cannot be read."""


@dataclass(frozen=True)
class Preview:
    """The message that one owner gets about a run, and the facts that explain it. There may be no message."""

    facts: Sequence[tuple[str, str]]
    message: Message | None = None
    is_notified: bool = False


@dataclass(frozen=True)
class _Subject:
    """The run of a preview, and what the previews are made from."""

    instance: dg.DagsterInstance
    policy: Policy
    now: dt.datetime
    secrets: Collection[str]
    connection: sa.Connection
    reader: RunReader
    run: dg.DagsterRun
    classified: ClassifiedAttempt


# A failure and the consecutive failures that it is part of: none when it is muted.
_Counted = tuple[ExecutionOutcome, Streak | None]


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
    """Return a preview for each owner that a run concerns, by the store as it is now. Raises NoSuchRunError."""
    records, _ = read_records(instance, [run_id])
    record = records.get(run_id)
    if record is None:
        raise NoSuchRunError(f"This instance has no run {run_id} that can be read. Check the run id and DAGSTER_HOME.")
    run = record.dagster_run
    status = STATUSES.get(run.status)
    if status is None:
        return [Preview([("Run", f"{run_id}, {run.status.value}"), ("Disposition", "none: the run has not ended")])]
    retry_id = run.tags.get(RETRY_RUN_TAG)
    retries, _ = read_records(instance, [retry_id] if retry_id else [])
    reader = RunReader(instance, policy, redact)
    with store.reading(opened) as connection:
        attempt = attempts.get(connection, run_id, status) or Attempt(
            run_id, "", status, 0, ended_at(record), run.job_name, AttemptState.NEW
        )
        parent = attempts.get(connection, run.parent_run_id or "", AttemptStatus.FAILED)
        parents = {} if parent is None else {parent.run_id: parent}
        classified = classify(reader, attempt, parents, {**records, **retries}, now)
        subject = _Subject(instance, policy, now, secrets, connection, reader, run, classified)
        failed = [one for one in mutes.apply(connection, classified.outcomes) if one.failed]
        if failed:
            return [_failure(subject, outcomes) for outcomes in _by_owner(failed)]
        return [_no_failure(subject)]


def _by_owner(outcomes: Sequence[ExecutionOutcome]) -> Sequence[Sequence[ExecutionOutcome]]:
    groups: dict[str, list[ExecutionOutcome]] = {}
    for one in outcomes:
        groups.setdefault(one.owner or "", []).append(one)
    return list(groups.values())


def _no_failure(subject: _Subject) -> Preview:
    """Preview a run that leads to no message of its own."""
    classified = subject.classified
    if classified.held_until is not None:
        disposition = classified.disposition or "held"
    elif classified.outcomes:
        failing = outcome_queries.series_with_open_failures(
            subject.connection, [one.series for one in classified.outcomes]
        )
        disposition = "not notified: the run succeeded"
        if failing:
            names = ", ".join(sorted(failing))
            disposition = f"ends the consecutive failures of {names}, and resolves their incident if there is one"
    else:
        disposition = f"not notified: {classified.disposition or 'a success resolves no backfill'}"
    return Preview([*_head(subject), ("Series", classified.series or "-"), ("Disposition", disposition)])


def _head(subject: _Subject) -> list[tuple[str, str]]:
    run, ended_at = subject.run, _time(subject.classified.attempt.at)
    return [("Run", f"{run.run_id} of {run.job_name}, {run.status.value} at {ended_at}")]


def _failure(subject: _Subject, outcomes: Sequence[ExecutionOutcome]) -> Preview:
    """Preview the failures of one owner."""
    first = outcomes[0]
    is_backfill = first.series.startswith(BACKFILL_SERIES)
    threshold = 1 if is_backfill else subject.policy.thresholds.get(subject.run.job_name, 1)
    counted = [(one, _streak(subject, one, threshold)) for one in outcomes]
    key = next((streak.incident for _, streak in counted if streak is not None and streak.incident is not None), None)
    if is_backfill:
        key = incident_key(first.series, first.owner)
    existing = None if key is None else incidents.get(subject.connection, key)
    known = [] if existing is None else outcome_queries.failures_of(subject.connection, existing.key)
    by_key = {one.key: one for one in [*outcomes, *known]}
    for _, streak in counted:
        by_key |= {one.key: one for one in (streak.failures if streak else ())}
    failures = sorted(by_key.values(), key=lambda one: one.order)
    incident = existing or Incident(
        key=key or "",
        kind=IncidentKind.BACKFILL if is_backfill else IncidentKind.RUN,
        channel=route.channel_of(first.owner, subject.policy),
        owner=first.owner,
        opened_at=first.at,
        threshold=threshold,
        failures=count_executions(failures),
    )
    notice = facts_of_failures(incident, failures)
    if first.failure is not None:
        success = last_success(subject.instance, subject.run.job_name, first.failure.asset_keys, failures[0].at)
        notice = replace(notice, last_success_at=success)
    facts = [
        *_head(subject),
        ("Owner", f"{first.owner or 'none'}, {_owner_source(subject, first)}"),
        ("Channel", incident.channel),
        ("Series", ", ".join(one.series for one in outcomes)),
        ("Consecutive failures", _consecutive(counted, is_backfill=is_backfill)),
        ("Threshold", f"{threshold}, {_threshold_source(subject, threshold)}"),
        ("Incident", _describe_incident(existing, key)),
        ("Disposition", _disposition(first, key, threshold, counted, existing)),
        ("On record", _on_record(subject, first)),
    ]
    is_notified = first.muted_by is None and key is not None
    return Preview(facts, message.compose(notice, subject.policy, subject.secrets), is_notified)


def _streak(subject: _Subject, outcome: ExecutionOutcome, threshold: int) -> Streak | None:
    history = outcome_queries.history(subject.connection, [outcome], SWEEP_LOOKBACK).get(outcome.series, [])
    same_owner = [one for one in history if not one.failed or one.owner == outcome.owner]
    # A stored outcome of the same failure replaces it: it knows its incident.
    found = streaks([outcome, *same_owner], threshold)
    return next((one for one in found if any(failure.key == outcome.key for failure in one.failures)), None)


def _owner_source(subject: _Subject, outcome: ExecutionOutcome) -> str:
    run, failure = subject.run, outcome.failure
    plan = subject.reader.plans.of(run)
    steps = () if failure is None else failure.step_keys
    location = route.location_of(run)
    if outcome.owner is None:
        return "because no failed step, run tag or location names one"
    if any(plan[step].owner == outcome.owner for step in steps if step in plan):
        return f"by the tag of the failed step {', '.join(steps)}"
    if run.tags.get(OWNER_TAG) == outcome.owner:
        return "by the tag of the run"
    if subject.policy.team_of_location(location or "") == outcome.owner:
        return f"the team of the location {location}"
    return "by the plan of the run"


def _threshold_source(subject: _Subject, threshold: int) -> str:
    if subject.run.job_name in subject.policy.thresholds:
        return f"of {subject.run.job_name} in CONSECUTIVE_FAILURE_THRESHOLDS"
    return "the default" if threshold == 1 else ""


def _consecutive(counted: Sequence[_Counted], *, is_backfill: bool) -> str:
    if is_backfill:
        return "not counted: a backfill is one incident"
    found = [streak for _, streak in counted if streak is not None]
    if not found:
        return "none: muted failures do not count"
    longest = max(found, key=lambda one: one.executions)
    return f"{longest.executions}" + ("" if longest.resolved_at is None else f", until {_time(longest.resolved_at)}")


def _describe_incident(existing: Incident | None, key: str | None) -> str:
    if existing is None:
        return "none" if key is None else f"new: {key}"
    state = "open" if existing.resolved_at is None else f"resolved at {_time(existing.resolved_at)}"
    return f"{existing.key}, opened at {_time(existing.opened_at)}, {existing.failures} failures, {state}"


def _disposition(
    first: ExecutionOutcome,
    key: str | None,
    threshold: int,
    counted: Sequence[_Counted],
    existing: Incident | None,
) -> str:
    if first.muted_by is not None:
        return f"not notified: muted by {first.muted_by}"
    if key is None:
        most = max((streak.executions for _, streak in counted if streak is not None), default=1)
        return f"not notified: below the threshold, {most} of {threshold}"
    if existing is None:
        return "notified: opens an incident"
    return (
        "notified: in the thread of its incident" if existing.posted else "notified: its incident is about to be posted"
    )


def _on_record(subject: _Subject, outcome: ExecutionOutcome) -> str:
    """Return what the router has done about a failure."""
    outcomes, rows = tables.outcomes, tables.outbox
    stored = subject.connection.execute(
        sa.select(outcomes.c.disposition, outcomes.c.incident).where(
            outcomes.c.run_id == outcome.run_id, outcomes.c.failed, outcomes.c.owner == (outcome.owner or "")
        )
    ).first()
    if stored is None:
        return "nothing: the router has not decided about it yet"
    row = subject.connection.execute(
        sa.select(rows.c.state, rows.c.channel, rows.c.ts, rows.c.note).where(rows.c.key == (stored.incident or ""))
    ).first()
    if row is None:
        return str(stored.disposition)
    sent = f"{row.state} to {row.channel}{f' (ts {row.ts})' if row.ts else ''}{f', {row.note}' if row.note else ''}"
    return f"{stored.disposition}; its message is {sent}"


def _time(time: dt.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"
