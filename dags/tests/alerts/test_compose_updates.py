import datetime as dt
from collections.abc import Sequence

from dags.alerts.compose_updates import common_causes, compose_update, facts_of_failures
from dags.alerts.decide import REMINDER_INTERVAL, is_due
from dags.alerts.values import Draft, ExecutionOutcome, Failure, Incident, IncidentKind, NoticeKind, Operation
from dags.tests.alerts.failing_series import START, at, failure, incident


def update(one: Incident, failures: Sequence[ExecutionOutcome], horizon: dt.datetime) -> tuple[Incident, list[Draft]]:
    return compose_update(one, facts_of_failures(one, failures), horizon)


def test_a_new_incident_is_a_post_and_one_that_is_resolved_already_says_both() -> None:
    after, (draft,) = update(incident(), [failure(0)], at(1))
    assert (draft.operation, draft.notice.kind, draft.key) == (Operation.POST, NoticeKind.FAILING, draft.thread)
    assert (after.posted, after.finished) == (True, False)
    after, (draft,) = update(incident(resolved_at=at(5)), [failure(0)], at(6))
    assert draft.notice.kind is NoticeKind.FAILED_AND_RESOLVED
    assert after.finished


def test_a_resolved_incident_gets_a_reply_and_an_edit() -> None:
    notified = incident(posted=True, notified_failures=1, resolved_at=at(5))
    after, drafts = update(notified, [failure(0)], at(6))
    assert [draft.operation for draft in drafts] == [Operation.REPLY, Operation.EDIT]
    assert {draft.notice.kind for draft in drafts} == {NoticeKind.RESOLVED}
    assert after.finished
    assert not is_due(after, at(1000))


def test_a_batch_of_further_failures_is_a_reply_and_an_edit_with_the_count() -> None:
    notified = incident(posted=True, notified_failures=1, failures=3, last_failed_at=at(2), batches=1)
    failures = [failure(0), failure(1.5), failure(2)]
    after, drafts = update(notified, failures, at(3))
    assert [draft.notice.kind for draft in drafts] == [NoticeKind.MORE_FAILURES, NoticeKind.FAILING]
    assert drafts[0].notice.lines[0] == "2 more since the last message of this thread."
    assert after.notified_failures == 3
    assert not is_due(after, at(100))


def test_a_reminder_is_one_reply_until_it_fails_again() -> None:
    failing = incident(posted=True, notified_failures=2, failures=2, last_failed_at=at(100))
    after, drafts = update(failing, [failure(0), failure(100)], START + REMINDER_INTERVAL)
    assert [draft.notice.kind for draft in drafts] == [NoticeKind.STILL_FAILING]
    assert not is_due(after, START + 2 * REMINDER_INTERVAL)


def test_after_a_long_silence_one_reminder_is_enough() -> None:
    last_failed_at = START + 2.5 * REMINDER_INTERVAL
    failing = incident(posted=True, notified_failures=2, failures=2, last_failed_at=last_failed_at)
    after, drafts = update(failing, [failure(0)], START + 3 * REMINDER_INTERVAL)
    assert len(drafts) == 1
    assert after.reminders == 3


def test_an_incident_of_a_storm_is_a_reply_in_the_thread_of_the_storm() -> None:
    after, (draft,) = update(incident(storm="storm/#a/run_0"), [failure(0)], at(1))
    assert (draft.operation, draft.thread) == (Operation.REPLY, "storm/#a/run_0")
    resolved = Incident(**{**vars(after), "resolved_at": at(9), "finished": False})
    _, (last,) = update(resolved, [failure(0)], at(10))
    assert (last.operation, last.thread) == (Operation.REPLY, "storm/#a/run_0")


def test_further_failures_of_a_backfill_are_an_edit() -> None:
    notified = Incident(
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
    after, (draft,) = update(notified, [failure(0)], at(2))
    assert draft.operation is Operation.EDIT
    assert after.edited_at == at(2)


def test_causes_that_differ_only_in_numbers_are_one() -> None:
    found = common_causes([one.failure for one in map(failure, range(9)) if one.failure is not None])
    assert [(cause.message, count) for cause, count in found] == [("row 0", 9)]


def test_samples_are_the_newest_failures_whose_error_is_known() -> None:
    unknown = ExecutionOutcome(
        "late",
        "late",
        "s",
        failed=True,
        at=at(50),
        owner="team-a",
        failure=Failure("late", at(50), "web", "nightly_job"),
    )
    notice = facts_of_failures(incident(), [*map(failure, range(9)), unknown])
    assert [sample.run_id for sample in notice.samples] == ["run_8", "run_7", "run_6", "run_5", "run_4"]
    assert notice.lines == ("The errors of 9 of the 10 failed runs were read.",)
