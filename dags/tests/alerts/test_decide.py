import datetime as dt

import pytest

from dags.alerts.decide import (
    LONGEST_BATCH,
    REMINDER,
    STORM_INCIDENTS,
    batch_of,
    common_causes,
    is_due,
    notice_of,
    speak,
    storm_of,
    streaks,
    thread_key,
)
from dags.alerts.values import Cause, ExecutionOutcome, Failure, Incident, IncidentKind, NoticeKind, Operation

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def at(minutes: float) -> dt.datetime:
    return START + dt.timedelta(minutes=minutes)


def failure(minutes: float, name: str = "", *, muted: str | None = None, thread: str | None = None) -> ExecutionOutcome:
    run_id = name or f"run_{minutes:g}"
    told = Failure(run_id, at(minutes), "web", "nightly_job", cause=Cause("ValueError", f"row {minutes:g}"))
    return ExecutionOutcome(
        run_id,
        run_id,
        "web/nightly_job/automated",
        failed=True,
        at=at(minutes),
        owner="team-a",
        failure=told,
        muted_by=muted,
        incident=thread,
    )


def success(minutes: float) -> ExecutionOutcome:
    return ExecutionOutcome(
        f"run_{minutes:g}", f"run_{minutes:g}", "web/nightly_job/automated", failed=False, at=at(minutes)
    )


def thread(**changes: object) -> Incident:
    values = {"failures": 1, "last_failed_at": START, **changes}
    return Incident("run_0/team-a", IncidentKind.RUN, "#a", "team-a", START, **values)  # type: ignore[arg-type]


def test_a_streak_ends_with_a_success() -> None:
    first, second = streaks([failure(0), failure(1), success(2), failure(3)], 1)
    assert (first.executions, first.resolved_at) == (2, at(2))
    assert (second.executions, second.resolved_at) == (1, None)
    assert first.incident == "run_0/team-a"


def test_a_streak_below_the_threshold_has_no_thread() -> None:
    (streak,) = streaks([failure(0), failure(1)], 3)
    assert streak.incident is None
    assert streak.reached_by is None


def test_the_failure_that_reaches_the_threshold_names_the_thread() -> None:
    (streak,) = streaks([failure(0), failure(1), failure(2), failure(3)], 3)
    assert streak.incident == thread_key("run_2", "team-a")


def test_attempts_of_one_execution_count_once() -> None:
    again = ExecutionOutcome("other", "run_0", "web/nightly_job/automated", failed=True, at=at(1), owner="team-a")
    (streak,) = streaks([failure(0), again], 2)
    assert (streak.executions, streak.incident) == (1, None)


def test_what_was_told_stays_in_its_thread_whatever_comes_before_it_later() -> None:
    (streak,) = streaks([failure(-5), failure(0, thread="run_0/team-a")], 1)
    assert streak.incident == "run_0/team-a"


def test_muted_failures_are_neutral() -> None:
    (streak,) = streaks([failure(0), failure(1, muted="a mute"), failure(2)], 2)
    assert streak.executions == 2
    assert streaks([failure(0, muted="a mute")], 1) == []


def test_batches_grow_to_the_longest() -> None:
    ends = [minute for minute in range(80) if batch_of(START, at(minute)) > batch_of(START, at(minute - 1))]
    assert ends == [1, 3, 7, 15, 31, 47, 63, 79]
    assert dt.timedelta(minutes=16) == LONGEST_BATCH
    assert batch_of(START, at(-1)) == 0


def test_a_new_thread_is_a_post_and_one_that_is_over_already_says_both() -> None:
    after, (draft,) = speak(thread(), [failure(0)], at(1))
    assert (draft.operation, draft.notice.kind, draft.key) == (Operation.POST, NoticeKind.FAILING, draft.thread)
    assert (after.posted, after.finished) == (True, False)
    after, (draft,) = speak(thread(resolved_at=at(5)), [failure(0)], at(6))
    assert draft.notice.kind is NoticeKind.FAILED_AND_RESOLVED
    assert after.finished


def test_the_end_is_a_reply_and_an_edit() -> None:
    told = thread(posted=True, notified_failures=1, resolved_at=at(5))
    after, drafts = speak(told, [failure(0)], at(6))
    assert [draft.operation for draft in drafts] == [Operation.REPLY, Operation.EDIT]
    assert {draft.notice.kind for draft in drafts} == {NoticeKind.RESOLVED}
    assert after.finished
    assert not is_due(after, at(1000))


def test_further_failures_wait_for_the_end_of_their_batch() -> None:
    told = thread(posted=True, notified_failures=1, failures=3, last_failed_at=at(2), batches=1)
    failures = [failure(0), failure(1.5), failure(2)]
    assert not is_due(told, at(2.9))
    assert is_due(told, at(3))
    after, drafts = speak(told, failures, at(3))
    assert [draft.notice.kind for draft in drafts] == [NoticeKind.MORE_FAILURES, NoticeKind.FAILING]
    assert drafts[0].notice.lines[0] == "2 more since the last message of this thread."
    assert after.notified_failures == 3
    assert not is_due(after, at(100))


def test_a_reminder_comes_only_if_it_has_failed_since_the_last_one() -> None:
    quiet = thread(posted=True, notified_failures=1)
    assert not is_due(quiet, START + 3 * REMINDER)
    failing = thread(posted=True, notified_failures=2, failures=2, last_failed_at=at(100))
    after, drafts = speak(failing, [failure(0), failure(100)], START + REMINDER)
    assert [draft.notice.kind for draft in drafts] == [NoticeKind.STILL_FAILING]
    assert not is_due(after, START + 2 * REMINDER)


def test_after_a_long_silence_one_reminder_is_enough() -> None:
    failing = thread(posted=True, notified_failures=2, failures=2, last_failed_at=START + 2.5 * REMINDER)
    after, drafts = speak(failing, [failure(0)], START + 3 * REMINDER)
    assert len(drafts) == 1
    assert after.reminders == 3


def test_a_detail_of_a_storm_is_a_reply_in_its_thread() -> None:
    detail = thread(storm="storm/#a/run_0")
    after, (draft,) = speak(detail, [failure(0)], at(1))
    assert (draft.operation, draft.thread) == (Operation.REPLY, "storm/#a/run_0")
    _, (over,) = speak(
        Incident(**{**vars(after), "resolved_at": at(9), "finished": False}),
        [failure(0)],
        at(10),
    )
    assert (over.operation, over.thread) == (Operation.REPLY, "storm/#a/run_0")


def test_a_storm_begins_after_twenty_and_goes_on_while_it_is_in_the_window() -> None:
    assert storm_of([None] * (STORM_INCIDENTS - 1), "new", "#a") is None
    assert storm_of([None] * STORM_INCIDENTS, "new", "#a") == "storm/#a/new"
    assert storm_of([None] * STORM_INCIDENTS + ["storm/#a/first"], "new", "#a") == "storm/#a/first"


def test_a_backfill_is_edited_at_most_once_a_minute() -> None:
    told = Incident(
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
    assert not is_due(told, at(1.5))
    assert is_due(told, at(2))
    after, (draft,) = speak(told, [failure(0)], at(2))
    assert draft.operation is Operation.EDIT
    assert after.edited_at == at(2)


def test_causes_that_differ_in_numbers_alone_are_one() -> None:
    found = common_causes([one.failure for one in map(failure, range(9)) if one.failure is not None])
    assert [(cause.message, count) for cause, count in found] == [("row 0", 9)]


def test_samples_are_the_newest_of_which_the_error_is_known() -> None:
    unknown = ExecutionOutcome(
        "late",
        "late",
        "s",
        failed=True,
        at=at(50),
        owner="team-a",
        failure=Failure("late", at(50), "web", "nightly_job"),
    )
    notice = notice_of(thread(), [*map(failure, range(9)), unknown])
    assert [sample.run_id for sample in notice.samples] == ["run_8", "run_7", "run_6", "run_5", "run_4"]
    assert notice.lines == ("The errors of 9 of the 10 failed runs were looked at.",)


@pytest.mark.parametrize("owner", ["team-a", None])
def test_threads_of_different_owners_differ(owner: str | None) -> None:
    assert thread_key("run", owner) != thread_key("run", "team-b")
