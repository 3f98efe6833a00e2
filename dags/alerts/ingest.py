"""Events of ended runs and asset checks into attempts: each once, in the transaction that moves the position."""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import sqlalchemy as sa

from dags.alerts.queries import attempts
from dags.alerts.queries.statements import chunks
from dags.alerts.steps import check_name, shortened
from dags.alerts.store import reading, transaction
from dags.alerts.values import AttemptState, AttemptStatus
from dags.common.event_log.private import (
    EventHead,
    UndecodableEventError,
    decode_event,
    event_texts,
    last_event_id_before,
)
from dags.common.event_log.reading import OVERLAP, Position, overlap_start, read_chunks
from dags.common.event_log.run_records import ended_at, read_records, run_id_pages

# The first tick of all, and each sweep, look back this far.
SWEEP_LOOKBACK = dt.timedelta(hours=48)
# A younger failure may still be read in the ordinary way, and is no rescue.
SWEEP_MARGIN = dt.timedelta(minutes=2)
MAX_DETAIL_CHARACTERS = 2000

STATUS_OF_EVENT: Mapping[dg.DagsterEventType, AttemptStatus] = {
    dg.DagsterEventType.RUN_FAILURE: AttemptStatus.FAILED,
    dg.DagsterEventType.RUN_SUCCESS: AttemptStatus.SUCCEEDED,
    dg.DagsterEventType.RUN_CANCELED: AttemptStatus.CANCELED,
}
EVENT_TYPES = (*STATUS_OF_EVENT, dg.DagsterEventType.ASSET_CHECK_EVALUATION)


@dataclass(frozen=True)
class Ingested:
    """What a tick read. Every event before `known_until` is in the store; `undecodable` are event ids."""

    events: int
    known_until: dt.datetime
    undecodable: Sequence[int] = ()


def ingest(
    instance: dg.DagsterInstance,
    store: sa.Engine,
    clock: Callable[[], dt.datetime],
    redact: Callable[[str], str],
    until: dt.datetime,
) -> Ingested:
    """Store the new events of the event log, until none are left or the time `until` has come."""
    started = clock()
    position, after = _start(instance, store, started)
    ingested = Ingested(0, started)
    for chunk in read_chunks(instance, EVENT_TYPES, after, clock, until):
        with reading(store) as connection:
            unknown = attempts.unknown(connection, chunk.heads)
        rows, undecodable = _rows(instance, unknown, chunk.read_at, redact)
        if chunk.heads:
            position = max(position, chunk.heads[-1].event_id)
            with transaction(store) as connection:
                attempts.add(connection, rows)
                attempts.move_position(connection, Position(chunk.read_at, position))
        ingested = Ingested(ingested.events + len(unknown), chunk.known_until, [*ingested.undecodable, *undecodable])
    return ingested


def sweep(instance: dg.DagsterInstance, store: sa.Engine, now: dt.datetime) -> Sequence[str]:
    """Store the failed runs whose event was never seen, as if it had been, and return their ids."""
    filters = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE],
        updated_after=now - SWEEP_LOOKBACK,
        updated_before=now - SWEEP_MARGIN,
    )
    missing: list[str] = []
    for page in run_id_pages(instance, filters):
        with reading(store) as connection:
            missing += attempts.without_failure(connection, page)
    rescued: list[str] = []
    for chunk in chunks(missing):
        records, unreadable = read_records(instance, chunk)
        rows = [
            _row(run_id, AttemptStatus.FAILED, 0, ended_at(record), now, record.dagster_run.job_name, rescued=True)
            for run_id, record in records.items()
        ] + [_row(run_id, AttemptStatus.FAILED, 0, now, now, "", rescued=True) for run_id in unreadable]
        with transaction(store) as connection:
            attempts.add(connection, rows)
        rescued += [row["run_id"] for row in rows]
    return rescued


def _start(instance: dg.DagsterInstance, store: sa.Engine, now: dt.datetime) -> tuple[int, int]:
    """Return the position, and the event id some time before it after which to read."""
    with reading(store) as connection:
        positions = attempts.read_positions(connection)
    if not positions:
        first = last_event_id_before(instance, EVENT_TYPES, now - SWEEP_LOOKBACK)
        with transaction(store) as connection:
            attempts.move_position(connection, Position(now - OVERLAP, first))
        return first, first
    return positions[-1].event_id, overlap_start(positions, now)


def _rows(
    instance: dg.DagsterInstance, heads: Sequence[EventHead], now: dt.datetime, redact: Callable[[str], str]
) -> tuple[list[Mapping[str, Any]], list[int]]:
    """Return the attempts of events, and the ids of events that cannot be decoded."""
    texts = event_texts(instance, [head.event_id for head in heads])
    rows: list[Mapping[str, Any]] = []
    undecodable: list[int] = []
    for head in heads:
        try:
            rows += _rows_of(head, texts.get(head.event_id), now, redact)
        except UndecodableEventError:
            undecodable.append(head.event_id)
            # For a run the head says enough. For a check the result is lost, so it counts as failed.
            is_check = head.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION.value
            status = AttemptStatus.FAILED if is_check else STATUS_OF_EVENT[dg.DagsterEventType(head.event_type)]
            subject = f"undecodable event {head.event_id}" if is_check else ""
            rows.append(_row(head.run_id, status, head.event_id, head.at, now, "", subject=subject))
    return rows, undecodable


def _rows_of(
    head: EventHead, text: str | None, now: dt.datetime, redact: Callable[[str], str]
) -> list[Mapping[str, Any]]:
    if text is None:
        # Deleted with its run between two queries.
        return []
    entry = decode_event(text)
    event = entry.dagster_event
    if event is None:
        raise UndecodableEventError("The text has no event of Dagster in it.")
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
    status: AttemptStatus,
    event_id: int,
    at: dt.datetime,
    now: dt.datetime,
    job_name: str,
    *,
    subject: str = "",
    detail: str | None = None,
    rescued: bool = False,
) -> Mapping[str, Any]:
    # An event of a machine whose clock is ahead is not to wait until that time.
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
