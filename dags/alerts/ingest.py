"""Dagster's events of ended runs and checks into the store: each once, in bulk, with the position in one transaction.

Belongs here: what was read, how far, and the sweep for what reading missed. Not here: what it means (`settle.py`).
"""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import sqlalchemy as sa

from dags.alerts import dagster_private
from dags.alerts.dagster_private import EventHead
from dags.alerts.incidents import ROWS_IN_A_STATEMENT, chunks, insert_new
from dags.alerts.steps import check_name, shortened
from dags.alerts.store import reading, transaction
from dags.alerts.tables import attempts, positions, stored_values
from dags.alerts.values import AttemptState, AttemptStatus

EVENTS_IN_A_CHUNK = 500
# Events can become visible after later ones: a transaction may take that long to commit.
OVERLAP = dt.timedelta(seconds=120)
# The first tick of all, and each sweep, look that far back.
HORIZON_OF_SWEEP = dt.timedelta(hours=48)
# What reading has had no chance to see yet is no rescue.
SWEEP_MARGIN = dt.timedelta(minutes=2)
RUNS_IN_A_SWEEP_PAGE = 1000
MAX_DETAIL_CHARACTERS = 2000

STATUS_OF_EVENT: Mapping[dg.DagsterEventType, str] = {
    dg.DagsterEventType.RUN_FAILURE: AttemptStatus.FAILED,
    dg.DagsterEventType.RUN_SUCCESS: AttemptStatus.SUCCEEDED,
    dg.DagsterEventType.RUN_CANCELED: AttemptStatus.CANCELED,
}
EVENT_TYPES = (*STATUS_OF_EVENT, dg.DagsterEventType.ASSET_CHECK_EVALUATION)


@dataclass(frozen=True)
class Ingested:
    """What reading brought. Every event before `known_until` is in the store; `set_aside` could not be decoded."""

    events: int
    known_until: dt.datetime
    set_aside: Sequence[int] = field(default=())


def ingest(
    instance: dg.DagsterInstance,
    store: sa.Engine,
    clock: Callable[[], dt.datetime],
    redact: Callable[[str], str],
    until: dt.datetime,
) -> Ingested:
    """Reads what is new in the event log, in chunks, and stops after the last event or at the time `until`."""
    started = clock()
    position, after = _start(instance, store, started)
    taken: list[int] = []
    set_aside: list[int] = []
    while True:
        now = clock()
        heads = dagster_private.event_heads(instance, EVENT_TYPES, after, EVENTS_IN_A_CHUNK)
        unknown = _unknown(store, heads)
        rows, undecodable = _rows(instance, unknown, now, redact)
        position = max(position, heads[-1].event_id if heads else 0)
        if heads or rows:
            with transaction(store) as connection:
                insert_new(connection, attempts, rows)
                _move(connection, now, position)
        taken += [head.event_id for head in unknown]
        set_aside += undecodable
        if len(heads) < EVENTS_IN_A_CHUNK:
            # Nothing was left when this chunk was asked for.
            return Ingested(len(taken), now, set_aside)
        after = heads[-1].event_id
        if clock() >= until:
            return Ingested(len(taken), min(now, *(head.at for head in heads)), set_aside)


def sweep(instance: dg.DagsterInstance, store: sa.Engine, now: dt.datetime) -> Sequence[str]:
    """Finds failed runs whose event was never seen, keeps them as if it had been, and says which they were."""
    filters = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE],
        updated_after=now - HORIZON_OF_SWEEP,
        updated_before=now - SWEEP_MARGIN,
    )
    missing: list[str] = []
    cursor = None
    while page := instance.get_run_ids(filters, cursor=cursor, limit=RUNS_IN_A_SWEEP_PAGE):
        with reading(store) as connection:
            known = _known_failures(connection, page)
        missing += [run_id for run_id in page if run_id not in known]
        cursor = page[-1]
    rescued: list[str] = []
    for chunk in chunks(missing, EVENTS_IN_A_CHUNK):
        records, unreadable = read_records(instance, chunk)
        rows = [
            _row(run_id, AttemptStatus.FAILED, 0, ended_at(record), now, record.dagster_run.job_name, rescued=True)
            for run_id, record in records.items()
        ] + [_row(run_id, AttemptStatus.FAILED, 0, now, now, "", rescued=True) for run_id in unreadable]
        with transaction(store) as connection:
            insert_new(connection, attempts, rows)
        rescued += [row["run_id"] for row in rows]
    return rescued


def read_records(
    instance: dg.DagsterInstance, run_ids: Sequence[str]
) -> tuple[Mapping[str, dg.RunRecord], Sequence[str]]:
    """The records of runs that there are, and the ids of runs whose record this version of Dagster cannot read."""
    if not run_ids:
        return {}, []
    try:
        records = instance.get_run_records(dg.RunsFilter(run_ids=list(run_ids)))
    except (sa.exc.SQLAlchemyError, OSError):
        # The database's fault and no run's: the tick fails, and the next one reads again.
        raise
    except Exception:  # noqa: BLE001
        # Whatever one strange record makes the decoder do, the other runs are read.
        if len(run_ids) == 1:
            return {}, run_ids
        half = len(run_ids) // 2
        first, second = read_records(instance, run_ids[:half]), read_records(instance, run_ids[half:])
        return {**first[0], **second[0]}, [*first[1], *second[1]]
    return {record.dagster_run.run_id: record for record in records}, []


def ended_at(record: dg.RunRecord) -> dt.datetime:
    """When a run ended, by its record."""
    if record.end_time is not None:
        return dt.datetime.fromtimestamp(record.end_time, dt.UTC)
    return record.update_timestamp.replace(tzinfo=dt.UTC)


def get_value(connection: sa.Connection, name: str) -> str | None:
    """A single value of the store."""
    return connection.execute(sa.select(stored_values.c.value).where(stored_values.c.name == name)).scalar()


def set_value(connection: sa.Connection, name: str, value: str) -> None:
    """Keeps a single value."""
    insert_new(connection, stored_values, [{"name": name, "value": value}])
    connection.execute(sa.update(stored_values).where(stored_values.c.name == name).values(value=value))


def _start(instance: dg.DagsterInstance, store: sa.Engine, now: dt.datetime) -> tuple[int, int]:
    """The position, and the id after which to read: some time before it."""
    with reading(store) as connection:
        rows = connection.execute(sa.select(positions).order_by(positions.c.at)).all()
    if not rows:
        first = dagster_private.last_event_id_before(instance, EVENT_TYPES, now - HORIZON_OF_SWEEP)
        with transaction(store) as connection:
            insert_new(connection, positions, [{"at": now - OVERLAP, "event_id": first}])
        return first, first
    old = [row.event_id for row in rows if row.at <= now - OVERLAP]
    return rows[-1].event_id, (old[-1] if old else rows[0].event_id)


def _move(connection: sa.Connection, now: dt.datetime, position: int) -> None:
    """Keeps the position with its time, and forgets those that no overlap will begin at."""
    insert_new(connection, positions, [{"at": now, "event_id": position}])
    connection.execute(sa.update(positions).where(positions.c.at == now).values(event_id=position))
    begin = connection.execute(sa.select(sa.func.max(positions.c.at)).where(positions.c.at <= now - OVERLAP)).scalar()
    if begin is not None:
        connection.execute(sa.delete(positions).where(positions.c.at < begin))


def _unknown(store: sa.Engine, heads: Sequence[EventHead]) -> Sequence[EventHead]:
    """The events that are not in the store yet."""
    found: set[int] = set()
    with reading(store) as connection:
        for chunk in chunks(heads, ROWS_IN_A_STATEMENT):
            query = sa.select(attempts.c.event_id).where(
                attempts.c.run_id.in_({head.run_id for head in chunk}),
                attempts.c.event_id.in_([head.event_id for head in chunk]),
            )
            found |= set(connection.execute(query).scalars())
    return [head for head in heads if head.event_id not in found]


def _rows(
    instance: dg.DagsterInstance, heads: Sequence[EventHead], now: dt.datetime, redact: Callable[[str], str]
) -> tuple[list[Mapping[str, Any]], list[int]]:
    texts = dagster_private.event_texts(instance, [head.event_id for head in heads]) if heads else {}
    rows: list[Mapping[str, Any]] = []
    undecodable: list[int] = []
    for head in heads:
        try:
            rows += _rows_of(head, texts.get(head.event_id), now, redact)
        except dagster_private.UndecodableEventError:
            undecodable.append(head.event_id)
            # What the head says is enough to tell of a run; what its event said of a check is lost, so it is told too.
            is_check = head.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION.value
            status = AttemptStatus.FAILED if is_check else STATUS_OF_EVENT[dg.DagsterEventType(head.event_type)]
            subject = f"undecodable event {head.event_id}" if is_check else ""
            rows.append(_row(head.run_id, status, head.event_id, head.at, now, "", subject=subject))
    return rows, undecodable


def _rows_of(
    head: EventHead, text: str | None, now: dt.datetime, redact: Callable[[str], str]
) -> list[Mapping[str, Any]]:
    if text is None:
        # Deleted between two queries, with its run.
        return []
    entry = dagster_private.decoded(text)
    event = entry.dagster_event
    if event is None:
        raise dagster_private.UndecodableEventError("It is no event of Dagster's.")
    job_name = entry.job_name or event.job_name
    if event.event_type is not dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        status = STATUS_OF_EVENT[event.event_type]
        return [_row(head.run_id, status, head.event_id, head.at, now, job_name)]
    check = event.asset_check_evaluation_data
    if not check.passed and check.severity is not dg.AssetCheckSeverity.ERROR:
        return []
    detail = {
        "asset_key": check.asset_key.to_user_string(),
        "description": shortened(redact(check.description or ""), MAX_DETAIL_CHARACTERS),
        "step_key": event.step_key,
        "partition": check.partition,
    }
    subject = check_name(check.asset_key, check.check_name)
    status = AttemptStatus.SUCCEEDED if check.passed else AttemptStatus.FAILED
    return [
        _row(head.run_id, status, head.event_id, head.at, now, job_name, subject=subject, detail=json.dumps(detail))
    ]


def _row(  # noqa: PLR0913
    run_id: str,
    status: str,
    event_id: int,
    at: dt.datetime,
    now: dt.datetime,
    job_name: str,
    *,
    subject: str = "",
    detail: str | None = None,
    rescued: bool = False,
) -> Mapping[str, Any]:
    # A machine whose clock is ahead must not delay what it tells.
    at = min(at, now)
    return {
        "run_id": run_id,
        "subject": subject,
        "status": status,
        "event_id": event_id,
        "at": at,
        "seen_at": now,
        "job_name": job_name,
        "detail": detail,
        "rescued": rescued,
        "state": AttemptState.NEW,
        "due_at": at,
    }


def _known_failures(connection: sa.Connection, run_ids: Sequence[str]) -> set[str]:
    query = sa.select(attempts.c.run_id).where(
        attempts.c.run_id.in_(list(run_ids)), attempts.c.subject == "", attempts.c.status == AttemptStatus.FAILED
    )
    return set(connection.execute(query).scalars())
