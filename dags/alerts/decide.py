"""The rules of the alert router: which failures open an incident, and when something about it is due. Pure functions.

Outcomes are decided in the order of events and up to a horizon, a time before which every event is known, never by the
clock of a tick. So ticks that run early, late or twice come to the same incidents. Only how much one message says
depends on ticks: what one tick sees together is notified together.
"""

import datetime as dt
from collections.abc import Iterable, Sequence

from dags.alerts.values import ExecutionOutcome, Incident, IncidentKind, Streak

# An event is decided this long after it: Dagster writes the run's status and tags later, in other transactions.
SETTLE_TIME = dt.timedelta(seconds=20)
# A promised retry that has not started by then is a failure.
RETRY_PROMISE = dt.timedelta(minutes=10)
REMINDER_INTERVAL = dt.timedelta(hours=4)
# Further failures are notified in batches that grow up to a limit, so that days of failures do not fill the thread.
FIRST_BATCH = dt.timedelta(minutes=1)
MAX_BATCH = dt.timedelta(minutes=16)
EDIT_INTERVAL = dt.timedelta(minutes=1)
MAX_INCIDENTS_BEFORE_STORM = 20
STORM_WINDOW = dt.timedelta(minutes=5)


def streaks(outcomes: Iterable[ExecutionOutcome], threshold: int) -> list[Streak]:
    """Return the consecutive failures of one series and owner, the oldest first. Muted failures are neutral.

    The order of the arguments does not matter, nor does an outcome given twice.
    """
    found: list[Streak] = []
    failures: list[ExecutionOutcome] = []
    by_key = {outcome.key: outcome for outcome in outcomes}
    for outcome in sorted(by_key.values(), key=lambda one: one.order):
        if outcome.failed and outcome.muted_by is None:
            failures.append(outcome)
        elif not outcome.failed and failures:
            found.append(_streak(failures, threshold, outcome.at))
            failures = []
    if failures:
        found.append(_streak(failures, threshold, None))
    return found


def _streak(failures: Sequence[ExecutionOutcome], threshold: int, resolved_at: dt.datetime | None) -> Streak:
    executions: set[str] = set()
    reached_by = None
    for failure in failures:
        executions.add(failure.execution)
        if len(executions) >= threshold:
            reached_by = failure
            break
    notified = next((failure.incident for failure in failures if failure.incident is not None), None)
    return Streak(
        failures=tuple(failures),
        executions=count_executions(failures),
        resolved_at=resolved_at,
        reached_by=reached_by,
        incident=notified or (None if reached_by is None else incident_key(reached_by.execution, reached_by.owner)),
    )


def incident_key(subject: str, owner: str | None) -> str:
    """Return the key of an owner's incident about a subject: an execution or a backfill.

    All incidents that one execution opens for one owner have the same key, and so become one message.
    """
    return f"{subject}/{owner or 'unowned'}"


def count_executions(failures: Iterable[ExecutionOutcome]) -> int:
    """Return how many executions failed. Several series of one run count once."""
    return len({failure.execution for failure in failures})


def storm_of(earlier: Sequence[str | None], key: str, channel: str) -> str | None:
    """Return the key of the storm that a new incident is part of, None when it gets a message of its own.

    `earlier` are the storms, or None, of the incidents that opened in the channel within STORM_WINDOW before it, in
    order. `key` is that of the new incident: a storm is named after its first incident.
    """
    if len(earlier) < MAX_INCIDENTS_BEFORE_STORM:
        return None
    storms = [storm for storm in earlier if storm is not None]
    return storms[-1] if storms else f"storm/{channel}/{key}"


def batch_number(opened_at: dt.datetime, time: dt.datetime) -> int:
    """Return how many batches have ended by a time: after 1, 3, 7, 15, 31 minutes, then every 16 minutes."""
    left = time - opened_at
    batches, length = 0, FIRST_BATCH
    while length < MAX_BATCH and left >= length:
        left -= length
        length *= 2
        batches += 1
    return batches + (max(left // MAX_BATCH, 0) if length == MAX_BATCH else 0)


def has_due_batch(incident: Incident, horizon: dt.datetime) -> bool:
    """Return whether further failures are to be notified now."""
    has_more = incident.failures > incident.notified_failures
    return has_more and batch_number(incident.opened_at, horizon) > incident.batches


def due_reminder(incident: Incident, horizon: dt.datetime) -> int | None:
    """Return the number of the reminder that is due; None also when nothing failed since the last one."""
    number = (horizon - incident.opened_at) // REMINDER_INTERVAL
    if number <= incident.reminders or incident.last_failed_at is None:
        return None
    return number if incident.last_failed_at > incident.opened_at + (number - 1) * REMINDER_INTERVAL else None


def is_due(incident: Incident, horizon: dt.datetime) -> bool:
    """Return whether a message about an incident is due."""
    if incident.finished:
        return False
    if not incident.posted or incident.resolved_at is not None:
        return True
    if incident.storm is not None or incident.kind is IncidentKind.FINDING:
        return False
    if incident.kind in {IncidentKind.BACKFILL, IncidentKind.STORM}:
        return incident.failures > incident.notified_failures and _may_edit(incident, horizon)
    return has_due_batch(incident, horizon) or due_reminder(incident, horizon) is not None


def _may_edit(incident: Incident, horizon: dt.datetime) -> bool:
    return incident.edited_at is None or horizon - incident.edited_at >= EDIT_INTERVAL
