"""From what events said to outcomes: the series and execution of an ended run, whether a retry follows, whose it is.

Belongs here: reading the runs behind events that have settled. Not here: reading events (`ingest.py`), and what follows
from outcomes (`decide.py`). Nothing is written here: the engine writes what was found in one transaction.
"""

import datetime as dt
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
import sqlalchemy as sa

from dags.alerts import ingest, route
from dags.alerts.decide import RETRY_PROMISE
from dags.alerts.steps import FailedPart, Plans, RunResult, only_owner, read_run
from dags.alerts.values import Attempt, AttemptStatus, Cause, ClassifiedAttempt, ExecutionOutcome, Failure, Policy
from dags.common.tags import (
    ASSET_JOB,
    AUTOMATION_TAGS,
    BACKFILL_TAG,
    PARTITION_TAG,
    RETRY_NUMBER_TAG,
    RETRY_RUN_TAG,
    WILL_RETRY_TAG,
)

logger = logging.getLogger(__name__)

# Logs read in a tick of the runs of one series whose owner the plan tells: a few of them show what is wrong.
LOGS_OF_A_SERIES = 8
LOGS_OF_A_BACKFILL = 40


@dataclass
class Reader:
    """Reads runs for one tick: each plan once, and few logs of the same series."""

    instance: dg.DagsterInstance
    policy: Policy
    redact: Callable[[str], str]
    plans: Plans = field(init=False)
    logs_of_series: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.plans = Plans(self.instance)


def settle(
    reader: Reader,
    attempt: Attempt,
    parents: Mapping[str, Attempt],
    records: Mapping[str, dg.RunRecord],
    horizon: dt.datetime,
) -> ClassifiedAttempt:
    """What became of an attempt, by what is known of the time before the horizon.

    `records` are the run records that could be read: that of the attempt, and of the retry that its tags name.
    `parents` are failed attempts by run id; it may repeat one of them. Raises only what the databases raise: a run that
    is stranger than this code knows is told of with what its event said.
    """
    try:
        return _settled(reader, attempt, parents, records, horizon)
    except (sa.exc.SQLAlchemyError, OSError):
        raise
    except Exception:
        logger.exception("Run %s cannot be judged, and is told of all the same.", attempt.run_id)
        return _unreadable(attempt)


def _settled(
    reader: Reader,
    attempt: Attempt,
    parents: Mapping[str, Attempt],
    records: Mapping[str, dg.RunRecord],
    horizon: dt.datetime,
) -> ClassifiedAttempt:
    record = records.get(attempt.run_id)
    if record is None:
        return _unreadable(attempt)
    run = record.dagster_run
    if attempt.subject:
        return _check(reader, attempt, run)
    parent = parents.get(run.parent_run_id or "")
    series, backfill_id = series_of(run)
    settled = ClassifiedAttempt(attempt, series=series, execution=run.run_id, backfill_id=backfill_id)
    if parent is not None and parent.series is not None:
        # A re-execution, by hand or automatic, mends or prolongs what it repeats.
        settled = replace(settled, series=parent.series, backfill_id=parent.backfill_id)
        if RETRY_NUMBER_TAG in run.tags and _created_at(record) <= parent.at + RETRY_PROMISE:
            settled = replace(settled, execution=parent.execution or parent.run_id, retried=parent)
    if attempt.status == AttemptStatus.CANCELED:
        return replace(settled, disposition="canceled")
    if attempt.status == AttemptStatus.SUCCEEDED:
        return replace(settled, outcomes=_successes(settled, run, reader))
    if run.tags.get(WILL_RETRY_TAG, "").lower() != "true":
        return replace(settled, outcomes=_failures(reader, settled, run, attempt.at))
    return _promised(reader, settled, run, records, horizon)


def _promised(
    reader: Reader,
    settled: ClassifiedAttempt,
    run: dg.DagsterRun,
    records: Mapping[str, dg.RunRecord],
    horizon: dt.datetime,
) -> ClassifiedAttempt:
    """A failed attempt of which Dagster says that it will be retried: nothing yet, unless the promise is broken."""
    promise = settled.attempt.at + RETRY_PROMISE
    retry = records.get(run.tags.get(RETRY_RUN_TAG, ""))
    if retry is not None and _created_at(retry) <= promise:
        if retry.dagster_run.is_finished and ingest.ended_at(retry) < horizon - ingest.SWEEP_MARGIN:
            return replace(settled, disposition=f"retried in {retry.dagster_run.run_id}")
        # Its end decides, and is awaited as long as there is such a run.
        promise = max(promise, horizon + RETRY_PROMISE)
    if promise > horizon:
        return replace(settled, held_until=promise, disposition=f"held for a retry until {promise:%Y-%m-%d %H:%M:%S}")
    reason = "Dagster promised a retry, and it did not start within 10 minutes."
    return replace(settled, outcomes=_failures(reader, settled, run, promise, reason))


def _created_at(record: dg.RunRecord) -> dt.datetime:
    return record.create_timestamp.replace(tzinfo=dt.UTC)


def series_of(run: dg.DagsterRun) -> tuple[str, str | None]:
    """What consecutive runs belong to: location, job and how they are started; or a backfill, with its id."""
    backfill_id = run.tags.get(BACKFILL_TAG)
    if backfill_id is not None:
        return f"backfill:{backfill_id}", backfill_id
    kind = "automated" if any(tag in run.tags for tag in AUTOMATION_TAGS) else "manual"
    return f"{route.location_of(run) or '-'}/{run.job_name}/{kind}", None


def asset_series(series: str, asset_key: str) -> str:
    """The series of one asset among those of a job that stands for all assets."""
    return f"{series}:{asset_key}"


def _is_by_asset(run: dg.DagsterRun, settled: ClassifiedAttempt) -> bool:
    return run.job_name == ASSET_JOB and settled.backfill_id is None


def _successes(settled: ClassifiedAttempt, run: dg.DagsterRun, reader: Reader) -> Sequence[ExecutionOutcome]:
    if settled.backfill_id is not None:
        # A backfill does not recover: it ends.
        return []
    series = settled.series or ""
    if _is_by_asset(run, settled):
        chosen = [key.to_user_string() for key in run.asset_selection or ()]
        keys = chosen or [key for step in reader.plans.of(run).values() for key in step.asset_keys]
        return [_success(settled, asset_series(series, key)) for key in keys]
    return [_success(settled, series)]


def _success(settled: ClassifiedAttempt, series: str, at: dt.datetime | None = None) -> ExecutionOutcome:
    attempt = settled.attempt
    return ExecutionOutcome(
        run_id=attempt.run_id,
        execution=settled.execution or attempt.run_id,
        series=series,
        failed=False,
        at=at or attempt.at,
        event_id=attempt.event_id,
    )


def _failures(
    reader: Reader, settled: ClassifiedAttempt, run: dg.DagsterRun, at: dt.datetime, reason: str | None = None
) -> Sequence[ExecutionOutcome]:
    series = settled.series or ""
    result = _result(reader, settled, run)
    found: list[ExecutionOutcome] = []
    for part in result.parts:
        owner = route.get_job_owner_for_alert(run, part.owner, reader.policy.team_of_location)
        failure = _failure(run, settled.attempt, part, backfill_id=settled.backfill_id, reason=reason or result.note)
        by_asset = _is_by_asset(run, settled) and part.asset_keys
        found += [
            ExecutionOutcome(
                run_id=run.run_id,
                execution=settled.execution or run.run_id,
                series=one,
                failed=True,
                at=at,
                event_id=settled.attempt.event_id,
                owner=owner,
                failure=failure,
                muted_by=f"the tag {route.MUTE_TAG}" if route.is_muted(run.tags) else None,
            )
            for one in ([asset_series(series, key) for key in part.asset_keys] if by_asset else [series])
        ]
    if _is_by_asset(run, settled):
        # An asset that did succeed is mended, whatever else failed in the run.
        found += [_success(settled, asset_series(series, key), at) for key in result.mended]
    return merged(found)


def merged(outcomes: Sequence[ExecutionOutcome]) -> Sequence[ExecutionOutcome]:
    """The outcomes with those of the same series and owner made one: parts by nobody fall to the owner of the run."""
    by_key: dict[Any, ExecutionOutcome] = {}
    for one in outcomes:
        other = by_key.get(one.key)
        if other is None or other.failure is None or one.failure is None:
            by_key[one.key] = one
        else:
            both = replace(
                other.failure,
                step_keys=tuple(dict.fromkeys([*other.failure.step_keys, *one.failure.step_keys])),
                asset_keys=tuple(dict.fromkeys([*other.failure.asset_keys, *one.failure.asset_keys])),
                cause=other.failure.cause or one.failure.cause,
            )
            by_key[one.key] = replace(other, failure=both)
    return list(by_key.values())


def _result(reader: Reader, settled: ClassifiedAttempt, run: dg.DagsterRun) -> RunResult:
    """What failed; from the plan alone where that tells the owner and enough logs of the series have been read."""
    plan = reader.plans.of(run)
    series = settled.series or ""
    known = only_owner(plan)
    most = LOGS_OF_A_SERIES if settled.backfill_id is None else LOGS_OF_A_BACKFILL
    if known is not None and not _is_by_asset(run, settled) and reader.logs_of_series[series] >= most:
        return RunResult(parts=[FailedPart(known[0])])
    reader.logs_of_series[series] += 1
    return read_run(reader.instance, run, plan, reader.redact)


def _failure(
    run: dg.DagsterRun, attempt: Attempt, part: FailedPart, *, backfill_id: str | None, reason: str | None
) -> Failure:
    return Failure(
        run_id=run.run_id,
        ended_at=attempt.at,
        location=route.location_of(run),
        job_name=run.job_name,
        step_keys=part.step_keys,
        asset_keys=part.asset_keys,
        partition=run.tags.get(PARTITION_TAG),
        backfill_id=backfill_id,
        attempt=_attempt_number(run),
        cause=part.cause,
        reason=reason,
    )


def _attempt_number(run: dg.DagsterRun) -> int:
    number = run.tags.get(RETRY_NUMBER_TAG, "0")
    return int(number) + 1 if number.isdigit() else 1


def _check(reader: Reader, attempt: Attempt, run: dg.DagsterRun) -> ClassifiedAttempt:
    """An asset check of severity ERROR that failed, or one that passed."""
    series = f"check:{attempt.subject}"
    settled = ClassifiedAttempt(attempt, series=series, execution=run.run_id)
    if attempt.status == AttemptStatus.SUCCEEDED:
        return replace(settled, outcomes=[_success(settled, series)])
    detail = json.loads(attempt.detail or "{}")
    plan = reader.plans.of(run)
    asset_key = detail.get("asset_key", "")
    # The asset's owner; a check that runs without its asset tells by its own tag.
    owners = [step.owner for step in plan.values() if asset_key in step.asset_keys]
    owners += [step.owner for step in plan.values() if attempt.subject in step.check_names]
    owner = route.get_job_owner_for_alert(
        run, next((owner for owner in owners if owner), None), reader.policy.team_of_location
    )
    part = FailedPart(
        owner=owner,
        step_keys=tuple(key for key in [detail.get("step_key")] if key),
        asset_keys=(asset_key,) if asset_key else (),
        cause=Cause("Asset check failed", f"{attempt.subject}\n{detail.get('description', '')}".strip()),
    )
    failure = _failure(run, attempt, part, backfill_id=run.tags.get(BACKFILL_TAG), reason=None)
    if detail.get("partition"):
        failure = replace(failure, partition=detail["partition"])
    outcome = ExecutionOutcome(
        run_id=run.run_id,
        execution=run.run_id,
        series=series,
        failed=True,
        at=attempt.at,
        event_id=attempt.event_id,
        owner=owner,
        failure=failure,
        muted_by=f"the tag {route.MUTE_TAG}" if route.is_muted(run.tags) else None,
    )
    return replace(settled, outcomes=[outcome])


def _unreadable(attempt: Attempt) -> ClassifiedAttempt:
    """A run that was deleted, or whose record cannot be read: it is told of with what its event said."""
    series = f"-/{attempt.job_name or 'unknown job'}/unreadable"
    settled = ClassifiedAttempt(attempt, series=series, execution=attempt.run_id)
    if attempt.status != AttemptStatus.FAILED:
        return replace(settled, disposition="its run cannot be read")
    failure = Failure(
        run_id=attempt.run_id,
        ended_at=attempt.at,
        location=None,
        job_name=attempt.job_name or "unknown job",
        reason="Its run was deleted, or this version of Dagster cannot read it.",
    )
    outcome = ExecutionOutcome(
        run_id=attempt.run_id,
        execution=attempt.run_id,
        series=series,
        failed=True,
        at=attempt.at,
        event_id=attempt.event_id,
        failure=failure,
    )
    return replace(settled, outcomes=[outcome])
