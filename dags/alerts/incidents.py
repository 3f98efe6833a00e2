"""The rows of outcomes and tables.incidents: what ended how, and what has been told of it.

Belongs here: the tables and the queries on them. Not here: what they mean (`decide.py`), and what waits to be sent
(`outbox.py`).
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dags.alerts import tables
from dags.alerts.tables import incident_series, outcomes
from dags.alerts.values import Cause, ExecutionOutcome, Failure, Incident, IncidentKind, Streak

# Databases bound the number of values in a statement.
ROWS_IN_A_STATEMENT = 500

Value = TypeVar("Value")


THREAD_FIELDS = tuple(field.name for field in dataclasses.fields(Incident))


def insert_new(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Inserts the rows whose key is not there yet, and says how many they were."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    return sum(
        connection.execute(insert(table).values(list(chunk)).on_conflict_do_nothing()).rowcount
        for chunk in chunks(rows, ROWS_IN_A_STATEMENT)
    )


def chunks(values: Sequence[Value], size: int) -> Iterable[Sequence[Value]]:
    """The values in parts of at most that size."""
    return (values[start : start + size] for start in range(0, len(values), size))


def add_outcomes(connection: sa.Connection, found: Sequence[ExecutionOutcome], job_names: Mapping[str, str]) -> None:
    """Keeps outcomes that are not kept yet. `job_names` are by run id."""
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
                "failure": None if one.failure is None else failure_to_json(one.failure),
                "muted_by": one.muted_by,
                "incident": one.incident,
                # What is told already waits for no verdict.
                "is_open": one.incident is None,
                "disposition": _fate(one),
            }
            for one in found
        ],
    )


def jobs_that_fail(connection: sa.Connection) -> set[str]:
    """The names of the jobs with a streak that no success has ended."""
    query = sa.select(outcomes.c.job_name).where(outcomes.c.is_open, outcomes.c.failed).distinct()
    return set(connection.execute(query).scalars())


def series_that_fail(connection: sa.Connection, series: Collection[str]) -> set[str]:
    """Those of the series that have a streak that no success has ended."""
    found: set[str] = set()
    for chunk in chunks(sorted(set(series)), ROWS_IN_A_STATEMENT):
        query = sa.select(outcomes.c.series).where(
            outcomes.c.is_open, outcomes.c.failed, outcomes.c.series.in_(list(chunk))
        )
        found |= set(connection.execute(query.distinct()).scalars())
    return found


def history(
    connection: sa.Connection, new: Sequence[ExecutionOutcome], late: dt.timedelta
) -> Mapping[str, list[ExecutionOutcome]]:
    """What is to be judged with new outcomes, which are kept already, by series: the streaks that are open.

    Where an outcome came after a later one had ended its streak, all that ended in the time `late` before it.
    """
    first: dict[str, dt.datetime] = {}
    for outcome in new:
        first[outcome.series] = min(outcome.at, first.get(outcome.series, outcome.at))
    found: dict[str, list[ExecutionOutcome]] = {}
    for chunk in chunks(sorted(first), ROWS_IN_A_STATEMENT):
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


def keep_streak(connection: sa.Connection, series: str, streak: Streak, threshold: int) -> None:
    """Writes down what became of the failures of a streak."""
    fate = f"below the threshold: {streak.executions} of {threshold}"
    if streak.incident is not None:
        fate = f"notified in {streak.incident}"
    changed = [
        one
        for one in streak.failures
        if streak.incident is None or streak.resolved_at is not None or one.incident is None
    ]
    for chunk in chunks(changed, ROWS_IN_A_STATEMENT):
        connection.execute(
            sa.update(outcomes)
            .where(
                outcomes.c.series == series,
                outcomes.c.failed,
                outcomes.c.owner == (chunk[0].owner or ""),
                outcomes.c.run_id.in_([one.run_id for one in chunk]),
            )
            .values(incident=streak.incident, disposition=fate, is_open=streak.resolved_at is None)
        )


def close_quiet(connection: sa.Connection, series: Collection[str]) -> None:
    """Closes what no streak waits for once it is judged: successes and muted failures."""
    for chunk in chunks(sorted(series), ROWS_IN_A_STATEMENT):
        connection.execute(
            sa.update(outcomes)
            .where(
                outcomes.c.series.in_(list(chunk)),
                outcomes.c.is_open,
                sa.or_(sa.not_(outcomes.c.failed), outcomes.c.muted_by.is_not(None)),
            )
            .values(is_open=False)
        )


def keep_incident(connection: sa.Connection, thread: str, series: str, ended_at: dt.datetime | None) -> None:
    """Says that a thread tells of a series, whose streak has ended or not."""
    insert_new(connection, incident_series, [{"incident": thread, "series": series, "resolved_at": ended_at}])
    connection.execute(
        sa.update(incident_series)
        .where(incident_series.c.incident == thread, incident_series.c.series == series)
        .values(resolved_at=ended_at)
    )


def ended_at(connection: sa.Connection, thread: str) -> dt.datetime | None:
    """When the last series of a thread recovered, None while one has not."""
    times = list(
        connection.execute(
            sa.select(incident_series.c.resolved_at).where(incident_series.c.incident == thread)
        ).scalars()
    )
    return None if not times or None in times else max(time for time in times if time is not None)


def failures_of(connection: sa.Connection, thread: str) -> Sequence[ExecutionOutcome]:
    """All failures that a thread tells of, in order."""
    query = sa.select(outcomes).where(outcomes.c.incident == thread, outcomes.c.failed)
    return sorted((_outcome(row) for row in connection.execute(query)), key=lambda one: one.order)


def counts(connection: sa.Connection, thread: str) -> tuple[int, dt.datetime | None]:
    """How many executions of a thread failed, and when the last did."""
    query = sa.select(sa.func.count(outcomes.c.execution.distinct()), sa.func.max(outcomes.c.at))
    row = connection.execute(query.where(outcomes.c.incident == thread, outcomes.c.failed)).one()
    return row[0], row[1]


def get_thread(connection: sa.Connection, key: str) -> Incident | None:
    """A thread by its key."""
    row = connection.execute(sa.select(tables.incidents).where(tables.incidents.c.key == key)).one_or_none()
    return None if row is None else _thread(row)


def find_threads(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> Sequence[Incident]:
    """The tables.incidents that a condition on `tables.incidents` holds for, the oldest first."""
    query = sa.select(tables.incidents).where(condition).order_by(tables.incidents.c.opened_at, tables.incidents.c.key)
    return [_thread(row) for row in connection.execute(query)]


def add_thread(
    connection: sa.Connection, thread: Incident, title: str = "", subject: str = "", facts: str | None = None
) -> None:
    """Keeps a new thread. `subject` is the id of its backfill or the key of its finding."""
    connection.execute(
        sa.insert(tables.incidents).values(**_thread_values(thread), title=title, subject=subject, facts=facts)
    )


def keep_thread(connection: sa.Connection, thread: Incident) -> None:
    """Writes down how far a thread is."""
    connection.execute(
        sa.update(tables.incidents).where(tables.incidents.c.key == thread.key).values(**_thread_values(thread))
    )


def failure_to_json(failure: Failure) -> str:
    """A failure as it is kept."""
    return json.dumps(dataclasses.asdict(failure) | {"ended_at": failure.ended_at.isoformat()})


def failure_from_json(text: str) -> Failure:
    """A failure as it was kept."""
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


def _fate(outcome: ExecutionOutcome) -> str | None:
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
        failure=None if row.failure is None else failure_from_json(row.failure),
        muted_by=row.muted_by,
        incident=row.incident,
    )


def _thread(row: Any) -> Incident:
    values = {name: getattr(row, name) for name in THREAD_FIELDS}
    return Incident(**values | {"kind": IncidentKind(row.kind)})


def _thread_values(thread: Incident) -> Mapping[str, Any]:
    return {name: getattr(thread, name) for name in THREAD_FIELDS} | {"kind": thread.kind.value}
