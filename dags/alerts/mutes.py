"""Mutes: what people ask not to be told of for a while. Nothing is lost by one: it is counted, and told when it ends.

Belongs here: the table, what a mute matches, and the summary at its end. Not here: the tag that mutes a job for good
(`route.py`).

What a mute keeps back is told by the time of the failure and not by that of a tick. In doubt it keeps back nothing.
"""

import datetime as dt
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import sqlalchemy as sa

from dags.alerts import incidents, outbox, route
from dags.alerts.store import reading, transaction
from dags.alerts.tables import muted_findings, mutes, outcomes
from dags.alerts.values import (
    Draft,
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

if TYPE_CHECKING:
    from dags.alerts.values import ExecutionOutcome

LONGEST = dt.timedelta(days=14)
SAMPLES = 5
LINES = 20
UNITS: Mapping[str, dt.timedelta] = {
    "m": dt.timedelta(minutes=1),
    "h": dt.timedelta(hours=1),
    "d": dt.timedelta(days=1),
}


class MuteError(Exception):
    """What was asked for is no mute. The message says what is."""


def parse_match(text: str) -> tuple[MuteKind, str]:
    """The kind and the pattern of a text such as `job:web_*`. Raises MuteError."""
    kind, colon, pattern = text.partition(":")
    if not colon or kind not in set(MuteKind) or not pattern.strip():
        raise MuteError(
            f"'{text}' matches nothing: write {', '.join(f'{one}:PATTERN' for one in MuteKind)}, with * for any text, "
            "as in job:web_*."
        )
    return MuteKind(kind), pattern.strip()


def parse_duration(text: str) -> dt.timedelta:
    """The time of a text such as `30m`, `4h` or `2d`. Raises MuteError when it is none, or longer than LONGEST."""
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhd])", text.strip())
    if found is None:
        raise MuteError(f"'{text}' is no time: write minutes, hours or days, as in 30m, 4h or 2d.")
    duration = int(found[1]) * UNITS[found[2]]
    if duration > LONGEST:
        raise MuteError(
            f"{text} is longer than {LONGEST.days} days, the longest mute. For good, give the job the tag "
            f'{route.MUTE_TAG}: "true".'
        )
    return duration


def add(connection: sa.Connection, match: str, duration: dt.timedelta, reason: str, now: dt.datetime) -> Mute:
    """Mutes from now on. `reason` has been redacted. Raises MuteError."""
    kind, pattern = parse_match(match)
    if not reason.strip():
        raise MuteError("A mute needs a reason: others will read it.")
    if not dt.timedelta() < duration <= LONGEST:
        raise MuteError(f"A mute lasts at most {LONGEST.days} days.")
    row = {
        "kind": kind.value,
        "pattern": pattern,
        "reason": reason.strip(),
        "created_at": now,
        "ends_at": now + duration,
    }
    mute_id = connection.execute(sa.insert(mutes).values(**row).returning(mutes.c.id)).scalar_one()
    return Mute(mute_id, kind, pattern, reason.strip(), now, now + duration)


def end(connection: sa.Connection, mute_id: int, now: dt.datetime) -> Mute:
    """Ends a mute now; what it has kept back is told by a next tick. Raises MuteError when there is no such mute."""
    found = [one for one in standing(connection) if one.id == mute_id and one.ends_at > now]
    if not found:
        raise MuteError(f"No mute {mute_id} is in force: `mutes` lists those that are.")
    connection.execute(sa.update(mutes).where(mutes.c.id == mute_id).values(ends_at=now))
    return replace(found[0], ends_at=now)


def standing(connection: sa.Connection) -> Sequence[Mute]:
    """The mutes whose end has not been told, the oldest first."""
    return [
        Mute(row.id, MuteKind(row.kind), row.pattern, row.reason, row.created_at, row.ends_at)
        for row in connection.execute(sa.select(mutes).where(mutes.c.summarized_at.is_(None)).order_by(mutes.c.id))
    ]


def matches(mute: Mute, subject: MuteSubject) -> bool:
    """Whether a mute matches. One by asset does when it matches every asset that failed: the others must be told."""
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
    """The first mute that keeps back what happened at a time, None when it is to be told."""
    return next((one for one in known if one.created_at <= at < one.ends_at and matches(one, subject)), None)


def apply(connection: sa.Connection, found: Sequence["ExecutionOutcome"]) -> list["ExecutionOutcome"]:
    """The outcomes, with the mute that keeps each failure back."""
    known = standing(connection)
    return [replace(one, muted_by=muted.name) if (muted := _mute_of_outcome(known, one)) else one for one in found]


def keep_back(connection: sa.Connection, found: Sequence[Finding], now: dt.datetime) -> Sequence[Finding]:
    """The findings that are to be told; the others are counted."""
    known = standing(connection)
    told = []
    for finding in found:
        subject = MuteSubject(finding.owner, finding.job_name, finding.location, (), finding.key)
        muted = mute_of(known, now, subject)
        if muted is None:
            told.append(finding)
            continue
        row = {"mute": muted.id, "finding": finding.key, "owner": finding.owner, "title": finding.title, "at": now}
        incidents.insert_new(connection, muted_findings, [row])
    return told


def tell_ended(
    store: sa.Engine, policy: Policy, horizon: dt.datetime, now: dt.datetime, secrets: Collection[str] = ()
) -> int:
    """Puts the summaries of mutes that are over into the outbox. How many messages those are.

    Over is a mute when all that happened before its end has been judged. One that kept back nothing ends in silence.
    """
    with reading(store) as connection:
        over = sa.select(mutes.c.id).where(mutes.c.summarized_at.is_(None), mutes.c.ends_at <= horizon)
        if connection.execute(over.limit(1)).first() is None:
            return 0
    told = 0
    with transaction(store) as connection:
        for mute in standing(connection):
            if mute.ends_at <= horizon:
                told += outbox.enqueue(connection, _drafts(connection, mute, policy), policy, now, secrets)
                connection.execute(sa.update(mutes).where(mutes.c.id == mute.id).values(summarized_at=now))
    return told


def count(connection: sa.Connection, mute_id: int) -> int:
    """How many failed executions and findings a mute has kept back."""
    failures = sa.select(sa.func.count(outcomes.c.execution.distinct())).where(outcomes.c.muted_by == f"mute {mute_id}")
    findings = sa.select(sa.func.count()).where(muted_findings.c.mute == mute_id)
    return int(connection.execute(failures).scalar_one()) + int(connection.execute(findings).scalar_one())


def swallowed(connection: sa.Connection, mute: Mute) -> Sequence[Suppressed]:
    """What a mute has kept back, by owner."""
    kept = connection.execute(
        sa.select(outcomes).where(outcomes.c.muted_by == mute.name, outcomes.c.failed).order_by(outcomes.c.at)
    ).all()
    findings = connection.execute(
        sa.select(muted_findings).where(muted_findings.c.mute == mute.id).order_by(muted_findings.c.at)
    ).all()
    found = []
    for owner in sorted({row.owner or "" for row in [*kept, *findings]}):
        failed = [row for row in kept if (row.owner or "") == owner]
        broken = [row for row in findings if (row.owner or "") == owner]
        times = [row.at for row in [*failed, *broken]]
        newest = {row.run_id: row.failure for row in reversed(failed) if row.failure is not None}
        subjects = {(row.execution, _subject(row.job_name, row.series)) for row in failed}
        found.append(
            Suppressed(
                owner=owner or None,
                counts=Counter(subject for _, subject in subjects),
                first_at=min(times),
                last_at=max(times),
                samples=[incidents.failure_from_json(text) for text in list(newest.values())[:SAMPLES]],
                findings=[row.title for row in broken],
            )
        )
    return found


def notice_of(mute: Mute, kept: Suppressed) -> Notice:
    """The summary for one owner."""
    lines = [f"{subject}: {_times(number)}" for subject, number in Counter(kept.counts).most_common(LINES)]
    if len(kept.counts) > LINES:
        lines.append(f"and {len(kept.counts) - LINES} more")
    lines += kept.findings[:LINES]
    number = kept.failures + len(kept.findings)
    return Notice(
        kind=NoticeKind.MUTE_ENDED,
        owner=kept.owner,
        failures=kept.failures,
        first_failed_at=kept.first_at,
        last_failed_at=kept.last_at,
        title=f"A mute has ended: it kept back {number} alert{'' if number == 1 else 's'}",
        detail=f"{mute.match}, from {mute.created_at:%Y-%m-%d %H:%M} to {mute.ends_at:%Y-%m-%d %H:%M} UTC. "
        f"Reason: {mute.reason}\nFailures from now on are told again; these are not.",
        samples=kept.samples,
        lines=tuple(lines),
    )


def forget(connection: sa.Connection, before: dt.datetime) -> None:
    """Removes the mutes whose end was told before a time."""
    old = sa.select(mutes.c.id).where(mutes.c.summarized_at < before)
    connection.execute(sa.delete(muted_findings).where(muted_findings.c.mute.in_(old)))
    connection.execute(sa.delete(mutes).where(mutes.c.summarized_at < before))


def _mute_of_outcome(known: Sequence[Mute], outcome: "ExecutionOutcome") -> Mute | None:
    failure = outcome.failure
    if not outcome.failed or outcome.muted_by is not None or failure is None:
        return None
    subject = MuteSubject(outcome.owner, failure.job_name, failure.location, failure.asset_keys)
    return mute_of(known, outcome.at, subject)


def _drafts(connection: sa.Connection, mute: Mute, policy: Policy) -> Sequence[Draft]:
    drafts = []
    for kept in swallowed(connection, mute):
        key = f"mute/{mute.id}/{kept.owner or 'unowned'}"
        channel = route.channel_of(kept.owner, policy)
        drafts.append(Draft(key, key, Operation.POST, channel, notice_of(mute, kept)))
    return drafts


def _subject(job_name: str, series: str) -> str:
    return series.rpartition(f"/{ASSET_JOB}/")[2].partition(":")[2] or series if job_name == ASSET_JOB else job_name


def _times(number: int) -> str:
    return "1 failure" if number == 1 else f"{number:,} failures"
