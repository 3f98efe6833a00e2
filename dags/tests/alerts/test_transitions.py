import datetime as dt
from dataclasses import replace

import pytest

from dags.alerts.slack import SlackAnswer, SlackOutcome
from dags.alerts.transitions import (
    Change,
    SearchResult,
    Situation,
    after_probe,
    after_search,
    after_send,
    annotated,
    before_call,
    search_result,
)
from dags.alerts.values import (
    OPEN_STATES,
    DeliveryState,
    Message,
    MessageForm,
    NoticeKind,
    Operation,
    OutboxRow,
)

NOW = dt.datetime(2025, 11, 21, 7, 0, tzinfo=dt.UTC)
DEFAULT_CHANNEL = "#alerts"
SITUATION = Situation(NOW, DEFAULT_CHANNEL)
POST = OutboxRow(
    id=1,
    key="one",
    thread="one",
    operation=Operation.POST,
    channel="#alerts-a",
    refused_channel=None,
    refusal=None,
    owner="team-a",
    kind=NoticeKind.FAILING,
    message=Message("text", [], "stub"),
    state=DeliveryState.SENDING,
    version=2,
    form=MessageForm.BLOCKS,
    alone=False,
    unsure_calls=0,
    first_called_at=NOW,
    last_called_at=NOW,
    post_ts=None,
    post_channel_id=None,
)
REPLY = replace(POST, key="two", operation=Operation.REPLY, post_ts="1.0", post_channel_id="C1")
EDIT = replace(REPLY, key="three", operation=Operation.EDIT)


def answer(outcome: SlackOutcome) -> SlackAnswer:
    return SlackAnswer(outcome, "the note", "C1", "2.0", retry_after_seconds=45)


@pytest.mark.parametrize("outcome", SlackOutcome)
@pytest.mark.parametrize("form", MessageForm)
@pytest.mark.parametrize("channel", ["#alerts-a", DEFAULT_CHANNEL])
@pytest.mark.parametrize("row", [POST, REPLY, EDIT], ids=lambda row: row.operation)
def test_a_post_or_reply_stays_open_until_it_is_sent_and_an_edit_may_be_dropped(
    row: OutboxRow, channel: str, form: MessageForm, outcome: SlackOutcome
) -> None:
    change = after_send(replace(row, channel=channel, form=form), answer(outcome), SITUATION)
    assert change.is_sent == (outcome is SlackOutcome.SENT)
    state = change.values.get("state")
    if change.reroute_reason is not None:
        assert channel != DEFAULT_CHANNEL
        assert row.operation is not Operation.EDIT
    else:
        closed = {DeliveryState.SENT} | ({DeliveryState.DROPPED} if row.operation is Operation.EDIT else set())
        assert state in {*OPEN_STATES, *closed} - {DeliveryState.SENDING}
    # The reason of a further attempt is stored.
    assert change.is_sent or "the note" in f"{change.values.get('note')} {change.reroute_reason}"


@pytest.mark.parametrize("row", [POST, REPLY], ids=lambda row: row.operation)
def test_only_an_ambiguous_answer_makes_a_message_unsure(row: OutboxRow) -> None:
    unsure = [
        outcome
        for outcome in SlackOutcome
        if after_send(row, answer(outcome), SITUATION).values.get("state") is DeliveryState.UNSURE
    ]
    assert unsure == [SlackOutcome.AMBIGUOUS, SlackOutcome.ABSENT, SlackOutcome.UNREADABLE]


def test_a_message_gets_smaller_with_each_refusal_of_its_content() -> None:
    refused = answer(SlackOutcome.CONTENT_REFUSED)
    assert after_send(POST, refused, SITUATION).values["form"] is MessageForm.TEXT
    text = replace(POST, form=MessageForm.TEXT)
    assert after_send(text, refused, SITUATION).values["form"] is MessageForm.STUB
    stub = replace(POST, form=MessageForm.STUB)
    assert after_send(stub, refused, SITUATION) == Change(reroute_reason="the note")
    last = after_send(replace(stub, channel=DEFAULT_CHANNEL), refused, SITUATION)
    assert last.values["not_before"] > NOW
    assert "even as one line (the note)" in (last.problem or "")


@pytest.mark.parametrize("after", ["send", "probe", "search"])
def test_a_rate_limit_pauses_the_channel_and_a_refused_token_all_channels(after: str) -> None:
    def change(outcome: SlackOutcome) -> Change | None:
        match after:
            case "send":
                return after_send(POST, answer(outcome), SITUATION)
            case "probe":
                return after_probe(answer(outcome), SITUATION)
            case _:
                return after_search(POST, answer(outcome), SITUATION)

    limited = change(SlackOutcome.RATE_LIMITED)
    assert limited is not None
    assert limited.pause is not None
    assert (limited.pause.until, limited.pause.of_all_channels) == (NOW + dt.timedelta(seconds=45), False)
    assert limited.problem is None
    if after != "search":
        refused = change(SlackOutcome.AUTH_REFUSED)
        assert refused is not None
        assert refused.pause is not None
        assert (refused.pause.until, refused.pause.of_all_channels) == (NOW + dt.timedelta(seconds=60), True)
        assert "Slack rejected the token (the note)" in (refused.problem or "")


def test_a_row_whose_lease_expired_is_searched_for_and_an_edit_is_repeated() -> None:
    expired = before_call(POST, SITUATION, {})
    assert expired is not None
    assert (expired.values["state"], expired.values["unsure_calls"]) == (DeliveryState.UNSURE, 1)
    repeated = before_call(EDIT, SITUATION, {})
    assert repeated is not None
    assert (repeated.values["state"], repeated.values.get("unsure_calls")) == (DeliveryState.PENDING, None)


def test_a_pending_row_needs_a_call_unless_its_channel_was_refused_or_there_is_nothing_to_edit() -> None:
    pending = replace(POST, state=DeliveryState.PENDING)
    assert before_call(pending, SITUATION, {}) is None
    assert before_call(pending, SITUATION, {"#alerts-a": "is_archived"}) == Change(reroute_reason="is_archived")
    edit = replace(EDIT, state=DeliveryState.PENDING)
    assert before_call(edit, SITUATION, {"#alerts-a": "is_archived"}) is None
    unknown = before_call(replace(edit, post_ts=None), SITUATION, {})
    assert unknown is not None
    assert unknown.values["state"] is DeliveryState.DROPPED


def test_a_search_without_proof_is_repeated_later_and_ends_when_the_history_is_unreadable() -> None:
    twice = replace(POST, state=DeliveryState.UNSURE, unsure_calls=2, last_called_at=NOW - dt.timedelta(seconds=100))
    early = after_search(twice, answer(SlackOutcome.ABSENT), SITUATION)
    assert early.values["not_before"] == NOW + dt.timedelta(seconds=200)
    unreadable = after_search(twice, answer(SlackOutcome.UNREADABLE), SITUATION)
    assert unreadable.values["state"] is DeliveryState.UNCERTAIN
    assert "sent 2 times" in (unreadable.problem or "")


def test_a_rerouted_or_repeated_message_says_so() -> None:
    rerouted = annotated(replace(POST, refused_channel="#old", refusal="is_archived"))
    assert rerouted.text.startswith("↪️ Rerouted from `#old`, which Slack rejected (`is_archived`).")
    assert "Possibly repeated" in annotated(replace(POST, unsure_calls=1)).text
    assert annotated(replace(EDIT, unsure_calls=1)) == EDIT.message


@pytest.mark.parametrize(
    ("outcome", "unsure_calls", "seconds", "expected"),
    [
        (SlackOutcome.SENT, 1, 1, SearchResult.SENT),
        (SlackOutcome.SENT, 2, 1, SearchResult.SENT),
        (SlackOutcome.ABSENT, 1, 1, SearchResult.REPEAT),
        (SlackOutcome.UNREADABLE, 1, 1, SearchResult.REPEAT),
        (SlackOutcome.AMBIGUOUS, 1, 1, SearchResult.REPEAT),
        (SlackOutcome.NOT_SENT, 2, 900, SearchResult.SEARCH_AGAIN),
        (SlackOutcome.ABSENT, 2, 299, SearchResult.SEARCH_AGAIN),
        (SlackOutcome.ABSENT, 2, 300, SearchResult.REPEAT),
        (SlackOutcome.AMBIGUOUS, 2, 900, SearchResult.SEARCH_AGAIN),
        (SlackOutcome.UNREADABLE, 2, 900, SearchResult.GIVE_UP),
    ],
)
def test_a_search_result_decides_whether_a_message_is_repeated(
    outcome: SlackOutcome, unsure_calls: int, seconds: float, expected: SearchResult
) -> None:
    assert search_result(outcome, unsure_calls, seconds, 300) is expected
