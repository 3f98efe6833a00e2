"""Attempts into outcomes: the series and execution of an ended run, whether a retry follows, and the owners.

It reads the run behind each attempt and writes nothing.
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

from dags.alerts import route
from dags.alerts.decide import RETRY_PROMISE
from dags.alerts.ingest import SWEEP_MARGIN
from dags.alerts.steps import FailedPart, Plans, RunResult, only_owner, read_run
from dags.alerts.values import Attempt, AttemptStatus, Cause, ClassifiedAttempt, ExecutionOutcome, Failure, Policy
from dags.common.event_log.run_records import created_at, ended_at
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

# Prefixes of the series of a backfill and of an asset check.
BACKFILL_SERIES = "backfill:"
CHECK_SERIES = "check:"
# Logs read in one tick for runs of one series whose plan names the owner: a few show what is wrong.
MAX_LOGS_PER_SERIES = 8
MAX_LOGS_PER_BACKFILL = 40


@dataclass
class RunReader:
    """Access to runs for one tick that reads each plan once, and few logs of the same series."""

    instance: dg.DagsterInstance
    policy: Policy
    redact: Callable[[str], str]
    plans: Plans = field(init=False)
    logs_of_series: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.plans = Plans(self.instance)


def classify(
    reader: RunReader,
    attempt: Attempt,
    parents: Mapping[str, Attempt],
    records: Mapping[str, dg.RunRecord],
    horizon: dt.datetime,
) -> ClassifiedAttempt:
    """Return an attempt with its outcomes, by what is known of the time before the horizon.

    `records` are the readable run records: that of the attempt, and of the retry that its tags name. `parents` are
    failed attempts by run id; the attempt may retry one of them. Raises only what the databases raise: a run that this
    code cannot handle is reported with what its event said.
    """
    try:
        return _classified(reader, attempt, parents, records, horizon)
    except (sa.exc.SQLAlchemyError, OSError):
        raise
    except Exception:
        logger.exception("Run %s cannot be classified. It is reported with what its event said.", attempt.run_id)
        return _unreadable(attempt)


def _classified(
    reader: RunReader,
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
    found = ClassifiedAttempt(attempt, series=series, execution=run.run_id, backfill_id=backfill_id)
    if parent is not None and parent.series is not None:
        # A re-execution, by hand or automatic, resolves or prolongs the failure that it repeats.
        found = replace(found, series=parent.series, backfill_id=parent.backfill_id)
        if RETRY_NUMBER_TAG in run.tags and created_at(record) <= parent.at + RETRY_PROMISE:
            found = replace(found, execution=parent.execution or parent.run_id, retried=parent)
    match attempt.status:
        case AttemptStatus.CANCELED:
            return replace(found, disposition="canceled")
        case AttemptStatus.SUCCEEDED:
            return replace(found, outcomes=_successes(found, run, reader))
        case AttemptStatus.FAILED if run.tags.get(WILL_RETRY_TAG, "").lower() != "true":
            return replace(found, outcomes=_failures(reader, found, run, attempt.at))
        case AttemptStatus.FAILED:
            return _with_promised_retry(reader, found, run, records, horizon)


def _with_promised_retry(
    reader: RunReader,
    found: ClassifiedAttempt,
    run: dg.DagsterRun,
    records: Mapping[str, dg.RunRecord],
    horizon: dt.datetime,
) -> ClassifiedAttempt:
    """Hold a failed attempt that Dagster will retry. Without a retry in time it is a failure."""
    promise = found.attempt.at + RETRY_PROMISE
    retry = records.get(run.tags.get(RETRY_RUN_TAG, ""))
    if retry is not None and created_at(retry) <= promise:
        if retry.dagster_run.is_finished and ended_at(retry) < horizon - SWEEP_MARGIN:
            return replace(found, disposition=f"retried in {retry.dagster_run.run_id}")
        # The end of the retry decides, however long it takes, as long as the run exists.
        promise = max(promise, horizon + RETRY_PROMISE)
    if promise > horizon:
        held = f"held for a retry until {promise:%Y-%m-%d %H:%M:%S}"
        return replace(found, held_until=promise, disposition=held)
    minutes = int(RETRY_PROMISE.total_seconds() // 60)
    reason = f"Dagster promised a retry, and it did not start within {minutes} minutes."
    return replace(found, outcomes=_failures(reader, found, run, promise, reason))


def series_of(run: dg.DagsterRun) -> tuple[str, str | None]:
    """Return the series of a run (location, job and how it was started, or its backfill), and its backfill's id."""
    backfill_id = run.tags.get(BACKFILL_TAG)
    if backfill_id is not None:
        return f"{BACKFILL_SERIES}{backfill_id}", backfill_id
    kind = "automated" if any(tag in run.tags for tag in AUTOMATION_TAGS) else "manual"
    return f"{route.location_of(run) or '-'}/{run.job_name}/{kind}", None


def asset_series(series: str, asset_key: str) -> str:
    """Return the series of one asset, where one job name stands for the runs of all assets."""
    return f"{series}:{asset_key}"


def merge_outcomes(outcomes: Sequence[ExecutionOutcome]) -> Sequence[ExecutionOutcome]:
    """Return one outcome for each series and owner. Steps without an owner belong to the owner of the run."""
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


def _is_by_asset(run: dg.DagsterRun, found: ClassifiedAttempt) -> bool:
    return run.job_name == ASSET_JOB and found.backfill_id is None


def _successes(found: ClassifiedAttempt, run: dg.DagsterRun, reader: RunReader) -> Sequence[ExecutionOutcome]:
    if found.backfill_id is not None:
        # A success resolves nothing in a backfill: its incident ends with the backfill.
        return []
    series = found.series or ""
    if _is_by_asset(run, found):
        chosen = [key.to_user_string() for key in run.asset_selection or ()]
        keys = chosen or [key for step in reader.plans.of(run).values() for key in step.asset_keys]
        return [_success(found, asset_series(series, key)) for key in keys]
    return [_success(found, series)]


def _success(found: ClassifiedAttempt, series: str, at: dt.datetime | None = None) -> ExecutionOutcome:
    attempt = found.attempt
    return ExecutionOutcome(
        run_id=attempt.run_id,
        execution=found.execution or attempt.run_id,
        series=series,
        failed=False,
        at=at or attempt.at,
        event_id=attempt.event_id,
    )


def _failures(
    reader: RunReader, found: ClassifiedAttempt, run: dg.DagsterRun, at: dt.datetime, reason: str | None = None
) -> Sequence[ExecutionOutcome]:
    series = found.series or ""
    result = _result(reader, found, run)
    outcomes: list[ExecutionOutcome] = []
    for part in result.parts:
        owner = route.get_job_owner_for_alert(run, part.owner, reader.policy.team_of_location)
        failure = _failure(run, found.attempt, part, backfill_id=found.backfill_id, reason=reason or result.note)
        by_asset = _is_by_asset(run, found) and part.asset_keys
        outcomes += [
            ExecutionOutcome(
                run_id=run.run_id,
                execution=found.execution or run.run_id,
                series=one,
                failed=True,
                at=at,
                event_id=found.attempt.event_id,
                owner=owner,
                failure=failure,
                muted_by=_mute_tag(run),
            )
            for one in ([asset_series(series, key) for key in part.asset_keys] if by_asset else [series])
        ]
    if _is_by_asset(run, found):
        # An asset that succeeded is resolved, whatever else failed in the run.
        outcomes += [_success(found, asset_series(series, key), at) for key in result.succeeded_assets]
    return merge_outcomes(outcomes)


def _mute_tag(run: dg.DagsterRun) -> str | None:
    return f"the tag {route.MUTE_TAG}" if route.is_muted(run.tags) else None


def _result(reader: RunReader, found: ClassifiedAttempt, run: dg.DagsterRun) -> RunResult:
    """Return what failed; from the plan alone where it names the owner and enough logs of the series were read."""
    plan = reader.plans.of(run)
    series = found.series or ""
    known = only_owner(plan)
    max_logs = MAX_LOGS_PER_SERIES if found.backfill_id is None else MAX_LOGS_PER_BACKFILL
    if known is not None and not _is_by_asset(run, found) and reader.logs_of_series[series] >= max_logs:
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


def _check(reader: RunReader, attempt: Attempt, run: dg.DagsterRun) -> ClassifiedAttempt:
    """Classify an asset check of severity ERROR that failed, or one that passed."""
    series = f"{CHECK_SERIES}{attempt.subject}"
    found = ClassifiedAttempt(attempt, series=series, execution=run.run_id)
    if attempt.status is AttemptStatus.SUCCEEDED:
        return replace(found, outcomes=[_success(found, series)])
    detail = json.loads(attempt.detail or "{}")
    plan = reader.plans.of(run)
    asset_key = detail.get("asset_key", "")
    # The asset's owner. A check that runs without its asset has the owner of its own step.
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
        muted_by=_mute_tag(run),
    )
    return replace(found, outcomes=[outcome])


def _unreadable(attempt: Attempt) -> ClassifiedAttempt:
    """Classify a run that was deleted, or whose record cannot be read, by what its event said."""
    series = f"-/{attempt.job_name or 'unknown job'}/unreadable"
    found = ClassifiedAttempt(attempt, series=series, execution=attempt.run_id)
    if attempt.status is not AttemptStatus.FAILED:
        return replace(found, disposition="its run cannot be read")
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
    return replace(found, outcomes=[outcome])
