"""Outcomes, findings and ends of backfills into rows: the incidents that they open, prolong and resolve."""

import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dagster as dg
import sqlalchemy as sa

from dags.alerts import mutes, route, tables
from dags.alerts.classify import BACKFILL_SERIES, CHECK_SERIES
from dags.alerts.decide import STORM_WINDOW, incident_key, storm_of, streaks
from dags.alerts.ingest import SWEEP_LOOKBACK
from dags.alerts.queries import attempts, incidents, outcomes
from dags.alerts.store import reading, transaction
from dags.alerts.values import (
    ClassifiedAttempt,
    ExecutionOutcome,
    Finding,
    Incident,
    IncidentKind,
    Policy,
    Streak,
)

logger = logging.getLogger(__name__)

MAX_TITLE_CHARACTERS = 200
# A backfill that was deleted ends this long after its last failure.
DELETED_BACKFILL_DELAY = dt.timedelta(hours=1)
BACKFILL_ENDS = frozenset({"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"})


@dataclass(frozen=True)
class Opening:
    """An incident to open unless it exists, with its title. `subject` is the id of its backfill."""

    incident: Incident
    title: str
    subject: str = ""


def apply_outcomes(connection: sa.Connection, found: Sequence[ClassifiedAttempt], policy: Policy) -> int:
    """Store what became of attempts and the incidents that follow, and return how many failures were new.

    Attempts that another tick has finished meanwhile are left alone.
    """
    found = attempts.not_done(connection, found)
    new = [outcome for classified in found for outcome in classified.outcomes]
    # A success is stored where something failed before it or with it.
    failing = {outcome.series for outcome in new if outcome.failed}
    failing |= outcomes.series_with_open_failures(connection, [one.series for one in new if not one.failed])
    new = [_in_backfill(outcome) for outcome in mutes.apply(connection, new) if outcome.series in failing]
    outcomes.add(connection, new, {one.attempt.run_id: one.attempt.job_name for one in found})
    openings = [_opening(one.incident, IncidentKind.BACKFILL, one, 1, policy) for one in new if one.incident]
    openings += _decide(connection, [one for one in new if one.incident is None], policy)
    for opening in sorted(openings, key=lambda one: (one.incident.opened_at, one.incident.key)):
        _open_incident(connection, opening)
    for key in sorted({opening.incident.key for opening in openings}):
        _recount(connection, key)
    attempts.record(connection, found, failing)
    return sum(outcome.failed for outcome in new)


def apply_findings(connection: sa.Connection, findings: Sequence[Finding], policy: Policy, now: dt.datetime) -> None:
    """Open an incident for each new finding, and resolve those whose finding is gone."""
    known = incidents.subjects_of_open(connection, IncidentKind.FINDING)
    current = {finding.key: finding for finding in findings}
    new = [finding for key, finding in sorted(current.items()) if key not in set(known.values())]
    for finding in mutes.without_muted_findings(connection, new, now):
        incident = Incident(
            key=f"finding/{finding.key}/{now:%Y%m%dT%H%M%S}",
            kind=IncidentKind.FINDING,
            channel=route.channel_of(finding.owner, policy),
            owner=finding.owner,
            opened_at=now,
            failures=1,
        )
        _open_incident(connection, Opening(incident, finding.title, finding.key), finding)
    incidents.resolve(connection, [key for key, subject in known.items() if subject not in current], now)


def close_ended_backfills(instance: dg.DagsterInstance, store: sa.Engine, horizon: dt.datetime) -> None:
    """Resolve the incidents of backfills that ended before the horizon."""
    with reading(store) as connection:
        found = incidents.open_of_kind(connection, IncidentKind.BACKFILL)
        backfill_ids = incidents.subjects_of_open(connection, IncidentKind.BACKFILL)
    ended: dict[str, dt.datetime] = {}
    for incident in found:
        ended_at = _backfill_ended_at(instance, backfill_ids.get(incident.key, ""), incident)
        if ended_at is not None and ended_at <= horizon:
            ended[incident.key] = ended_at
    if ended:
        with transaction(store) as connection:
            for key, time in ended.items():
                incidents.resolve(connection, [key], time)


def _backfill_ended_at(instance: dg.DagsterInstance, backfill_id: str, incident: Incident) -> dt.datetime | None:
    """Return when a backfill ended, None while it has not, or while that is not known."""
    last_failed_at = incident.last_failed_at or incident.opened_at
    try:
        backfill = instance.get_backfill(backfill_id)
    except (sa.exc.SQLAlchemyError, OSError):
        raise
    except Exception:
        # A backfill that this version of Dagster cannot read stays open, and delays no other.
        logger.exception("Backfill %s cannot be read, so its incident stays open.", backfill_id)
        return None
    if backfill is None:
        return last_failed_at + DELETED_BACKFILL_DELAY
    if backfill.status.value not in BACKFILL_ENDS:
        return None
    seconds = backfill.backfill_end_timestamp
    return last_failed_at if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)


def _open_incident(connection: sa.Connection, opening: Opening, finding: Finding | None = None) -> None:
    """Store a new incident; as part of a storm where too many opened before it in its channel."""
    incident = opening.incident
    if incidents.get(connection, incident.key) is not None:
        return
    earlier = incidents.find(
        connection,
        tables.incidents.c.channel == incident.channel,
        tables.incidents.c.opened_at > incident.opened_at - STORM_WINDOW,
        tables.incidents.c.opened_at <= incident.opened_at,
        tables.incidents.c.kind != IncidentKind.STORM.value,
    )
    storm = storm_of([one.storm for one in earlier], incident.key, incident.channel)
    incidents.add(connection, replace(incident, storm=storm), opening.title, opening.subject, finding)
    if storm is None:
        return
    if incidents.get(connection, storm) is None:
        first = Incident(storm, IncidentKind.STORM, incident.channel, incident.owner, incident.opened_at)
        incidents.add(connection, first, "Storm")
    _recount(connection, storm)


def _in_backfill(outcome: ExecutionOutcome) -> ExecutionOutcome:
    """Return a failure of a backfill with its incident: in a backfill, consecutive failures do not count."""
    is_notified = outcome.series.startswith(BACKFILL_SERIES) and outcome.failed and outcome.muted_by is None
    return replace(outcome, incident=incident_key(outcome.series, outcome.owner)) if is_notified else outcome


def _decide(connection: sa.Connection, new: Sequence[ExecutionOutcome], policy: Policy) -> list[Opening]:
    history = outcomes.history(connection, new, SWEEP_LOOKBACK)
    openings = []
    for series, known in sorted(history.items()):
        for owner in sorted({outcome.owner or "" for outcome in known if outcome.failed}):
            seen = [outcome for outcome in known if not outcome.failed or (outcome.owner or "") == owner]
            threshold = _threshold(series, seen, policy)
            for streak in streaks(seen, threshold):
                outcomes.record_streak(connection, series, streak, threshold)
                if streak.incident is not None:
                    incidents.record_series(connection, streak.incident, series, streak.resolved_at)
                    openings.append(_opening(streak.incident, IncidentKind.RUN, _opener(streak), threshold, policy))
    outcomes.close_neutral(connection, history.keys())
    return openings


def _opener(streak: Streak) -> ExecutionOutcome:
    return streak.reached_by or streak.failures[-1]


def _threshold(series: str, seen: Sequence[ExecutionOutcome], policy: Policy) -> int:
    if series.startswith(CHECK_SERIES):
        return 1
    job_name = next((one.failure.job_name for one in seen if one.failure is not None), "")
    return policy.thresholds.get(job_name, 1)


def _opening(key: str | None, kind: IncidentKind, opener: ExecutionOutcome, threshold: int, policy: Policy) -> Opening:
    failure = opener.failure
    title = opener.series if failure is None else failure.job_name
    if failure is not None and failure.asset_keys:
        title = f"{title}: {', '.join(failure.asset_keys)}"
    incident = Incident(
        key=key or "",
        kind=kind,
        channel=route.channel_of(opener.owner, policy),
        owner=opener.owner,
        opened_at=opener.at,
        threshold=threshold,
    )
    subject = opener.series.removeprefix(BACKFILL_SERIES) if kind is IncidentKind.BACKFILL else ""
    return Opening(incident, title[:MAX_TITLE_CHARACTERS], subject)


def _recount(connection: sa.Connection, key: str) -> None:
    """Bring the counts and the end of an incident up to date."""
    incident = incidents.get(connection, key)
    if incident is None:
        return
    if incident.kind is IncidentKind.STORM:
        members = incidents.members_of(connection, key)
        last = max((member.opened_at for member in members), default=None)
        incidents.update(connection, replace(incident, failures=len(members), last_failed_at=last))
        return
    failures, last = outcomes.count_failures(connection, key)
    resolved_at = incident.resolved_at
    if incident.kind is IncidentKind.RUN:
        resolved_at = incidents.series_resolved_at(connection, key)
    # A failure that arrives after the end was notified needs one more message.
    finished = incident.finished and failures <= incident.notified_failures
    changes = replace(incident, failures=failures, last_failed_at=last, resolved_at=resolved_at, finished=finished)
    incidents.update(connection, changes)
