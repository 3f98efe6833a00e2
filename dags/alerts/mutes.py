"""Mutes: what each suppresses, and the summary at its end. The tag that mutes a job permanently is in `route.py`.

Whether a mute applies depends on the time of the failure, not on that of a tick. In doubt it suppresses nothing.
"""

import datetime as dt
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import sqlalchemy as sa

from dags.alerts import outbox, route
from dags.alerts.queries import mutes as queries
from dags.alerts.queries import outcomes
from dags.alerts.store import reading, transaction
from dags.alerts.values import (
    Draft,
    ExecutionOutcome,
    Finding,
    Mute,
    MuteKind,
    MuteSubject,
    Notice,
    NoticeKind,
    Operation,
    Policy,
    Suppressed,
)
from dags.common.tags import ASSET_JOB

MAX_DURATION = dt.timedelta(days=14)
MAX_SAMPLES = 5
MAX_LINES = 20
UNITS: Mapping[str, dt.timedelta] = {
    "m": dt.timedelta(minutes=1),
    "h": dt.timedelta(hours=1),
    "d": dt.timedelta(days=1),
}


class MuteError(Exception):
    """The arguments make no valid mute. The message says what does."""


def parse_match(text: str) -> tuple[MuteKind, str]:
    """Return the kind and the pattern of a text such as `job:web_*`. Raises MuteError."""
    kind, colon, pattern = text.partition(":")
    if not colon or kind not in set(MuteKind) or not pattern.strip():
        raise MuteError(
            f"'{text}' matches nothing: write {', '.join(f'{one}:PATTERN' for one in MuteKind)}, with * for any text, "
            "as in job:web_*."
        )
    return MuteKind(kind), pattern.strip()


def parse_duration(text: str) -> dt.timedelta:
    """Return the duration of a text such as `30m`, `4h` or `2d`. Raises MuteError, also above MAX_DURATION."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text.strip())
    if found is None:
        raise MuteError(f"'{text}' is no duration: write minutes, hours or days, as in 30m, 4h or 2d.")
    duration = int(found[1]) * UNITS[found[2]]
    if duration > MAX_DURATION:
        raise MuteError(
            f"{text} is longer than {MAX_DURATION.days} days, the limit of a mute. To mute a job permanently, give it "
            f'the tag {route.MUTE_TAG}: "true".'
        )
    return duration


def add(connection: sa.Connection, match: str, duration: dt.timedelta, reason: str, now: dt.datetime) -> Mute:
    """Start a mute now. `reason` is already redacted. Raises MuteError."""
    kind, pattern = parse_match(match)
    if not reason.strip():
        raise MuteError("A mute needs a reason: others will read it.")
    if not dt.timedelta() < duration <= MAX_DURATION:
        raise MuteError(f"A mute lasts at most {MAX_DURATION.days} days.")
    return queries.add(connection, kind, pattern, reason.strip(), now, now + duration)


def end(connection: sa.Connection, mute_id: int, now: dt.datetime) -> Mute:
    """End a mute now; a later tick sends its summary. Raises MuteError when no such mute is in force."""
    found = [one for one in queries.without_summary(connection) if one.id == mute_id and one.ends_at > now]
    if not found:
        raise MuteError(f"No mute {mute_id} is in force: `mutes` lists those that are.")
    queries.set_end(connection, mute_id, now)
    return replace(found[0], ends_at=now)


def matches(mute: Mute, subject: MuteSubject) -> bool:
    """Return whether a mute matches. By asset it does only when it matches every failed asset."""
    if mute.kind is MuteKind.ASSET:
        return bool(subject.asset_keys) and all(fnmatchcase(key, mute.pattern) for key in subject.asset_keys)
    values = {
        MuteKind.OWNER: subject.owner,
        MuteKind.JOB: subject.job_name,
        MuteKind.LOCATION: subject.location,
        MuteKind.FINDING: subject.finding,
    }
    value = values[mute.kind]
    return value is not None and fnmatchcase(value, mute.pattern)


def mute_of(known: Sequence[Mute], at: dt.datetime, subject: MuteSubject) -> Mute | None:
    """Return the first mute that suppresses what happened at a time, None when none does."""
    return next((one for one in known if one.created_at <= at < one.ends_at and matches(one, subject)), None)


def apply(connection: sa.Connection, found: Sequence[ExecutionOutcome]) -> list[ExecutionOutcome]:
    """Return the outcomes, each failure with the mute that suppresses it."""
    known = queries.without_summary(connection)
    return [replace(one, muted_by=mute.name) if (mute := _mute_of_outcome(known, one)) else one for one in found]


def without_muted_findings(connection: sa.Connection, found: Sequence[Finding], now: dt.datetime) -> Sequence[Finding]:
    """Return the findings that no mute suppresses, and count the others."""
    known = queries.without_summary(connection)
    left = []
    for finding in found:
        subject = MuteSubject(finding.owner, finding.job_name, finding.location, (), finding.key)
        mute = mute_of(known, now, subject)
        if mute is None:
            left.append(finding)
        else:
            queries.add_finding(connection, mute, finding, now)
    return left


def enqueue_summaries(
    store: sa.Engine, policy: Policy, horizon: dt.datetime, now: dt.datetime, secrets: Collection[str] = ()
) -> int:
    """Put the summaries of ended mutes into the outbox, and return how many messages they are.

    A mute is summarized when everything before its end has been decided. One that suppressed nothing has no summary.
    """
    with reading(store) as connection:
        if not any(mute.ends_at <= horizon for mute in queries.without_summary(connection)):
            return 0
    enqueued = 0
    with transaction(store) as connection:
        for mute in queries.without_summary(connection):
            if mute.ends_at <= horizon:
                enqueued += outbox.enqueue(connection, _drafts(connection, mute, policy), policy, now, secrets)
                queries.set_summarized(connection, mute.id, now)
    return enqueued


def count(connection: sa.Connection, mute: Mute) -> int:
    """Return how many failed executions and findings a mute has suppressed."""
    return outcomes.count_muted_by(connection, mute.name) + queries.count_findings(connection, mute.id)


def suppressed(connection: sa.Connection, mute: Mute) -> Sequence[Suppressed]:
    """Return what a mute has suppressed, by owner."""
    failures = outcomes.muted_by(connection, mute.name)
    findings = queries.findings_of(connection, mute)
    owners = {one.owner or "" for one, _ in failures} | {one.owner or "" for one in findings}
    found = []
    for owner in sorted(owners):
        failed = [(one, job_name) for one, job_name in failures if (one.owner or "") == owner]
        broken = [one for one in findings if (one.owner or "") == owner]
        times = [*(one.at for one, _ in failed), *(one.at for one in broken)]
        newest = {one.run_id: one.failure for one, _ in reversed(failed) if one.failure is not None}
        subjects = {(one.execution, _subject(job_name, one.series)) for one, job_name in failed}
        found.append(
            Suppressed(
                owner=owner or None,
                counts=Counter(subject for _, subject in subjects),
                first_at=min(times),
                last_at=max(times),
                samples=list(newest.values())[:MAX_SAMPLES],
                findings=[one.title for one in broken],
            )
        )
    return found


def summary_of(mute: Mute, found: Suppressed) -> Notice:
    """Return the facts of the summary for one owner."""
    lines = [f"{subject}: {_times(number)}" for subject, number in Counter(found.counts).most_common(MAX_LINES)]
    if len(found.counts) > MAX_LINES:
        lines.append(f"and {len(found.counts) - MAX_LINES} more")
    lines += found.findings[:MAX_LINES]
    number = found.failures + len(found.findings)
    return Notice(
        kind=NoticeKind.MUTE_ENDED,
        owner=found.owner,
        failures=found.failures,
        first_failed_at=found.first_at,
        last_failed_at=found.last_at,
        title=f"A mute has ended: it suppressed {number} alert{'' if number == 1 else 's'}",
        detail=f"{mute.match}, from {mute.created_at:%Y-%m-%d %H:%M} to {mute.ends_at:%Y-%m-%d %H:%M} UTC. "
        f"Reason: {mute.reason}\nYou are notified of failures from now on, not of these.",
        samples=found.samples,
        lines=tuple(lines),
    )


def _mute_of_outcome(known: Sequence[Mute], outcome: ExecutionOutcome) -> Mute | None:
    failure = outcome.failure
    if not outcome.failed or outcome.muted_by is not None or failure is None:
        return None
    subject = MuteSubject(outcome.owner, failure.job_name, failure.location, failure.asset_keys)
    return mute_of(known, outcome.at, subject)


def _drafts(connection: sa.Connection, mute: Mute, policy: Policy) -> Sequence[Draft]:
    drafts = []
    for found in suppressed(connection, mute):
        key = f"mute/{mute.id}/{found.owner or 'unowned'}"
        channel = route.channel_of(found.owner, policy)
        drafts.append(Draft(key, key, Operation.POST, channel, summary_of(mute, found)))
    return drafts


def _subject(job_name: str, series: str) -> str:
    return series.rpartition(f"/{ASSET_JOB}/")[2].partition(":")[2] or series if job_name == ASSET_JOB else job_name


def _times(number: int) -> str:
    return "1 failure" if number == 1 else f"{number:,} failures"
