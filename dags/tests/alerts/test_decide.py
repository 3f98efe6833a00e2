import datetime as dt

import pytest

from dags.alerts.decide import (
    MAX_BATCH,
    MAX_INCIDENTS_BEFORE_STORM,
    REMINDER_INTERVAL,
    batch_number,
    incident_key,
    is_due,
    storm_of,
    streaks,
)
from dags.alerts.values import ExecutionOutcome, Incident, IncidentKind
from dags.tests.alerts.failing_series import KEY, SERIES, START, at, failure, incident, success


def test_a_success_ends_consecutive_failures() -> None:
    first, second = streaks([failure(0), failure(1), success(2), failure(3)], 1)
    assert (first.executions, first.resolved_at) == (2, at(2))
    assert (second.executions, second.resolved_at) == (1, None)
    assert first.incident == KEY


def test_consecutive_failures_below_the_threshold_have_no_incident() -> None:
    (streak,) = streaks([failure(0), failure(1)], 3)
    assert streak.incident is None
    assert streak.reached_by is None


def test_the_failure_that_reaches_the_threshold_names_the_incident() -> None:
    (streak,) = streaks([failure(0), failure(1), failure(2), failure(3)], 3)
    assert streak.incident == incident_key("run_2", "team-a")


def test_attempts_of_one_execution_count_once() -> None:
    again = ExecutionOutcome("other", "run_0", SERIES, failed=True, at=at(1), owner="team-a")
    (streak,) = streaks([failure(0), again], 2)
    assert (streak.executions, streak.incident) == (1, None)


def test_a_notified_failure_keeps_its_incident_when_an_earlier_failure_arrives_late() -> None:
    (streak,) = streaks([failure(-5), failure(0, incident=KEY)], 1)
    assert streak.incident == KEY


def test_muted_failures_are_neutral() -> None:
    (streak,) = streaks([failure(0), failure(1, muted_by="a mute"), failure(2)], 2)
    assert streak.executions == 2
    assert streaks([failure(0, muted_by="a mute")], 1) == []


def test_batches_grow_up_to_the_limit() -> None:
    ends = [minute for minute in range(80) if batch_number(START, at(minute)) > batch_number(START, at(minute - 1))]
    assert ends == [1, 3, 7, 15, 31, 47, 63, 79]
    assert dt.timedelta(minutes=16) == MAX_BATCH
    assert batch_number(START, at(-1)) == 0


def test_further_failures_are_due_at_the_end_of_their_batch() -> None:
    failing = incident(posted=True, notified_failures=1, failures=3, last_failed_at=at(2), batches=1)
    assert not is_due(failing, at(2.9))
    assert is_due(failing, at(3))


def test_no_reminder_is_due_without_a_failure_since_the_last_one() -> None:
    quiet = incident(posted=True, notified_failures=1)
    assert not is_due(quiet, START + 3 * REMINDER_INTERVAL)


def test_a_storm_begins_after_twenty_incidents_and_goes_on_while_it_is_in_the_window() -> None:
    assert storm_of([None] * (MAX_INCIDENTS_BEFORE_STORM - 1), "new", "#a") is None
    assert storm_of([None] * MAX_INCIDENTS_BEFORE_STORM, "new", "#a") == "storm/#a/new"
    assert storm_of([None] * MAX_INCIDENTS_BEFORE_STORM + ["storm/#a/first"], "new", "#a") == "storm/#a/first"


def test_an_edit_of_a_backfill_is_due_at_most_once_a_minute() -> None:
    failing = Incident(
        "backfill:b/team-a",
        IncidentKind.BACKFILL,
        "#a",
        "team-a",
        START,
        failures=5,
        posted=True,
        notified_failures=1,
        edited_at=at(1),
    )
    assert not is_due(failing, at(1.5))
    assert is_due(failing, at(2))


@pytest.mark.parametrize("owner", ["team-a", None])
def test_incidents_of_different_owners_have_different_keys(owner: str | None) -> None:
    assert incident_key("run", owner) != incident_key("run", "team-b")
