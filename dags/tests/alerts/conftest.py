"""Fixtures of the tests of the alert router: a clock, a store on either database, a fake Slack."""

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from dags.alerts.store import open_store
from dags.alerts.transitions import Pace
from dags.alerts.values import Policy
from dags.common.slack import make_client
from dags.tests.alerts.fake_slack import TOKEN, FakeSlack, serving
from dags.tests.alerts.site import Site, opened

if TYPE_CHECKING:
    from slack_sdk import WebClient

DEFAULT_CHANNEL = "#alerts-data-platform"
CHANNEL_OF_OWNER = {"team-a": "#alerts-a", "team-b": "#alerts-b", "team-c": "#alerts-c"}
# As in production, but with no second between two messages.
QUICK = Pace(between_calls_seconds=0)


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = dt.datetime(2025, 11, 21, 7, 0, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def policy() -> Policy:
    """Return a policy with three teams, a channel for each, and the default channel."""
    return Policy(CHANNEL_OF_OWNER, DEFAULT_CHANNEL, domain="dagster.example.com")


@pytest.fixture
def slack(clock: Clock) -> Iterator[FakeSlack]:
    """Serve a Slack with the channels of the policy, whose time stamps follow the clock."""
    with serving(*CHANNEL_OF_OWNER.values(), DEFAULT_CHANNEL, clock=lambda: clock().timestamp()) as fake:
        yield fake


@pytest.fixture
def client(slack: FakeSlack) -> "WebClient":
    return make_client(TOKEN, slack.base_url)


@pytest.fixture(params=["sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the address of an empty store, on each database in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'alerts.sqlite'}"
    dsn: str = request.getfixturevalue("postgres_dsn")
    return dsn


@pytest.fixture
def store(store_url: str) -> Iterator[sa.Engine]:
    """Open an empty store, on each database in turn."""
    engine = open_store(store_url)
    yield engine
    engine.dispose()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep proxies out of the connection between a test and its Slack."""
    for name in [name for name in os.environ if name.lower() in ("http_proxy", "https_proxy", "all_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture(params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest, memory_path: Path) -> Iterator[Site]:
    """Open a whole alert router, on each database in turn, which has ticked once."""
    dsn = request.getfixturevalue("dagster_dsn") if request.param == "postgres" else None
    with opened(memory_path / "home", dsn) as made:
        made.tick()
        yield made
