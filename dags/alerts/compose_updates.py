"""Incidents into drafts: which messages an incident gets now, and the facts of each. Pure functions."""

import datetime as dt
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dags.alerts.decide import batch_number, count_executions, due_reminder, has_due_batch
from dags.alerts.values import (
    Cause,
    Draft,
    ExecutionOutcome,
    Failure,
    Finding,
    Incident,
    IncidentKind,
    Notice,
    NoticeKind,
    Operation,
)

MAX_SAMPLES = 5
MAX_CAUSES = 3
MAX_STORM_LINES = 20


def compose_update(incident: Incident, facts: Notice, horizon: dt.datetime) -> tuple[Incident, list[Draft]]:
    """Return the drafts about an incident that are due now, and the incident after them."""
    after = replace(
        incident,
        posted=True,
        notified_failures=incident.failures,
        batches=batch_number(incident.opened_at, horizon),
        edited_at=horizon,
        finished=incident.resolved_at is not None,
    )
    if not incident.posted:
        return after, [_first(incident, facts)]
    if incident.resolved_at is not None:
        return after, _last(incident, facts)
    if incident.storm is not None:
        return incident, []
    if incident.kind is not IncidentKind.RUN:
        return after, [_edit(incident, facts)]
    drafts = []
    if has_due_batch(incident, horizon):
        drafts += [_reply(incident, f"more/{incident.failures}", _more(incident, facts)), _edit(incident, facts)]
    else:
        after = replace(after, notified_failures=incident.notified_failures, edited_at=incident.edited_at)
    if (number := due_reminder(incident, horizon)) is not None:
        drafts.append(_reply(incident, f"still/{number}", replace(facts, kind=NoticeKind.STILL_FAILING)))
        after = replace(after, reminders=number)
    return after, drafts


def facts_of_failures(incident: Incident, failures: Sequence[ExecutionOutcome]) -> Notice:
    """Return the facts of an incident of runs or of a backfill. The failures are in order."""
    known = [outcome.failure for outcome in failures if outcome.failure is not None]
    by_run = {failure.run_id: failure for failure in known}
    # The newest ones, preferably those whose error is known.
    newest = sorted(by_run.values(), key=lambda one: (one.cause is not None, one.ended_at), reverse=True)[:MAX_SAMPLES]
    first = known[0] if known else None
    is_backfill = incident.kind is IncidentKind.BACKFILL
    return Notice(
        kind=NoticeKind.BACKFILL_FAILING if is_backfill else NoticeKind.FAILING,
        owner=incident.owner,
        location=first.location if first else None,
        job_name=first.job_name if first else None,
        asset_keys=tuple(sorted({key for failure in known for key in failure.asset_keys})),
        backfill_id=first.backfill_id if first else None,
        failures=incident.failures,
        consecutive_failures=0 if is_backfill else count_executions(failures),
        threshold=incident.threshold,
        first_failed_at=failures[0].at if failures else None,
        last_failed_at=failures[-1].at if failures else None,
        resolved_at=incident.resolved_at,
        samples=tuple(newest),
        causes=common_causes(by_run.values()),
        lines=_unread_logs(len(by_run), sum(failure.cause is not None for failure in by_run.values())),
    )


def facts_of_storm(storm: Incident, members: Sequence[Incident], titles: Mapping[str, str]) -> Notice:
    """Return the facts of a storm: its incidents in the order in which they opened, the first of them by title."""
    resolved = sum(member.resolved_at is not None for member in members)
    lines = [titles.get(member.key, member.key) for member in members[:MAX_STORM_LINES]]
    if len(members) > MAX_STORM_LINES:
        lines.append(f"and {len(members) - MAX_STORM_LINES} more")
    return Notice(
        kind=NoticeKind.STORM,
        owner=storm.owner,
        failures=len(members),
        first_failed_at=storm.opened_at,
        last_failed_at=storm.last_failed_at,
        title=f"{len(members)} more incidents within minutes",
        detail=f"{resolved} of {len(members)} are resolved. Each has a reply in this thread.",
        lines=tuple(lines),
    )


def facts_of_finding(incident: Incident, finding: Finding) -> Notice:
    """Return the facts of a finding."""
    return Notice(
        kind=NoticeKind.FINDING,
        owner=incident.owner,
        location=finding.location,
        first_failed_at=finding.since,
        resolved_at=incident.resolved_at,
        title=finding.title,
        detail=finding.detail,
    )


def common_causes(failures: Iterable[Failure]) -> Sequence[tuple[Cause, int]]:
    """Return the most common causes with their counts. Messages that differ only in numbers count as one."""
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], Cause] = {}
    for failure in failures:
        if failure.cause is not None:
            kind = (failure.cause.error_class, re.sub(r"\d+", "0", failure.cause.message))
            counts[kind] += 1
            example.setdefault(kind, failure.cause)
    return tuple((example[kind], count) for kind, count in counts.most_common(MAX_CAUSES))


def _first(incident: Incident, facts: Notice) -> Draft:
    kind = facts.kind
    if kind is NoticeKind.FAILING and incident.resolved_at is not None:
        kind = NoticeKind.FAILED_AND_RESOLVED
    elif kind is NoticeKind.BACKFILL_FAILING and incident.resolved_at is not None:
        kind = NoticeKind.BACKFILL_ENDED
    return Draft(
        key=incident.key,
        thread=incident.storm or incident.key,
        operation=Operation.POST if incident.storm is None else Operation.REPLY,
        channel=incident.channel,
        notice=replace(facts, kind=kind),
    )


def _last(incident: Incident, facts: Notice) -> list[Draft]:
    kind = {
        IncidentKind.RUN: NoticeKind.RESOLVED,
        IncidentKind.BACKFILL: NoticeKind.BACKFILL_ENDED,
        IncidentKind.FINDING: NoticeKind.FINDING_RESOLVED,
        IncidentKind.STORM: NoticeKind.STORM,
    }[incident.kind]
    resolved = replace(facts, kind=kind)
    replies = [] if incident.kind is IncidentKind.STORM else [_reply(incident, "resolved", resolved)]
    # Only the message that opened a thread is edited, and a member of a storm opened none.
    return replies if incident.storm is not None else [*replies, _edit(incident, resolved)]


def _edit(incident: Incident, facts: Notice) -> Draft:
    state = "open" if incident.resolved_at is None else "resolved"
    key = f"{incident.key}/edit/{state}/{incident.failures}"
    return Draft(key, incident.key, Operation.EDIT, incident.channel, facts)


def _reply(incident: Incident, name: str, facts: Notice) -> Draft:
    key = f"{incident.key}/{name}"
    return Draft(key, incident.storm or incident.key, Operation.REPLY, incident.channel, facts)


def _more(incident: Incident, facts: Notice) -> Notice:
    line = f"{incident.failures - incident.notified_failures} more since the last message of this thread."
    return replace(facts, kind=NoticeKind.MORE_FAILURES, lines=(line, *facts.lines))


def _unread_logs(runs: int, with_cause: int) -> Sequence[str]:
    return () if with_cause in {0, runs} else (f"The errors of {with_cause} of the {runs} failed runs were read.",)
