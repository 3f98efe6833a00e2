import datetime as dt
import logging
import threading
from typing import TYPE_CHECKING

import pytest

from dags.alerts.slack import (
    SlackAnswer,
    SlackOutcome,
    classify,
    edit,
    find,
    post,
    probe,
    start,
)
from dags.common.slack import make_client, make_logging_client
from dags.tests.alerts.conftest import Clock
from dags.tests.alerts.fake_slack import TOKEN, FakeSlack, Kind

if TYPE_CHECKING:
    from slack_sdk import WebClient

A = "#alerts-a"


@pytest.mark.parametrize(
    ("code", "status", "outcome"),
    [
        ("invalid_blocks", 200, SlackOutcome.CONTENT_REFUSED),
        ("invalid_blocks_format", 200, SlackOutcome.CONTENT_REFUSED),
        ("msg_too_long", 200, SlackOutcome.CONTENT_REFUSED),
        ("msg_blocks_too_long", 200, SlackOutcome.CONTENT_REFUSED),
        ("some_code_of_tomorrow", 200, SlackOutcome.CONTENT_REFUSED),
        ("channel_not_found", 200, SlackOutcome.CHANNEL_REFUSED),
        ("not_in_channel", 200, SlackOutcome.CHANNEL_REFUSED),
        ("is_archived", 200, SlackOutcome.CHANNEL_REFUSED),
        ("thread_not_found", 200, SlackOutcome.THREAD_REFUSED),
        ("message_not_found", 200, SlackOutcome.THREAD_REFUSED),
        ("invalid_auth", 200, SlackOutcome.AUTH_REFUSED),
        ("token_expired", 200, SlackOutcome.AUTH_REFUSED),
        ("missing_scope", 200, SlackOutcome.AUTH_REFUSED),
        ("ratelimited", 200, SlackOutcome.RATE_LIMITED),
        ("ratelimited", 429, SlackOutcome.RATE_LIMITED),
        ("", 429, SlackOutcome.RATE_LIMITED),
        ("internal_error", 200, SlackOutcome.AMBIGUOUS),
        ("fatal_error", 200, SlackOutcome.AMBIGUOUS),
        ("invalid_auth", 500, SlackOutcome.AMBIGUOUS),
        ("", 200, SlackOutcome.AMBIGUOUS),
        ("Received a response in a non-JSON format: <html>", 200, SlackOutcome.AMBIGUOUS),
    ],
)
def test_each_error_code_means_one_thing(code: str, status: int, outcome: SlackOutcome) -> None:
    assert classify(code, status).outcome is outcome


@pytest.mark.parametrize(("retry_after", "seconds"), [("30", 30), ("0", 1), (None, 30), ("soon", 30)])
def test_slack_says_how_long_to_wait(retry_after: str | None, seconds: float) -> None:
    assert classify("ratelimited", 429, retry_after).retry_after_seconds == seconds


def test_a_post_says_where_it_is(client: "WebClient", slack: FakeSlack) -> None:
    answer = post(client, A, "text", [], "key")
    assert (answer.outcome, answer.channel_id) == (SlackOutcome.SENT, slack.channels[A])
    assert [(one.ts, one.key) for one in slack.messages] == [(answer.ts, "key")]


def test_a_call_is_made_once_whatever_comes_back(client: "WebClient", slack: FakeSlack) -> None:
    for kind in (Kind.DROP, Kind.STATUS, Kind.HTML, Kind.RATE_LIMIT):
        slack.calls.clear()
        slack.fail(kind, times=1, seconds=1)
        assert post(client, A, "text", [], "key").outcome is not SlackOutcome.SENT
        assert len(slack.calls) == 1


def test_the_length_of_a_pause_comes_from_the_answer(client: "WebClient", slack: FakeSlack) -> None:
    slack.fail(Kind.RATE_LIMIT, seconds=17)
    assert post(client, A, "text", [], "key") == SlackAnswer(
        SlackOutcome.RATE_LIMITED, "ratelimited", retry_after_seconds=17
    )


def test_an_edit_replaces_text_and_blocks(client: "WebClient", slack: FakeSlack) -> None:
    section = {"type": "section", "text": {"type": "mrkdwn", "text": "one"}}
    sent = post(client, A, "one", [section], "key")
    assert edit(client, sent.channel_id or "", sent.ts or "", "two", [], "key").outcome is SlackOutcome.SENT
    [message] = slack.messages
    assert (message.text, message.blocks, message.earlier_texts, message.key) == ("two", [], ["one"], "key")


def test_a_message_is_found_by_its_key_in_the_channel_and_in_the_thread(
    client: "WebClient", slack: FakeSlack, clock: Clock
) -> None:
    channel_id = slack.channels[A]
    opener = post(client, A, "one", [], "opener")
    answer = post(client, A, "two", [], "reply", opener.ts)
    assert find(client, channel_id, "opener", clock()).ts == opener.ts
    assert find(client, channel_id, "reply", clock()).outcome is SlackOutcome.ABSENT
    assert find(client, channel_id, "reply", clock(), opener.ts).ts == answer.ts
    assert find(client, channel_id, "never", clock(), opener.ts).outcome is SlackOutcome.ABSENT
    # Messages older than the first attempt are not searched.
    assert find(client, channel_id, "opener", clock() + dt.timedelta(hours=1)).outcome is SlackOutcome.ABSENT


def test_a_history_that_is_refused_is_unreadable_and_one_that_fails_is_not(
    client: "WebClient", slack: FakeSlack, clock: Clock
) -> None:
    assert find(client, "C-unknown", "key", clock()).outcome is SlackOutcome.UNREADABLE
    slack.fail(Kind.ERROR, code="missing_scope", times=1)
    assert find(client, slack.channels[A], "key", clock()).outcome is SlackOutcome.UNREADABLE
    slack.fail(Kind.STATUS, status=500, times=1)
    assert find(client, slack.channels[A], "key", clock()).outcome is SlackOutcome.AMBIGUOUS
    slack.fail(Kind.RATE_LIMIT, seconds=3, times=1)
    assert find(client, slack.channels[A], "key", clock()).retry_after_seconds == 3


def test_a_search_through_too_many_messages_proves_nothing(client: "WebClient", slack: FakeSlack, clock: Clock) -> None:
    for number in range(21):
        post(client, A, "text", [], f"key {number}")
    assert find(client, slack.channels[A], "never", clock(), page_size=2).outcome is SlackOutcome.AMBIGUOUS
    assert find(client, slack.channels[A], "key 5", clock(), page_size=2).outcome is SlackOutcome.SENT


def test_a_probe_changes_nothing_and_knows_the_token(client: "WebClient", slack: FakeSlack) -> None:
    assert probe(client).outcome is SlackOutcome.SENT
    assert probe(make_client("xoxb-another", slack.base_url)).outcome is SlackOutcome.AUTH_REFUSED
    assert slack.messages == []


def test_a_connection_that_was_never_made_has_sent_nothing() -> None:
    for address in ("http://127.0.0.1:9/", "http://no-such-host.invalid/"):
        assert post(make_client(TOKEN, address), A, "text", [], "key").outcome is SlackOutcome.NOT_SENT


def test_the_token_is_in_no_answer_and_in_no_log(slack: FakeSlack, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for kind in (Kind.DROP, Kind.STATUS, Kind.HTML):
        slack.fail(kind, times=1)
        answer = post(make_client(TOKEN, slack.base_url), A, "the text", [], "key")
        assert TOKEN not in str(answer)
    assert TOKEN not in caplog.text
    assert "the text" not in caplog.text


def test_outside_of_production_a_message_counts_as_sent_and_goes_nowhere(clock: Clock) -> None:
    client = make_logging_client()
    answer = post(client, A, "text", [], "key")
    assert answer.outcome is SlackOutcome.SENT
    assert find(client, "C1", "key", clock()).outcome is SlackOutcome.ABSENT


def test_unanswered_calls_are_limited_in_number() -> None:
    unanswered = threading.BoundedSemaphore(2)
    release = threading.Event()
    answers: list[SlackAnswer] = []

    def hang() -> SlackAnswer:
        release.wait(30)
        return SlackAnswer(SlackOutcome.SENT)

    for _ in range(3):
        start(hang, answers.append, unanswered)
    assert [answer.outcome for answer in answers] == [SlackOutcome.NOT_SENT]
    release.set()
