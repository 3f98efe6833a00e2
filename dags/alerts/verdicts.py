"""Classified attempts into rows: outcomes, the threads they open, lengthen and close. All in the caller's transaction.

Belongs here: applying the rules of `decide.py` to what is kept. Not here: what is said of a thread (`speech.py`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from dags.alerts import incidents, ingest, mutes, route, tables
from dags.alerts.decide import STORM_WINDOW, storm_of, streaks, thread_key
from dags.alerts.tables import attempts
from dags.alerts.values import (
    AttemptState,
    AttemptStatus,
    ClassifiedAttempt,
    ExecutionOutcome,
    Incident,
    IncidentKind,
    Policy,
    Streak,
)

BACKFILL_SERIES = "backfill:"
CHECK_SERIES = "check:"


@dataclass(frozen=True)
class Opening:
    """A thread that may have to be opened, with its subject and what it is about in a line."""

    thread: Incident
    title: str
    subject: str = ""


def write(connection: sa.Connection, found: Sequence[ClassifiedAttempt], policy: Policy) -> int:
    """Writes down what became of attempts, and which threads follow. How many failures were new.

    What another tick has written meanwhile is left alone.
    """
    found = _still_undecided(connection, found)
    new = [outcome for settled in found for outcome in settled.outcomes]
    # A success is kept where something failed before it or with it.
    failing = {outcome.series for outcome in new if outcome.failed}
    failing |= incidents.series_that_fail(connection, [outcome.series for outcome in new if not outcome.failed])
    new = [_in_backfill(outcome) for outcome in mutes.apply(connection, new) if outcome.series in failing]
    incidents.add_outcomes(connection, new, {one.attempt.run_id: one.attempt.job_name for one in found})
    openings = [
        _opening(one.incident, IncidentKind.BACKFILL, one, 1, policy) for one in new if one.incident is not None
    ]
    openings += _judge(connection, [one for one in new if one.incident is None], policy)
    for opening in sorted(openings, key=lambda one: (one.thread.opened_at, one.thread.key)):
        open_thread(connection, opening)
    for key in sorted({opening.thread.key for opening in openings}):
        _recount(connection, key)
    _keep_attempts(connection, found, failing)
    return sum(outcome.failed for outcome in new)


def open_thread(connection: sa.Connection, opening: Opening, facts: str | None = None) -> None:
    """Keeps a new thread; where too many were opened before it in its channel, as a detail of a storm."""
    thread = opening.thread
    if incidents.get_thread(connection, thread.key) is not None:
        return
    earlier = incidents.find_threads(
        connection,
        sa.and_(
            tables.incidents.c.channel == thread.channel,
            tables.incidents.c.opened_at > thread.opened_at - STORM_WINDOW,
            tables.incidents.c.opened_at <= thread.opened_at,
            tables.incidents.c.kind != IncidentKind.STORM.value,
        ),
    )
    storm = storm_of([one.storm for one in earlier], thread.key, thread.channel)
    incidents.add_thread(connection, replace(thread, storm=storm), opening.title, opening.subject, facts)
    if storm is None:
        return
    if incidents.get_thread(connection, storm) is None:
        incidents.add_thread(
            connection, Incident(storm, IncidentKind.STORM, thread.channel, thread.owner, thread.opened_at), "Storm"
        )
    _recount(connection, storm)


def unaccounted(connection: sa.Connection) -> Sequence[str]:
    """Failed runs that are decided and of which nothing says what became of them. There should be none."""
    outcomes = tables.outcomes
    told = sa.exists().where(
        outcomes.c.run_id == attempts.c.run_id, outcomes.c.failed, outcomes.c.disposition.is_not(None)
    )
    query = sa.select(attempts.c.run_id).where(
        attempts.c.status == AttemptStatus.FAILED,
        attempts.c.state == AttemptState.DONE,
        attempts.c.disposition.is_(None),
        sa.not_(told),
    )
    return list(connection.execute(query).scalars())


def _still_undecided(connection: sa.Connection, found: Sequence[ClassifiedAttempt]) -> Sequence[ClassifiedAttempt]:
    states: dict[tuple[str, str, str], str] = {}
    for chunk in incidents.chunks([one.attempt.run_id for one in found], incidents.ROWS_IN_A_STATEMENT):
        for row in connection.execute(sa.select(attempts).where(attempts.c.run_id.in_(list(chunk)))):
            states[row.run_id, row.subject, row.status] = row.state
    return [
        one
        for one in found
        if states.get((one.attempt.run_id, one.attempt.subject, one.attempt.status)) != AttemptState.DONE
    ]


def _in_backfill(outcome: ExecutionOutcome) -> ExecutionOutcome:
    """A failure of a backfill has its thread at once: a backfill has no streaks."""
    is_told = outcome.series.startswith(BACKFILL_SERIES) and outcome.failed and outcome.muted_by is None
    return replace(outcome, incident=thread_key(outcome.series, outcome.owner)) if is_told else outcome


def _judge(connection: sa.Connection, new: Sequence[ExecutionOutcome], policy: Policy) -> list[Opening]:
    history = incidents.history(connection, new, ingest.HORIZON_OF_SWEEP)
    openings = []
    for series, known in sorted(history.items()):
        for owner in sorted({outcome.owner or "" for outcome in known if outcome.failed}):
            seen = [outcome for outcome in known if not outcome.failed or (outcome.owner or "") == owner]
            threshold = _threshold(series, seen, policy)
            for streak in streaks(seen, threshold):
                incidents.keep_streak(connection, series, streak, threshold)
                if streak.incident is not None:
                    incidents.keep_incident(connection, streak.incident, series, streak.resolved_at)
                    openings.append(_opening(streak.incident, IncidentKind.RUN, _opener(streak), threshold, policy))
    incidents.close_quiet(connection, history.keys())
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
    about = opener.series if failure is None else failure.job_name
    if failure is not None and failure.asset_keys:
        about = f"{about}: {', '.join(failure.asset_keys)}"
    thread = Incident(
        key=key or "",
        kind=kind,
        channel=route.channel_of(opener.owner, policy),
        owner=opener.owner,
        opened_at=opener.at,
        threshold=threshold,
    )
    subject = opener.series.removeprefix(BACKFILL_SERIES) if kind is IncidentKind.BACKFILL else ""
    return Opening(thread, about[:200], subject)


def _recount(connection: sa.Connection, key: str) -> None:
    """Brings the counts and the end of a thread up to date."""
    thread = incidents.get_thread(connection, key)
    if thread is None:
        return
    if thread.kind is IncidentKind.STORM:
        members = incidents.find_threads(connection, tables.incidents.c.storm == key)
        last = max((member.opened_at for member in members), default=None)
        incidents.keep_thread(connection, replace(thread, failures=len(members), last_failed_at=last))
        return
    failures, last = incidents.counts(connection, key)
    closed_at = incidents.ended_at(connection, key) if thread.kind is IncidentKind.RUN else thread.resolved_at
    # A failure that came after the end was told makes one more thing to say.
    finished = thread.finished and failures <= thread.notified_failures
    incidents.keep_thread(
        connection,
        replace(thread, failures=failures, last_failed_at=last, resolved_at=closed_at, finished=finished),
    )


def _keep_attempts(connection: sa.Connection, found: Sequence[ClassifiedAttempt], failing: Collection[str]) -> None:
    def state_of(one: ClassifiedAttempt) -> str:
        if one.held_until is not None:
            return AttemptState.HELD
        # A success that nothing waited for is looked at again when an earlier failure comes late.
        is_awaited = all(outcome.failed or outcome.series in failing for outcome in one.outcomes)
        return (
            AttemptState.DONE if is_awaited or one.attempt.status != AttemptStatus.SUCCEEDED else AttemptState.SKIPPED
        )

    rows = [
        {
            "the_run": one.attempt.run_id,
            "the_subject": one.attempt.subject,
            "the_status": one.attempt.status,
            "state": state_of(one),
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
                .where(
                    attempts.c.run_id == one.retried.run_id,
                    attempts.c.subject == "",
                    attempts.c.status == AttemptStatus.FAILED,
                    attempts.c.state == AttemptState.HELD,
                )
                .values(state=AttemptState.DONE, disposition=f"retried in {one.attempt.run_id}")
            )
