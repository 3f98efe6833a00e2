import datetime as dt
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from dags.alerts import outbox, tables
from dags.alerts.deliver import Delivered, DeliveryError, deliver
from dags.alerts.store import reading, transaction
from dags.alerts.transitions import Pace
from dags.alerts.values import Cause, DeliveryState, Draft, Failure, Notice, NoticeKind, Operation, Policy
from dags.common.slack import make_client
from dags.tests.alerts.conftest import DEFAULT_CHANNEL, QUICK, Clock
from dags.tests.alerts.fake_slack import TOKEN, FakeSlack, Kind

if TYPE_CHECKING:
    from slack_sdk import WebClient

A, B, C = "#alerts-a", "#alerts-b", "#alerts-c"
# A hanging call is abandoned quickly, so that tests of hanging are quick.
IMPATIENT = replace(QUICK, call_seconds=0.5)


def draft(
    key: str,
    channel: str = A,
    operation: Operation = Operation.POST,
    thread: str | None = None,
    kind: NoticeKind = NoticeKind.FAILING,
) -> Draft:
    notice = Notice(kind, "team-a", "shop", f"{key}_job", failures=1, consecutive_failures=1)
    return Draft(key, thread or key, operation, channel, notice)


def reply(key: str, thread: str, kind: NoticeKind = NoticeKind.RESOLVED) -> Draft:
    return draft(key, operation=Operation.REPLY, thread=thread, kind=kind)


def edit(key: str, thread: str, kind: NoticeKind = NoticeKind.FAILING) -> Draft:
    return draft(key, operation=Operation.EDIT, thread=thread, kind=kind)


class Router:
    """The outbox of one store, its policy and its Slack."""

    def __init__(self, store: sa.Engine, client: "WebClient", policy: Policy, clock: Clock) -> None:
        self.store = store
        self.client = client
        self.policy = policy
        self.clock = clock

    def put(self, *drafts: Draft) -> int:
        with transaction(self.store) as connection:
            return outbox.enqueue(connection, drafts, self.policy, self.clock())

    def tick(self, pace: Pace = QUICK, budget_seconds: float = 5, seconds_later: float = 10) -> Delivered:
        self.clock.forward(seconds_later)
        return deliver(self.store, self.client, self.policy, self.clock, budget_seconds, pace)

    def row(self, key: str) -> Mapping[str, Any]:
        with reading(self.store) as connection:
            return dict(connection.execute(sa.select(tables.outbox).where(tables.outbox.c.key == key)).mappings().one())

    def state(self, key: str) -> str:
        return str(self.row(key)["state"])


@pytest.fixture
def router(store: sa.Engine, client: "WebClient", policy: Policy, clock: Clock) -> Router:
    return Router(store, client, policy, clock)


def test_waiting_messages_are_sent_once_with_their_keys(router: Router, slack: FakeSlack) -> None:
    router.put(draft("one"), draft("two", B))
    delivered = router.tick()
    assert (delivered.sent, delivered.waiting, delivered.faults, delivered.problems) == (2, 0, {}, ())
    assert router.tick().sent == 0
    assert sorted(map(str, slack.all_keys())) == ["one", "two"]
    assert slack.copies("one")[0].channel == A
    assert router.row("one")["ts"] == slack.copies("one")[0].ts


def test_a_key_is_inserted_once(router: Router, slack: FakeSlack) -> None:
    assert router.put(draft("one"), draft("one")) == 1
    router.tick()
    assert router.put(draft("one")) == 0
    router.tick()
    assert slack.all_keys() == ["one"]


def test_an_empty_outbox_makes_no_call(router: Router, slack: FakeSlack) -> None:
    assert router.tick() == Delivered()
    assert slack.calls == []


def test_replies_and_edits_follow_their_post_in_order(router: Router, slack: FakeSlack) -> None:
    router.put(draft("post"), reply("more", "post"), edit("count", "post"), reply("done", "post"))
    router.tick()
    assert slack.all_keys() == ["post", "more", "done"]
    [post] = slack.copies("post")
    assert [one.thread_ts for one in slack.messages] == [None, post.ts, post.ts]
    assert len(post.earlier_texts) == 1
    assert [method for method, _ in slack.calls] == [
        "chat.postMessage",
        "chat.postMessage",
        "chat.update",
        "chat.postMessage",
    ]


def test_a_reply_waits_while_its_post_cannot_be_sent(router: Router, slack: FakeSlack) -> None:
    router.put(draft("post"), reply("done", "post"))
    slack.fail(Kind.RATE_LIMIT, seconds=60, channel=A)
    assert router.tick().sent == 0
    slack.clear_faults()
    assert router.tick(seconds_later=61).sent == 2
    assert slack.all_keys() == ["post", "done"]


def test_new_posts_go_before_replies_to_other_threads(router: Router, slack: FakeSlack) -> None:
    router.put(draft("old"))
    router.tick()
    router.put(reply("more", "old"), draft("new"))
    router.tick()
    assert slack.all_keys() == ["old", "new", "more"]


def test_a_waiting_edit_is_replaced_by_a_newer_one_of_its_thread(router: Router, slack: FakeSlack) -> None:
    router.put(draft("post"), edit("second", "post"))
    router.put(edit("third", "post", NoticeKind.RESOLVED))
    router.tick()
    [post] = slack.copies("post")
    assert "Resolved" in post.text
    assert len(post.earlier_texts) == 1
    assert router.state("second") == DeliveryState.SUPERSEDED
    assert router.put(edit("second", "post")) == 0


@pytest.mark.parametrize("faults", [1, 2])
def test_refused_blocks_are_followed_by_text_and_then_by_one_line(
    router: Router, slack: FakeSlack, faults: int
) -> None:
    router.put(draft("one"))
    slack.fail(Kind.ERROR, code="invalid_blocks", times=faults)
    assert router.tick().sent == 1
    [message] = slack.copies("one")
    assert message.blocks == []
    assert ("Owner:" in message.text) == (faults == 1)
    assert "one_job" in message.text
    assert "repeated" not in message.text


def test_a_message_that_is_refused_even_as_one_line_goes_to_the_default_channel(
    router: Router, slack: FakeSlack
) -> None:
    router.put(draft("one"))
    slack.fail(Kind.ERROR, code="msg_blocked_here", channel=A)
    assert router.tick().sent == 1
    assert slack.copies("one")[0].channel == DEFAULT_CHANNEL


@pytest.mark.parametrize("code", ["channel_not_found", "not_in_channel", "is_archived"])
def test_a_refused_channel_is_rerouted_to_the_default_channel_at_once_with_the_mapping_to_fix(
    router: Router, slack: FakeSlack, code: str
) -> None:
    router.put(draft("one"), draft("two"), reply("done", "one"))
    slack.fail(Kind.ERROR, code=code, channel=A)
    assert router.tick().sent == 3
    [one] = slack.copies("one")
    assert one.channel == DEFAULT_CHANNEL
    assert all(part in one.text for part in (A, code, "team-a", "notification_channel_per_team"))
    assert one.blocks[0]["type"] == "context"
    # Replies go where the thread is.
    assert slack.copies("done")[0].thread_ts == one.ts
    # The rejected channel is tried once in a round.
    assert slack.calls.count(("chat.postMessage", A)) == 1


def test_replies_are_rerouted_to_the_default_channel_when_their_channel_is_archived_later(
    router: Router, slack: FakeSlack
) -> None:
    router.put(draft("one"))
    router.tick()
    slack.fail(Kind.ERROR, code="is_archived", channel=A)
    router.put(reply("done", "one"), edit("count", "one"))
    router.tick()
    router.tick()
    [done] = slack.copies("done")
    assert (done.channel, done.thread_ts) == (DEFAULT_CHANNEL, None)
    assert router.state("count") == DeliveryState.DROPPED


def test_a_reply_whose_thread_is_gone_goes_into_the_channel(router: Router, slack: FakeSlack) -> None:
    router.put(draft("one"))
    router.tick()
    slack.messages.clear()
    router.put(reply("done", "one"), edit("count", "one"))
    assert router.tick().sent == 1
    [done] = slack.copies("done")
    assert (done.channel, done.thread_ts) == (A, None)
    assert router.state("count") == DeliveryState.DROPPED


def test_a_refused_default_channel_keeps_the_messages_and_fails_loudly(router: Router, slack: FakeSlack) -> None:
    router.put(draft("one"), draft("two", B))
    slack.fail(Kind.ERROR, code="not_in_channel", channel=A)
    slack.fail(Kind.ERROR, code="is_archived", channel=DEFAULT_CHANNEL)
    delivered = router.tick()
    assert (delivered.sent, delivered.waiting) == (1, 1)
    with pytest.raises(DeliveryError, match=r"rejected the default channel #alerts-data-platform \(is_archived\)"):
        delivered.raise_for_problems()
    slack.clear_faults()
    assert router.tick(seconds_later=61).sent == 1
    assert slack.copies("one")[0].channel == DEFAULT_CHANNEL


@pytest.mark.parametrize("code", ["invalid_auth", "token_revoked", "missing_scope"])
def test_a_refused_token_stops_delivery_keeps_the_rows_and_is_tried_every_minute(
    router: Router, slack: FakeSlack, code: str
) -> None:
    router.put(draft("one"), draft("two", B), draft("three", C))
    slack.fail(Kind.ERROR, code=code)
    delivered = router.tick(seconds_later=0)
    with pytest.raises(DeliveryError, match=rf"rejected the token \({code}"):
        delivered.raise_for_problems()
    assert delivered.waiting == 3
    calls = len(slack.calls)
    # Within the minute no call is made, and the problem is still reported.
    assert router.tick(seconds_later=30).problems == delivered.problems
    assert len(slack.calls) == calls
    slack.clear_faults()
    assert router.tick(seconds_later=31).sent == 3
    assert not any("repeated" in message.text for message in slack.messages)


def test_a_wrong_token_is_reported_as_a_problem(router: Router, slack: FakeSlack) -> None:
    router.client = make_client("xoxb-another", slack.base_url)
    router.put(draft("one"))
    assert "invalid_auth" in router.tick().problems[0]
    assert router.state("one") == DeliveryState.PENDING


def test_a_pause_that_slack_asks_for_is_kept_across_rounds_and_applies_to_that_channel_alone(
    router: Router, slack: FakeSlack
) -> None:
    router.put(draft("one"), draft("two", B))
    slack.fail(Kind.RATE_LIMIT, seconds=45, channel=A, times=1)
    delivered = router.tick(seconds_later=0)
    assert slack.all_keys() == ["two"]
    assert "pause" in delivered.faults[A]
    calls = len(slack.calls)
    router.tick(seconds_later=40)
    assert len(slack.calls) == calls
    router.tick(seconds_later=6)
    assert slack.all_keys() == ["two", "one"]
    assert "repeated" not in slack.copies("one")[0].text


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": Kind.DROP},
        {"kind": Kind.STATUS, "status": 500},
        {"kind": Kind.STATUS, "status": 503},
        {"kind": Kind.HTML},
        {"kind": Kind.HANG, "seconds": 5},
        {"kind": Kind.ERROR, "code": "internal_error"},
        {"kind": Kind.ERROR, "code": "fatal_error"},
        {"kind": Kind.ERROR, "code": ""},
    ],
    ids=lambda fault: " ".join(map(str, fault.values())),
)
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_after_an_ambiguous_answer_the_message_is_found_or_sent_once_more_and_says_so(
    router: Router, slack: FakeSlack, fault: dict[str, Any], *, stored: bool
) -> None:
    router.put(draft("before"))
    router.tick()
    router.put(draft("one"), reply("done", "one"))
    slack.fail(**fault, stored=stored, method="chat.postMessage", times=1)
    assert A in router.tick(IMPATIENT).faults
    router.tick(IMPATIENT)
    [one] = slack.copies("one")
    assert ("Possibly repeated" in one.text) == (not stored)
    [done] = slack.copies("done")
    assert done.thread_ts == one.ts


@pytest.mark.parametrize("stored", [True, False], ids=["stored", "not stored"])
def test_a_reply_with_an_ambiguous_answer_is_searched_for_in_its_thread(
    router: Router, slack: FakeSlack, *, stored: bool
) -> None:
    router.put(draft("one"))
    router.tick()
    router.put(reply("done", "one"))
    slack.fail(Kind.DROP, stored=stored, times=1)
    router.tick()
    router.tick()
    assert ("conversations.replies", A) in slack.calls
    [done] = slack.copies("done")
    assert ("Possibly repeated" in done.text) == (not stored)


def test_a_message_is_found_behind_many_others(router: Router, slack: FakeSlack) -> None:
    router.put(draft("before"))
    router.tick()
    router.put(draft("one"))
    slack.fail(Kind.DROP, stored=True, times=1)
    router.tick()
    for number in range(450):
        arguments = {"channel": A, "text": f"chatter {number}"}
        slack.answer("chat.postMessage", arguments, TOKEN)
    router.tick()
    assert router.state("one") == DeliveryState.SENT
    assert len(slack.copies("one")) == 1


def test_an_unreadable_history_counts_as_not_found_and_there_is_never_a_third_copy(
    router: Router, slack: FakeSlack
) -> None:
    slack.fail(Kind.DROP, stored=True, method="chat.postMessage", channel=A)
    slack.fail(Kind.ERROR, code="missing_scope", method="conversations.history")
    router.put(draft("one"), reply("done", "one"))
    reports = [router.tick(seconds_later=200) for _ in range(12)]
    assert len(slack.copies("one")) == 2
    assert "Possibly repeated" not in slack.copies("one")[0].text
    assert "Possibly repeated" in slack.copies("one")[1].text
    assert router.state("one") == DeliveryState.UNCERTAIN
    assert any("did not confirm message 'one'" in problem for report in reports for problem in report.problems)
    # The reply is sent nevertheless, and after its post.
    assert len(slack.copies("done")) == 2
    assert slack.all_keys() == ["one", "one", "done", "done"]


@pytest.mark.parametrize("history", [True, False], ids=["history", "no history"])
def test_when_slack_is_down_for_long_nothing_is_lost_and_nothing_is_sent_three_times(
    router: Router, slack: FakeSlack, *, history: bool
) -> None:
    router.put(draft("before"))
    router.tick()
    router.put(draft("one"), draft("two", B), reply("done", "one"))
    slack.fail(Kind.STATUS, status=503)
    for _ in range(60):
        router.tick(seconds_later=60)
    assert slack.all_keys() == ["before"]
    slack.clear_faults()
    if not history:
        slack.fail(Kind.ERROR, code="missing_scope", method="conversations.history")
    for _ in range(8):
        router.tick(seconds_later=60)
    assert sorted(map(str, slack.all_keys())) == ["before", "done", "one", "two"]
    assert slack.all_keys().index("one") < slack.all_keys().index("done")


def test_posts_that_are_dropped_while_the_history_works_are_sent_in_the_end(router: Router, slack: FakeSlack) -> None:
    router.put(draft("before"))
    router.tick()
    router.put(draft("one"))
    slack.fail(Kind.DROP, method="chat.postMessage")
    for _ in range(30):
        router.tick(seconds_later=60)
    slack.clear_faults()
    for _ in range(6):
        router.tick(seconds_later=60)
    assert slack.all_keys() == ["before", "one"]


def test_a_server_that_refuses_connections_is_tried_again(
    router: Router, slack: FakeSlack, client: "WebClient"
) -> None:
    router.put(draft("one"))
    router.client = make_client(TOKEN, "http://127.0.0.1:9/api/")
    delivered = router.tick()
    assert "ConnectionRefusedError" in delivered.faults[A] or "URLError" in delivered.faults[A]
    router.client = client
    router.tick()
    assert "repeated" not in slack.copies("one")[0].text


def test_a_failed_edit_is_repeated(router: Router, slack: FakeSlack) -> None:
    router.put(draft("one"))
    router.tick()
    router.put(edit("count", "one", NoticeKind.RESOLVED))
    slack.fail(Kind.DROP, stored=True, times=1)
    router.tick()
    router.tick(seconds_later=31)
    assert router.state("count") == DeliveryState.SENT
    [one] = slack.copies("one")
    assert "Resolved" in one.text
    assert "repeated" not in one.text


@pytest.mark.parametrize("kind", [Kind.HANG, Kind.DRIP])
def test_a_channel_that_hangs_delays_no_other(router: Router, slack: FakeSlack, kind: Kind) -> None:
    router.put(draft("one"), draft("two", B), draft("three", C), draft("four", B), draft("five", C))
    slack.fail(kind, seconds=1 if kind is Kind.DRIP else 30, channel=A)
    delivered = router.tick(IMPATIENT)
    assert sorted(message.key or "" for message in slack.messages if message.channel != A) == [
        "five",
        "four",
        "three",
        "two",
    ]
    assert (delivered.sent, delivered.waiting) == (4, 1)
    assert delivered.faults == {A: "no answer within 0.5 s"}


def test_after_a_fault_a_channel_is_skipped_for_the_rest_of_the_round(router: Router, slack: FakeSlack) -> None:
    router.put(*(draft(f"row {number}") for number in range(5)))
    slack.fail(Kind.STATUS, status=502, channel=A)
    router.tick()
    assert slack.calls == [("chat.postMessage", A)]


def test_a_channel_gets_about_one_message_a_second_and_channels_take_turns(router: Router, slack: FakeSlack) -> None:
    slack.enforces_rate = True
    router.put(*(draft(f"{channel} {number}", channel) for channel in (A, B, C) for number in range(3)))
    delivered = router.tick(Pace())
    assert delivered.sent == 9
    assert delivered.faults == {}
    # Nine in the time of three.
    assert {message.channel for message in slack.messages[:3]} == {A, B, C}


def test_what_does_not_fit_into_the_budget_waits_for_the_next_round(router: Router, slack: FakeSlack) -> None:
    router.put(*(draft(f"row {number}") for number in range(4)))
    delivered = router.tick(Pace(), budget_seconds=1.5)
    assert (delivered.sent, delivered.waiting) == (2, 2)
    assert router.tick().sent == 2
    assert len(slack.all_keys()) == 4


def test_two_rounds_at_once_never_send_one_row_twice_and_keep_the_order_of_a_thread(
    router: Router, slack: FakeSlack
) -> None:
    for number in range(12):
        channel = (A, B, C)[number % 3]
        router.put(
            draft(f"post {number:02}", channel),
            reply(f"more {number:02}", f"post {number:02}"),
            reply(f"done {number:02}", f"post {number:02}"),
        )
    threads = [threading.Thread(target=router.tick, kwargs={"seconds_later": 0}) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    router.tick()
    keys = [str(key) for key in slack.all_keys()]
    assert len(keys) == len(set(keys)) == 36
    for number in range(12):
        assert [key[:4] for key in keys if key.endswith(f"{number:02}")] == ["post", "more", "done"]
        [post] = slack.copies(f"post {number:02}")
        assert slack.copies(f"more {number:02}")[0].thread_ts == post.ts


def test_a_row_whose_holder_has_ended_is_searched_for_when_its_lease_has_expired(
    router: Router, slack: FakeSlack, clock: Clock
) -> None:
    router.put(draft("one"))
    with transaction(router.store) as connection:
        row = outbox.next_row(connection, A, clock())
        assert row is not None
        lease_until = clock() + dt.timedelta(seconds=60)
        outbox.change(connection, row, state=DeliveryState.SENDING, lease_until=lease_until, first_called_at=clock())
    assert router.tick(seconds_later=50).waiting == 1
    assert slack.calls == []
    assert router.tick(seconds_later=11).sent == 1
    assert "Possibly repeated" in slack.copies("one")[0].text


def test_a_change_of_a_row_that_was_changed_meanwhile_does_nothing(router: Router, clock: Clock) -> None:
    router.put(draft("one"))
    with transaction(router.store) as connection:
        row = outbox.next_row(connection, A, clock())
        assert row is not None
        assert outbox.change(connection, row, note="first")
        assert not outbox.change(connection, row, note="second")
    assert router.row("one")["note"] == "first"


def test_waiting_rows_are_reported_by_channel(router: Router, clock: Clock) -> None:
    router.put(draft("one"))
    begun = clock()
    clock.forward(60)
    router.put(draft("two"), draft("three", B))
    with reading(router.store) as connection:
        waiting = outbox.waiting(connection)
    assert [(one.channel, one.rows) for one in waiting] == [(A, 2), (B, 1)]
    assert waiting[0].oldest_at == begun


def test_the_secrets_of_the_settings_are_not_stored(router: Router) -> None:
    failure = Failure(
        "r1", router.clock(), "shop", "pay_job", cause=Cause("ValueError", "no access with hunter2-hunter2 here")
    )
    notice = Notice(NoticeKind.FAILING, "team-a", "shop", "pay_job", samples=[failure])
    with transaction(router.store) as connection:
        drafts = [Draft("one", "one", Operation.POST, A, notice)]
        outbox.enqueue(connection, drafts, router.policy, router.clock(), secrets={"hunter2-hunter2"})
    assert "hunter2" not in str(router.row("one"))
    assert "no access with [redacted] here" in router.row("one")["text"]
