"""Ticks that end anywhere, on the databases of a real instance: nothing is lost and nothing is sent three times."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from dags.alerts import store, tables
from dags.alerts.decide import incident_key
from dags.alerts.values import OPEN_STATES
from dags.tests.alerts.fake_slack import Stored
from dags.tests.alerts.site import Site
from dags.tests.alerts.ticking import Ticker
from dags.tests.alerts.world import op_job

# Longer than a lease, and than the time after which the history of a channel is proof.
LATER_SECONDS = 400


@pytest.fixture(scope="module")
def ticker() -> Iterator[Ticker]:
    ticker = Ticker()
    yield ticker
    ticker.close()


def first_text(message: Stored) -> str:
    """Return the first line of a message before any edit."""
    return (message.earlier_texts or [message.text])[0].splitlines()[0]


@dataclass
class Round:
    """A job that starts to fail and one that succeeds again, both past the settle time and not yet notified."""

    site: Site
    number: int
    posts: list[str] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)

    def put(self) -> None:
        """Let a job succeed whose failure was notified, and another job fail."""
        recovering, failing = op_job(f"recovering_{self.number}"), op_job(f"failing_{self.number}", ("team-b",))
        self.fail(recovering.name, "team-a")
        self.site.settle()
        self.succeed(recovering.name, "team-a", self.posts[-1])
        self.fail(failing.name, "team-b")
        self.site.world.forward(21)

    def fail(self, name: str, owner: str) -> None:
        """Fail a run of a job."""
        run_id = self.site.world.fail(op_job(name, (owner,)))
        self.posts.append(incident_key(run_id, owner))

    def succeed(self, name: str, owner: str, post: str) -> None:
        """Let a run of a job that has failed succeed."""
        self.site.world.succeed(op_job(name, (owner,)))
        self.resolved.append(post)

    def finish(self) -> None:
        """Tick without an interruption until nothing is left to send."""
        for _ in range(12):
            if not self.site.settle(LATER_SECONDS).delivered.waiting:
                return

    def check(self) -> None:
        """Assert that none is lost or sent three times, "Resolved" follows "failing", and each has a disposition."""
        slack = self.site.slack
        copies = {key: len(slack.copies(key)) for key in self.posts}
        # A failure and its success that were notified in one message have no reply.
        both = {key for key in self.resolved if "Resolved" in first_text(slack.copies(key)[0])}
        copies |= {f"{key}/resolved": len(slack.copies(f"{key}/resolved")) for key in self.resolved if key not in both}
        assert {key: count for key, count in copies.items() if not 1 <= count <= 2} == {}
        keys = slack.all_keys()
        for key in set(self.resolved) - both:
            assert keys.index(key) < keys.index(f"{key}/resolved")
        for key in self.resolved:
            assert "Resolved" in slack.copies(key)[-1].text.splitlines()[0]
        assert self.site.without_disposition() == []
        assert None not in self.site.dispositions().values()
        with store.reading(self.site.store) as connection:
            still_open = sa.select(tables.outbox.c.key).where(tables.outbox.c.state.in_(OPEN_STATES))
            assert connection.execute(still_open).scalars().all() == []


def end_at_points(site: Site, ticker: Ticker, every: int) -> None:
    """Run a round for each of the points, until a tick passes them all."""
    for number in range(1, 200, every):
        round_ = Round(site, number)
        round_.put()
        home = site.home
        completed = ticker.tick(home, site.slack.base_url, site.world.now, crash_at=number)
        round_.finish()
        round_.check()
        if completed:
            break
    # Commits of ingesting, deciding, composing and of three messages, and the calls of these.
    assert number > 20


# The slow tests below use both databases.
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
def test_a_tick_that_ends_at_a_commit_or_call_loses_nothing_and_sends_nothing_three_times(
    site: Site, ticker: Ticker
) -> None:
    end_at_points(site, ticker, 11)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tick_that_ends_at_any_commit_or_call_loses_nothing_and_sends_nothing_three_times(
    site: Site, ticker: Ticker
) -> None:
    end_at_points(site, ticker, 1)


def kill_at_random(site: Site, ticker: Ticker, rounds: int) -> None:
    """Run rounds in which several ticks end at random points, or are killed at random moments."""
    chance = random.Random(20261121)  # noqa: S311 - a repeatable choice
    for number in range(rounds):
        round_ = Round(site, number)
        round_.put()
        for step in range(chance.randrange(1, 4)):
            if chance.random() < 0.5:
                ticker.tick(site.home, site.slack.base_url, site.world.now, crash_at=chance.randrange(1, 60))
            else:
                seconds = chance.uniform(0.02, 0.6)
                ticker.tick(site.home, site.slack.base_url, site.world.now, kill_after_seconds=seconds)
            if chance.random() < 0.3:
                round_.fail(f"failing_{number}_late_{step}", "team-a")
            site.world.forward(chance.choice([5, 25, 70, 400]))
        round_.finish()
        round_.check()


@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
def test_ticks_that_are_killed_at_random_keep_the_guarantees(site: Site, ticker: Ticker) -> None:
    kill_at_random(site, ticker, 8)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ticks_that_are_killed_at_random_two_hundred_times_keep_the_guarantees(site: Site, ticker: Ticker) -> None:
    kill_at_random(site, ticker, 200)
