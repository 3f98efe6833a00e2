"""The queries on outcomes."""

import dataclasses
import datetime as dt
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from dags.alerts.queries.statements import chunks, insert_new
from dags.alerts.tables import outcomes
from dags.alerts.values import Cause, ExecutionOutcome, Failure, Streak


def add(connection: sa.Connection, found: Sequence[ExecutionOutcome], job_names: Mapping[str, str]) -> None:
    """Store outcomes that are not stored yet. `job_names` are by run id."""
    insert_new(
        connection,
        outcomes,
        [
            {
                "run_id": one.run_id,
                "failed": one.failed,
                "series": one.series,
                "owner": one.owner or "",
                "execution": one.execution,
                "job_name": job_names[one.run_id],
                "at": one.at,
                "event_id": one.event_id,
                "failure": None if one.failure is None else _failure_to_json(one.failure),
                "muted_by": one.muted_by,
                "incident": one.incident,
                # An outcome that has its incident already counts for no other.
                "is_open": one.incident is None,
                "disposition": _disposition(one),
            }
            for one in found
        ],
    )


def jobs_with_open_failures(connection: sa.Connection) -> set[str]:
    """Return the names of the jobs with failures that no success has ended."""
    query = sa.select(outcomes.c.job_name).where(outcomes.c.is_open, outcomes.c.failed).distinct()
    return set(connection.execute(query).scalars())


def series_with_open_failures(connection: sa.Connection, series: Collection[str]) -> set[str]:
    """Return those of the series with failures that no success has ended."""
    found: set[str] = set()
    for chunk in chunks(sorted(set(series))):
        query = sa.select(outcomes.c.series).where(
            outcomes.c.is_open, outcomes.c.failed, outcomes.c.series.in_(list(chunk))
        )
        found |= set(connection.execute(query.distinct()).scalars())
    return found


def history(
    connection: sa.Connection, new: Sequence[ExecutionOutcome], late: dt.timedelta
) -> Mapping[str, list[ExecutionOutcome]]:
    """Return by series what is to be decided with new outcomes, which are stored already: the open outcomes.

    Where an outcome arrived after a later one was decided, also all that were decided in the time `late` before it.
    """
    first: dict[str, dt.datetime] = {}
    for outcome in new:
        first[outcome.series] = min(outcome.at, first.get(outcome.series, outcome.at))
    found: dict[str, list[ExecutionOutcome]] = {}
    for chunk in chunks(sorted(first)):
        closed = sa.select(outcomes.c.series, sa.func.max(outcomes.c.at).label("at")).where(
            outcomes.c.series.in_(list(chunk)), sa.not_(outcomes.c.is_open)
        )
        latest = {row.series: row.at for row in connection.execute(closed.group_by(outcomes.c.series))}
        behind = [series for series, time in latest.items() if first[series] <= time]
        conditions = [sa.and_(outcomes.c.series.in_(list(chunk)), outcomes.c.is_open)]
        conditions += [sa.and_(outcomes.c.series == one, outcomes.c.at >= first[one] - late) for one in behind]
        for row in connection.execute(sa.select(outcomes).where(sa.or_(*conditions))):
            found.setdefault(row.series, []).append(_outcome(row))
    return found


def record_streak(connection: sa.Connection, series: str, streak: Streak, threshold: int) -> None:
    """Store what became of consecutive failures."""
    disposition = f"below the threshold: {streak.executions} of {threshold}"
    if streak.incident is not None:
        disposition = f"notified in {streak.incident}"
    changed = [
        one
        for one in streak.failures
        if streak.incident is None or streak.resolved_at is not None or one.incident is None
    ]
    for chunk in chunks(changed):
        connection.execute(
            sa.update(outcomes)
            .where(
                outcomes.c.series == series,
                outcomes.c.failed,
                outcomes.c.owner == (chunk[0].owner or ""),
                outcomes.c.run_id.in_([one.run_id for one in chunk]),
            )
            .values(incident=streak.incident, disposition=disposition, is_open=streak.resolved_at is None)
        )


def close_neutral(connection: sa.Connection, series: Collection[str]) -> None:
    """Close the decided successes and muted failures of series: later outcomes do not need them."""
    for chunk in chunks(sorted(series)):
        connection.execute(
            sa.update(outcomes)
            .where(
                outcomes.c.series.in_(list(chunk)),
                outcomes.c.is_open,
                sa.or_(sa.not_(outcomes.c.failed), outcomes.c.muted_by.is_not(None)),
            )
            .values(is_open=False)
        )


def failures_of(connection: sa.Connection, incident: str) -> Sequence[ExecutionOutcome]:
    """Return all failures that an incident reports, in order."""
    query = sa.select(outcomes).where(outcomes.c.incident == incident, outcomes.c.failed)
    return sorted((_outcome(row) for row in connection.execute(query)), key=lambda one: one.order)


def count_failures(connection: sa.Connection, incident: str) -> tuple[int, dt.datetime | None]:
    """Return how many executions of an incident failed, and when the last one did."""
    query = sa.select(sa.func.count(outcomes.c.execution.distinct()), sa.func.max(outcomes.c.at))
    row = connection.execute(query.where(outcomes.c.incident == incident, outcomes.c.failed)).one()
    return row[0], row[1]


def muted_by(connection: sa.Connection, mute: str) -> Sequence[tuple[ExecutionOutcome, str]]:
    """Return the failures that a mute suppressed, each with its job, the oldest first."""
    query = sa.select(outcomes).where(outcomes.c.muted_by == mute, outcomes.c.failed).order_by(outcomes.c.at)
    return [(_outcome(row), row.job_name) for row in connection.execute(query)]


def count_muted_by(connection: sa.Connection, mute: str) -> int:
    """Return how many failed executions a mute has suppressed."""
    query = sa.select(sa.func.count(outcomes.c.execution.distinct())).where(outcomes.c.muted_by == mute)
    return int(connection.execute(query).scalar_one())


def _failure_to_json(failure: Failure) -> str:
    return json.dumps(dataclasses.asdict(failure) | {"ended_at": failure.ended_at.isoformat()})


def _failure_from_json(text: str) -> Failure:
    values = json.loads(text)
    cause = values["cause"]
    return Failure(
        **values
        | {
            "ended_at": dt.datetime.fromisoformat(values["ended_at"]),
            "step_keys": tuple(values["step_keys"]),
            "asset_keys": tuple(values["asset_keys"]),
            "cause": None if cause is None else Cause(**cause),
        }
    )


def _disposition(outcome: ExecutionOutcome) -> str | None:
    if outcome.muted_by is not None:
        return f"muted by {outcome.muted_by}"
    return None if outcome.incident is None else f"notified in {outcome.incident}"


def _outcome(row: Any) -> ExecutionOutcome:
    return ExecutionOutcome(
        run_id=row.run_id,
        execution=row.execution,
        series=row.series,
        failed=row.failed,
        at=row.at,
        event_id=row.event_id,
        owner=row.owner or None,
        failure=None if row.failure is None else _failure_from_json(row.failure),
        muted_by=row.muted_by,
        incident=row.incident,
    )
