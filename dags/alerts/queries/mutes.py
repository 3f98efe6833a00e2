"""The queries on mutes and on the findings that they suppressed."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from dags.alerts.queries.statements import insert_new
from dags.alerts.tables import muted_findings, mutes
from dags.alerts.values import Finding, Mute, MuteKind


@dataclass(frozen=True)
class MutedFinding:
    """A finding that a mute suppressed."""

    owner: str | None
    title: str
    at: dt.datetime


def add(
    connection: sa.Connection, kind: MuteKind, pattern: str, reason: str, starts_at: dt.datetime, ends_at: dt.datetime
) -> Mute:
    """Store a new mute."""
    row = {"kind": kind.value, "pattern": pattern, "reason": reason, "created_at": starts_at, "ends_at": ends_at}
    mute_id = connection.execute(sa.insert(mutes).values(**row).returning(mutes.c.id)).scalar_one()
    return Mute(mute_id, kind, pattern, reason, starts_at, ends_at)


def without_summary(connection: sa.Connection) -> Sequence[Mute]:
    """Return the mutes whose summary has not been enqueued, in force or just ended, the oldest first."""
    return [
        Mute(row.id, MuteKind(row.kind), row.pattern, row.reason, row.created_at, row.ends_at)
        for row in connection.execute(sa.select(mutes).where(mutes.c.summarized_at.is_(None)).order_by(mutes.c.id))
    ]


def set_end(connection: sa.Connection, mute_id: int, ends_at: dt.datetime) -> None:
    """Store another end of a mute."""
    connection.execute(sa.update(mutes).where(mutes.c.id == mute_id).values(ends_at=ends_at))


def set_summarized(connection: sa.Connection, mute_id: int, now: dt.datetime) -> None:
    """Store that the summary of a mute was enqueued."""
    connection.execute(sa.update(mutes).where(mutes.c.id == mute_id).values(summarized_at=now))


def add_finding(connection: sa.Connection, mute: Mute, finding: Finding, now: dt.datetime) -> None:
    """Store that a mute suppressed a finding, once for each finding."""
    row = {"mute": mute.id, "finding": finding.key, "owner": finding.owner, "title": finding.title, "at": now}
    insert_new(connection, muted_findings, [row])


def findings_of(connection: sa.Connection, mute: Mute) -> Sequence[MutedFinding]:
    """Return the findings that a mute suppressed, the oldest first."""
    query = sa.select(muted_findings).where(muted_findings.c.mute == mute.id).order_by(muted_findings.c.at)
    return [MutedFinding(row.owner, row.title, row.at) for row in connection.execute(query)]


def count_findings(connection: sa.Connection, mute_id: int) -> int:
    """Return how many findings a mute has suppressed."""
    query = sa.select(sa.func.count()).where(muted_findings.c.mute == mute_id)
    return int(connection.execute(query).scalar_one())


def delete_summarized(connection: sa.Connection, before: dt.datetime) -> None:
    """Delete the mutes whose summary was enqueued before a time."""
    old = sa.select(mutes.c.id).where(mutes.c.summarized_at < before)
    connection.execute(sa.delete(muted_findings).where(muted_findings.c.mute.in_(old)))
    connection.execute(sa.delete(mutes).where(mutes.c.summarized_at < before))
