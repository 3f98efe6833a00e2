"""The queries on attempts and on the position in the event log."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from dags.alerts.queries.statements import chunks, insert_new
from dags.alerts.tables import IS_UNDECIDED, attempts, positions
from dags.alerts.values import Attempt, AttemptState, AttemptStatus, ClassifiedAttempt
from dags.common.event_log.private import EventHead
from dags.common.event_log.reading import OVERLAP, Position

MAX_JOBS_PER_STATEMENT = 100

IS_FAILED_RUN = sa.and_(attempts.c.subject == "", attempts.c.status == AttemptStatus.FAILED)


def add(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Store attempts that are not stored yet."""
    insert_new(connection, attempts, rows)


def get(connection: sa.Connection, run_id: str, status: AttemptStatus) -> Attempt | None:
    """Return the attempt of a run, not of a check in it, that ended with a status."""
    query = sa.select(attempts).where(
        attempts.c.run_id == run_id, attempts.c.subject == "", attempts.c.status == status
    )
    return next(iter(_select(connection, query)), None)


def unknown(connection: sa.Connection, heads: Sequence[EventHead]) -> Sequence[EventHead]:
    """Return the events that no stored attempt came from."""
    known: set[int] = set()
    for chunk in chunks(heads):
        query = sa.select(attempts.c.event_id).where(
            attempts.c.run_id.in_({head.run_id for head in chunk}),
            attempts.c.event_id.in_([head.event_id for head in chunk]),
        )
        known |= set(connection.execute(query).scalars())
    return [head for head in heads if head.event_id not in known]


def without_failure(connection: sa.Connection, run_ids: Sequence[str]) -> Sequence[str]:
    """Return the runs of which no failed attempt is stored."""
    query = sa.select(attempts.c.run_id).where(attempts.c.run_id.in_(list(run_ids)), IS_FAILED_RUN)
    known = set(connection.execute(query).scalars())
    return [run_id for run_id in run_ids if run_id not in known]


def failed_runs(connection: sa.Connection, run_ids: Sequence[str]) -> dict[str, Attempt]:
    """Return the failed attempts of runs, by run id."""
    found: dict[str, Attempt] = {}
    for chunk in chunks(run_ids):
        query = sa.select(attempts).where(attempts.c.run_id.in_(list(chunk)), IS_FAILED_RUN)
        found |= {attempt.run_id: attempt for attempt in _select(connection, query)}
    return found


def due(connection: sa.Connection, horizon: dt.datetime, limit: int) -> Sequence[Attempt]:
    """Return the undecided attempts that are due by the horizon, in order."""
    query = (
        sa.select(attempts)
        .where(IS_UNDECIDED, attempts.c.due_at <= horizon)
        .order_by(attempts.c.due_at, attempts.c.event_id, attempts.c.run_id)
        .limit(limit)
    )
    return _select(connection, query)


def jobs_with_held_failures(connection: sa.Connection) -> set[str]:
    """Return the names of the jobs with a failure that waits for a retry."""
    query = sa.select(attempts.c.job_name).where(attempts.c.state == AttemptState.HELD).distinct()
    return set(connection.execute(query).scalars())


def skipped_after(connection: sa.Connection, time_of_job: Mapping[str, dt.datetime]) -> list[Attempt]:
    """Return the skipped successes of each job since a time of that job."""
    found: list[Attempt] = []
    for chunk in chunks(sorted(time_of_job.items()), MAX_JOBS_PER_STATEMENT):
        since = (sa.and_(attempts.c.job_name == name, attempts.c.at >= at) for name, at in chunk)
        query = sa.select(attempts).where(attempts.c.state == AttemptState.SKIPPED, sa.or_(*since))
        found += _select(connection, query)
    return found


def skip(connection: sa.Connection, successes: Sequence[Attempt]) -> None:
    """Mark new successes that no open failure needs as skipped."""
    for chunk in chunks(successes):
        connection.execute(
            sa.update(attempts)
            .where(
                attempts.c.run_id.in_([attempt.run_id for attempt in chunk]),
                attempts.c.status == AttemptStatus.SUCCEEDED,
                attempts.c.state == AttemptState.NEW,
            )
            .values(state=AttemptState.SKIPPED)
        )


def not_done(connection: sa.Connection, found: Sequence[ClassifiedAttempt]) -> Sequence[ClassifiedAttempt]:
    """Return the classified attempts that no other tick has finished meanwhile."""
    states: dict[tuple[str, str, str], str] = {}
    for chunk in chunks([one.attempt.run_id for one in found]):
        for row in connection.execute(sa.select(attempts).where(attempts.c.run_id.in_(list(chunk)))):
            states[row.run_id, row.subject, row.status] = row.state
    return [
        one
        for one in found
        if states.get((one.attempt.run_id, one.attempt.subject, one.attempt.status)) != AttemptState.DONE
    ]


def record(connection: sa.Connection, found: Sequence[ClassifiedAttempt], failing: Collection[str]) -> None:
    """Store what became of attempts. `failing` are the series in which a success matters."""
    rows = [
        {
            "the_run": one.attempt.run_id,
            "the_subject": one.attempt.subject,
            "the_status": one.attempt.status,
            "state": _state_of(one, failing),
            "due_at": one.held_until or one.attempt.at,
            "series": one.series,
            "execution": one.execution,
            "backfill_id": one.backfill_id,
            "disposition": one.disposition,
        }
        for one in found
    ]
    if rows:
        connection.execute(
            sa.update(attempts).where(
                attempts.c.run_id == sa.bindparam("the_run"),
                attempts.c.subject == sa.bindparam("the_subject"),
                attempts.c.status == sa.bindparam("the_status"),
            ),
            rows,
        )
    for one in found:
        if one.retried is not None:
            connection.execute(
                sa.update(attempts)
                .where(attempts.c.run_id == one.retried.run_id, IS_FAILED_RUN, attempts.c.state == AttemptState.HELD)
                .values(state=AttemptState.DONE, disposition=f"retried in {one.attempt.run_id}")
            )


def read_positions(connection: sa.Connection) -> Sequence[Position]:
    """Return the stored positions, the oldest first."""
    rows = connection.execute(sa.select(positions).order_by(positions.c.at))
    return [Position(row.at, row.event_id) for row in rows]


def move_position(connection: sa.Connection, position: Position) -> None:
    """Store a position, and delete those at which no overlap will start any more."""
    insert_new(connection, positions, [vars(position)])
    connection.execute(sa.update(positions).where(positions.c.at == position.at).values(event_id=position.event_id))
    is_old = positions.c.at <= position.at - OVERLAP
    start = connection.execute(sa.select(sa.func.max(positions.c.at)).where(is_old)).scalar()
    if start is not None:
        connection.execute(sa.delete(positions).where(positions.c.at < start))


def _state_of(one: ClassifiedAttempt, failing: Collection[str]) -> AttemptState:
    if one.held_until is not None:
        return AttemptState.HELD
    # A success that resolves nothing is read again when an earlier failure arrives late.
    is_needed = all(outcome.failed or outcome.series in failing for outcome in one.outcomes)
    is_skipped = one.attempt.status is AttemptStatus.SUCCEEDED and not is_needed
    return AttemptState.SKIPPED if is_skipped else AttemptState.DONE


def _select(connection: sa.Connection, query: sa.Select[Any]) -> list[Attempt]:
    return [
        Attempt(
            run_id=row.run_id,
            subject=row.subject,
            status=AttemptStatus(row.status),
            event_id=row.event_id,
            at=row.at,
            job_name=row.job_name,
            state=AttemptState(row.state),
            detail=row.detail,
            series=row.series,
            execution=row.execution,
            backfill_id=row.backfill_id,
        )
        for row in connection.execute(query)
    ]
