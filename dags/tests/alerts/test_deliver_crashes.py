import random
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from dags.alerts import outbox, tables
from dags.alerts.deliver import deliver
from dags.alerts.store import reading, transaction
from dags.alerts.values import OPEN_STATES, Draft, Notice, NoticeKind, Operation, Policy
from dags.common.slack import make_client
from dags.tests.alerts.conftest import DEFAULT_CHANNEL, QUICK, Clock
from dags.tests.alerts.crashing import Crasher
from dags.tests.alerts.fake_slack import TOKEN, FakeSlack, Kind

A, B = "#alerts-a", "#alerts-b"
# Longer than a lease, and than the time after which an absent message is proof.
LATER_SECONDS = 400


@pytest.fixture(scope="module")
def crasher() -> Iterator[Crasher]:
    crasher = Crasher()
    yield crasher
    crasher.close()


class Round:
    """A thread of a post, replies and an edit in one channel, and a post in another. Numbered: many share a store."""

    def __init__(self, number: int, store: sa.Engine, slack: FakeSlack, clock: Clock) -> None:
        self.number, self.store, self.slack, self.clock = number, store, slack, clock
        self.client = make_client(TOKEN, slack.base_url)
        self.policy = Policy({}, DEFAULT_CHANNEL)

    def key(self, name: str) -> str:
        return f"{self.number} {name}"

    def put(self) -> None:
        def draft(name: str, channel: str, operation: Operation, thread: str, kind: NoticeKind) -> Draft:
            return Draft(
                self.key(name), self.key(thread), operation, channel, Notice(kind, "team-a", "shop", name, failures=1)
            )

        drafts = [
            draft("post", A, Operation.POST, "post", NoticeKind.FAILING),
            draft("more", A, Operation.REPLY, "post", NoticeKind.MORE_FAILURES),
            draft("edit", A, Operation.EDIT, "post", NoticeKind.RESOLVED),
            draft("done", A, Operation.REPLY, "post", NoticeKind.RESOLVED),
            draft("other", B, Operation.POST, "other", NoticeKind.FAILING),
        ]
        with transaction(self.store) as connection:
            outbox.enqueue(connection, drafts, self.policy, self.clock())

    def finish(self) -> None:
        """Tick in a process that survives, until nothing is left to do."""
        for _ in range(12):
            self.clock.forward(LATER_SECONDS)
            if not deliver(self.store, self.client, self.policy, self.clock, 20, QUICK).waiting:
                return

    def check(self) -> None:
        """Check that none is lost, none is sent three times, and "Resolved" never comes before "failing"."""
        names = ("post", "more", "done", "other")
        copies = {name: self.slack.copies(self.key(name)) for name in names}
        assert {name: len(found) for name, found in copies.items() if not 1 <= len(found) <= 2} == {}
        keys = self.slack.all_keys()
        first = [keys.index(self.key(name)) for name in ("post", "more", "done")]
        assert first == sorted(first)
        # A repeated message says so.
        for found in copies.values():
            assert all("Possibly repeated" in repeated.text for repeated in found[1:])
        assert "Resolved" in copies["post"][-1].text
        with reading(self.store) as connection:
            still_open = sa.select(tables.outbox.c.key).where(tables.outbox.c.state.in_(OPEN_STATES))
            assert connection.execute(still_open).scalars().all() == []


@pytest.fixture
def rounds(store: sa.Engine, slack: FakeSlack, clock: Clock) -> Iterator[Round]:
    def made() -> Iterator[Round]:
        number = 0
        while True:
            number += 1
            yield Round(number, store, slack, clock)

    return made()


# The slow tests below use both databases.
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
def test_a_delivery_that_is_killed_at_any_point_loses_nothing_and_sends_nothing_three_times(
    rounds: Iterator[Round], store_url: str, crasher: Crasher
) -> None:
    points = 0
    for point, round_ in enumerate(rounds, 1):
        round_.put()
        slack, now = round_.slack, round_.clock()
        crashed = crasher.deliver(store_url, slack.base_url, DEFAULT_CHANNEL, now, point)
        round_.finish()
        round_.check()
        if not crashed:
            points = point - 1
            break
    # Five rows, each with a commit and a call, each with a point before and after.
    assert points >= 30


@pytest.mark.slow
def test_a_delivery_that_is_killed_after_a_lost_answer_keeps_the_guarantees(
    rounds: Iterator[Round], store_url: str, crasher: Crasher
) -> None:
    for point in range(1, 40, 3):
        round_ = next(rounds)
        round_.put()
        slack = round_.slack
        slack.fail(Kind.DROP, stored=point % 2 == 0, method="chat.postMessage", times=1)
        crasher.deliver(store_url, slack.base_url, DEFAULT_CHANNEL, round_.clock(), point)
        slack.clear_faults()
        round_.finish()
        round_.check()


@pytest.mark.slow
def test_deliveries_that_are_killed_repeatedly_keep_the_guarantees(
    rounds: Iterator[Round], store_url: str, crasher: Crasher
) -> None:
    chance = random.Random(20251121)  # noqa: S311 - a repeatable choice of points
    for _ in range(80):
        round_ = next(rounds)
        round_.put()
        slack = round_.slack
        for _ in range(chance.randrange(1, 6)):
            point = chance.randrange(1, 30)
            crasher.deliver(store_url, slack.base_url, DEFAULT_CHANNEL, round_.clock(), point)
            round_.clock.forward(chance.choice([10, 70, 400]))
        round_.finish()
        round_.check()
