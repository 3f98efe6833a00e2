"""The rules of telling: which failures make an incident, and what is said of it when. Pure.

Belongs here: rules over values. Not here: reading runs (`settle.py`), rows (`verdicts.py`), words (`message.py`),
owners and channels (`route.py`).

Everything is judged in the order of events and up to a horizon, a time before which every event is known, and never by
the clock of a tick: ticks that run early, late or twice come to the same incidents. Only how much one message says at
once depends on them: what one tick sees together is told together.
"""

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dags.alerts.values import (
    Cause,
    Draft,
    ExecutionOutcome,
    Failure,
    Incident,
    IncidentKind,
    Notice,
    NoticeKind,
    Operation,
    Streak,
)

# An event is judged this long after it: its run's status and tags are written after it, in other transactions.
SETTLE = dt.timedelta(seconds=20)
# A promised retry is a failure when it has not started by then.
RETRY_PROMISE = dt.timedelta(minutes=10)
REMINDER = dt.timedelta(hours=4)
# Further failures are told in batches that grow to the longest, so that a streak of days does not fill its thread.
FIRST_BATCH = dt.timedelta(minutes=1)
LONGEST_BATCH = dt.timedelta(minutes=16)
EDIT_INTERVAL = dt.timedelta(minutes=1)
STORM_INCIDENTS = 20
STORM_WINDOW = dt.timedelta(minutes=5)
SAMPLES = 5
CAUSES = 3
STORM_LINES = 20


def streaks(outcomes: Iterable[ExecutionOutcome], threshold: int) -> list[Streak]:
    """The streaks of one series and owner, the oldest first. What is muted neither counts nor ends a streak.

    The order in which outcomes are given does not matter, nor does one that is given twice.
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


def _streak(failures: Sequence[ExecutionOutcome], threshold: int, ended_at: dt.datetime | None) -> Streak:
    executions: set[str] = set()
    reached_by = None
    for failure in failures:
        executions.add(failure.execution)
        if len(executions) >= threshold:
            reached_by = failure
            break
    told = next((failure.incident for failure in failures if failure.incident is not None), None)
    return Streak(
        failures=tuple(failures),
        executions=count_executions(failures),
        resolved_at=ended_at,
        reached_by=reached_by,
        incident=told or (None if reached_by is None else thread_key(reached_by.execution, reached_by.owner)),
    )


def thread_key(subject: str, owner: str | None) -> str:
    """The key of the thread that tells an owner of a subject: an execution, a backfill, a finding.

    All incidents that one execution opens for one owner have the same, and so make one message.
    """
    return f"{subject}/{owner or 'unowned'}"


def count_executions(failures: Iterable[ExecutionOutcome]) -> int:
    """How many executions failed: several series of one run are one."""
    return len({failure.execution for failure in failures})


def storm_of(earlier: Sequence[str | None], key: str, channel: str) -> str | None:
    """The storm that a new thread is a detail of, None when it stands alone.

    `earlier` are the storms, or None, of the threads of the channel that were opened in the STORM_WINDOW before it, in
    order. `key` is that of the new thread: a storm is named after the thread that began it.
    """
    if len(earlier) < STORM_INCIDENTS:
        return None
    begun = [storm for storm in earlier if storm is not None]
    return begun[-1] if begun else f"storm/{channel}/{key}"


def batch_of(opened_at: dt.datetime, time: dt.datetime) -> int:
    """How many batches are over at a time: after 1, 3, 7, 15, 31 minutes, then every 16 minutes."""
    left = time - opened_at
    batches, length = 0, FIRST_BATCH
    while length < LONGEST_BATCH and left >= length:
        left -= length
        length *= 2
        batches += 1
    return batches + (max(left // LONGEST_BATCH, 0) if length == LONGEST_BATCH else 0)


def is_due(thread: Incident, horizon: dt.datetime) -> bool:
    """Whether there is something to say now, told from the thread alone."""
    if thread.finished:
        return False
    if not thread.posted or thread.resolved_at is not None:
        return True
    if thread.storm is not None or thread.kind is IncidentKind.FINDING:
        return False
    if thread.kind in {IncidentKind.BACKFILL, IncidentKind.STORM}:
        return thread.failures > thread.notified_failures and _may_edit(thread, horizon)
    batch_over = thread.failures > thread.notified_failures and batch_of(thread.opened_at, horizon) > thread.batches
    return batch_over or _reminder(thread, horizon) is not None


def speak(
    thread: Incident, failures: Sequence[ExecutionOutcome], horizon: dt.datetime, notice: Notice | None = None
) -> tuple[Incident, list[Draft]]:
    """What is to be said of a thread now, and the thread after it. `failures` are all of its failures, in any order.

    `notice` gives the facts of a thread that has no failures of its own: a storm or a finding.
    """
    ordered = sorted(failures, key=lambda one: one.order)
    told = replace(
        thread,
        posted=True,
        notified_failures=thread.failures,
        batches=batch_of(thread.opened_at, horizon),
        edited_at=horizon,
        finished=thread.resolved_at is not None,
    )
    facts = notice_of(thread, ordered) if notice is None else notice
    if not thread.posted:
        return told, [_first(thread, facts)]
    if thread.resolved_at is not None:
        return told, _last(thread, facts)
    if thread.storm is not None:
        return thread, []
    if thread.kind is not IncidentKind.RUN:
        return told, [_edit(thread, facts)]
    drafts = []
    if thread.failures > thread.notified_failures and told.batches > thread.batches:
        drafts += [
            _reply(thread, f"more/{thread.failures}", _more(thread, facts)),
            _edit(thread, facts),
        ]
    else:
        told = replace(told, notified_failures=thread.notified_failures, edited_at=thread.edited_at)
    if (number := _reminder(thread, horizon)) is not None:
        drafts.append(_reply(thread, f"still/{number}", replace(facts, kind=NoticeKind.STILL_FAILING)))
        told = replace(told, reminders=number)
    return told, drafts


def notice_of(thread: Incident, failures: Sequence[ExecutionOutcome]) -> Notice:
    """The facts of a thread of failures, which are in order."""
    told = [outcome.failure for outcome in failures if outcome.failure is not None]
    by_run = {failure.run_id: failure for failure in told}
    # One of the newest, and rather one whose error is known.
    newest = sorted(by_run.values(), key=lambda one: (one.cause is not None, one.ended_at), reverse=True)[:SAMPLES]
    first = told[0] if told else None
    is_backfill = thread.kind is IncidentKind.BACKFILL
    return Notice(
        kind=NoticeKind.BACKFILL_FAILING if is_backfill else NoticeKind.FAILING,
        owner=thread.owner,
        location=first.location if first else None,
        job_name=first.job_name if first else None,
        asset_keys=tuple(sorted({key for failure in told for key in failure.asset_keys})),
        backfill_id=first.backfill_id if first else None,
        failures=thread.failures,
        consecutive_failures=0 if is_backfill else count_executions(failures),
        threshold=thread.threshold,
        first_failed_at=failures[0].at if failures else None,
        last_failed_at=failures[-1].at if failures else None,
        resolved_at=thread.resolved_at,
        samples=tuple(newest),
        causes=common_causes(by_run.values()),
        lines=_left_out(len(by_run), sum(failure.cause is not None for failure in by_run.values())),
    )


def common_causes(failures: Iterable[Failure]) -> Sequence[tuple[Cause, int]]:
    """The commonest causes and how often each came; messages that differ in numbers alone are one."""
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], Cause] = {}
    for failure in failures:
        if failure.cause is not None:
            kind = (failure.cause.error_class, re.sub(r"\d+", "0", failure.cause.message))
            counts[kind] += 1
            example.setdefault(kind, failure.cause)
    return tuple((example[kind], count) for kind, count in counts.most_common(CAUSES))


def storm_notice(thread: Incident, members: Sequence[Incident], titles: Mapping[str, str]) -> Notice:
    """The facts of a storm: its members in the order they came, the first of them by title."""
    over = sum(member.resolved_at is not None for member in members)
    lines = [titles.get(member.key, member.key) for member in members[:STORM_LINES]]
    if len(members) > STORM_LINES:
        lines.append(f"and {len(members) - STORM_LINES} more")
    return Notice(
        kind=NoticeKind.STORM,
        owner=thread.owner,
        failures=len(members),
        first_failed_at=thread.opened_at,
        last_failed_at=thread.last_failed_at,
        title=f"{len(members)} more incidents within minutes",
        detail=f"{over} of {len(members)} are over. Each is told in this thread.",
        lines=tuple(lines),
    )


def _first(thread: Incident, facts: Notice) -> Draft:
    kind = facts.kind
    if kind is NoticeKind.FAILING and thread.resolved_at is not None:
        kind = NoticeKind.FAILED_AND_RESOLVED
    elif kind is NoticeKind.BACKFILL_FAILING and thread.resolved_at is not None:
        kind = NoticeKind.BACKFILL_ENDED
    in_storm = thread.storm is not None
    return Draft(
        key=thread.key,
        thread=thread.storm or thread.key,
        operation=Operation.REPLY if in_storm else Operation.POST,
        channel=thread.channel,
        notice=replace(facts, kind=kind),
    )


def _last(thread: Incident, facts: Notice) -> list[Draft]:
    kind = {
        IncidentKind.RUN: NoticeKind.RESOLVED,
        IncidentKind.BACKFILL: NoticeKind.BACKFILL_ENDED,
        IncidentKind.FINDING: NoticeKind.FINDING_RESOLVED,
        IncidentKind.STORM: NoticeKind.STORM,
    }[thread.kind]
    over = replace(facts, kind=kind)
    replies = [] if thread.kind is IncidentKind.STORM else [_reply(thread, "resolved", over)]
    # A reply in a storm's thread cannot be edited: only what opened a thread can.
    return replies if thread.storm is not None else [*replies, _edit(thread, over)]


def _edit(thread: Incident, facts: Notice) -> Draft:
    state = "resolved" if thread.resolved_at is not None else "open"
    return Draft(f"{thread.key}/edit/{state}/{thread.failures}", thread.key, Operation.EDIT, thread.channel, facts)


def _reply(thread: Incident, name: str, facts: Notice) -> Draft:
    return Draft(f"{thread.key}/{name}", thread.storm or thread.key, Operation.REPLY, thread.channel, facts)


def _more(thread: Incident, facts: Notice) -> Notice:
    line = f"{thread.failures - thread.notified_failures} more since the last message of this thread."
    return replace(facts, kind=NoticeKind.MORE_FAILURES, lines=(line, *facts.lines))


def _may_edit(thread: Incident, horizon: dt.datetime) -> bool:
    return thread.edited_at is None or horizon - thread.edited_at >= EDIT_INTERVAL


def _reminder(thread: Incident, horizon: dt.datetime) -> int | None:
    """The number of the reminder that is due, None when none is: without failures since the last one it is not."""
    number = (horizon - thread.opened_at) // REMINDER
    if number <= thread.reminders or thread.last_failed_at is None:
        return None
    return number if thread.last_failed_at > thread.opened_at + (number - 1) * REMINDER else None


def _left_out(runs: int, with_cause: int) -> Sequence[str]:
    return () if with_cause in {0, runs} else (f"The errors of {with_cause} of the {runs} failed runs were looked at.",)
