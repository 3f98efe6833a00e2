import datetime as dt
from collections.abc import Mapping
from typing import Any, cast

import pytest
import sqlalchemy as sa

from dags.alerts import outbox, tables
from dags.alerts.store import reading, transaction
from dags.alerts.values import Channel, DeliveryState, Draft, Notice, NoticeKind, Operation, Policy
from dags.tests.alerts.conftest import Clock

A, B = "#alerts-a", "#alerts-b"


def draft(key: str, thread: str | None = None, operation: Operation = Operation.POST, channel: str = A) -> Draft:
    return Draft(key, thread or key, operation, channel, Notice(NoticeKind.FAILING, "team-a", job_name=key))


def rows(store: sa.Engine) -> list[Mapping[str, Any]]:
    with reading(store) as connection:
        return [dict(row) for row in connection.execute(sa.select(tables.outbox).order_by("id")).mappings()]


def test_a_row_exists_exactly_when_its_decision_is_committed(store: sa.Engine, policy: Policy, clock: Clock) -> None:
    def come_to_nothing() -> None:
        with transaction(store) as connection:
            outbox.enqueue(connection, [draft("one")], policy, clock())
            raise ValueError("a decision that came to nothing")

    with pytest.raises(ValueError, match="came to nothing"):
        come_to_nothing()
    assert rows(store) == []
    with transaction(store) as connection:
        assert outbox.enqueue(connection, [draft("one"), draft("two")], policy, clock()) == 2
    assert [(row["key"], row["state"], row["created_at"]) for row in rows(store)] == [
        ("one", DeliveryState.PENDING, clock()),
        ("two", DeliveryState.PENDING, clock()),
    ]


def test_posts_come_first_and_then_each_thread_in_order(store: sa.Engine, policy: Policy, clock: Clock) -> None:
    drafts = [draft("a"), draft("a1", "a", Operation.REPLY), draft("a2", "a", Operation.EDIT), draft("b"), draft("c")]
    order: list[str] = []
    with transaction(store) as connection:
        outbox.enqueue(connection, drafts, policy, clock())
        while (row := outbox.next_row(connection, A, clock())) is not None:
            order.append(row.key)
            outbox.change(connection, row, state=DeliveryState.SENT)
    assert order == ["a", "b", "c", "a1", "a2"]


@pytest.mark.parametrize("state", [DeliveryState.SENDING, DeliveryState.UNSURE])
def test_nothing_overtakes_a_post_that_may_or_may_not_have_been_sent(
    store: sa.Engine, policy: Policy, clock: Clock, state: DeliveryState
) -> None:
    later = clock() + dt.timedelta(seconds=60)
    with transaction(store) as connection:
        outbox.enqueue(connection, [draft("a"), draft("a1", "a", Operation.REPLY)], policy, clock())
        post = outbox.next_row(connection, A, clock())
        assert post is not None
        outbox.change(connection, post, state=state, lease_until=later, not_before=later)
        assert outbox.next_row(connection, A, clock()) is None
        due = outbox.next_row(connection, A, later)
        assert due is not None
        assert (due.key, due.state) == ("a", state)


def test_only_a_pending_edit_is_superseded(store: sa.Engine, policy: Policy, clock: Clock) -> None:
    with transaction(store) as connection:
        outbox.enqueue(connection, [draft("a"), draft("a1", "a", Operation.EDIT)], policy, clock())
        post = outbox.next_row(connection, A, clock())
        assert post is not None
        outbox.change(connection, post, state=DeliveryState.SENT)
        edit = outbox.next_row(connection, A, clock())
        assert edit is not None
        outbox.change(connection, edit, state=DeliveryState.SENDING, lease_until=clock())
        outbox.enqueue(connection, [draft("a2", "a", Operation.EDIT), draft("b")], policy, clock())
        outbox.enqueue(connection, [draft("a3", "a", Operation.EDIT)], policy, clock())
    assert [(row["key"], row["state"]) for row in rows(store)] == [
        ("a", DeliveryState.SENT),
        ("a1", DeliveryState.SENDING),
        ("a2", DeliveryState.SUPERSEDED),
        ("b", DeliveryState.PENDING),
        ("a3", DeliveryState.PENDING),
    ]


def test_a_rerouted_post_takes_its_thread_along(store: sa.Engine, policy: Policy, clock: Clock) -> None:
    with transaction(store) as connection:
        outbox.enqueue(connection, [draft("a"), draft("a1", "a", Operation.REPLY), draft("b")], policy, clock())
        post = outbox.next_row(connection, A, clock())
        assert post is not None
        outbox.reroute(connection, post, B, "is_archived")
        outbox.enqueue(connection, [draft("a2", "a", Operation.EDIT)], policy, clock())
    assert [(row["key"], row["channel"], row["refused_channel"], row["refusal"]) for row in rows(store)] == [
        ("a", B, A, "is_archived"),
        ("a1", B, A, "is_archived"),
        ("b", A, None, None),
        ("a2", B, A, "is_archived"),
    ]


def test_a_notice_that_cannot_be_formatted_is_sent_plainly_and_delays_no_other(
    store: sa.Engine, policy: Policy, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = cast("NoticeKind", "a kind of tomorrow")
    odd_draft = Draft("odd", "odd", Operation.POST, A, Notice(unknown, "team-a", job_name="odd"))
    with transaction(store) as connection:
        assert outbox.enqueue(connection, [odd_draft, draft("good")], policy, clock()) == 2
    odd, good = rows(store)
    assert "`odd`: a kind of tomorrow. Owner: `team-a`" in odd["text"]
    assert good["blocks"]
    assert "could not be formatted" in caplog.text


def test_the_facts_about_a_channel_are_kept(store: sa.Engine, clock: Clock) -> None:
    with transaction(store) as connection:
        assert outbox.read_channel(connection, A) == Channel(A)
        outbox.set_channel(connection, A, slack_id="C1")
        outbox.set_channel(connection, A, wait_until=clock(), wait_reason="ratelimited")
        assert outbox.read_channel(connection, A) == Channel(A, "C1", clock(), "ratelimited")
