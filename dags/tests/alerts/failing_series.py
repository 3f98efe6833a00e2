"""Outcomes of one series, and incidents about it, for tests of the rules."""

import datetime as dt

from dags.alerts.values import Cause, ExecutionOutcome, Failure, Incident, IncidentKind

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SERIES = "web/nightly_job/automated"
KEY = "run_0/team-a"


def at(minutes: float) -> dt.datetime:
    """Return a time after START."""
    return START + dt.timedelta(minutes=minutes)


def failure(minutes: float, *, muted_by: str | None = None, incident: str | None = None) -> ExecutionOutcome:
    """Return a failed execution of team-a."""
    run_id = f"run_{minutes:g}"
    facts = Failure(run_id, at(minutes), "web", "nightly_job", cause=Cause("ValueError", f"row {minutes:g}"))
    return ExecutionOutcome(
        run_id,
        run_id,
        SERIES,
        failed=True,
        at=at(minutes),
        owner="team-a",
        failure=facts,
        muted_by=muted_by,
        incident=incident,
    )


def success(minutes: float) -> ExecutionOutcome:
    """Return a successful execution."""
    return ExecutionOutcome(f"run_{minutes:g}", f"run_{minutes:g}", SERIES, failed=False, at=at(minutes))


def incident(**changes: object) -> Incident:
    """Return the incident that opened with the failure at START."""
    values = {"failures": 1, "last_failed_at": START, **changes}
    return Incident(KEY, IncidentKind.RUN, "#a", "team-a", START, **values)  # type: ignore[arg-type]
