"""A whole alert router in a test: an instance, a store, a fake Slack, and ticks when the test wants them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from slack_sdk import WebClient

from dags.alerts import store
from dags.alerts.tables import attempts, outcomes
from dags.alerts.tick import TickReport, tick
from dags.alerts.transitions import Pace
from dags.alerts.values import AttemptState, AttemptStatus, Policy
from dags.common.slack import make_client
from dags.tests.alerts.fake_slack import TOKEN, FakeSlack, Stored, serving
from dags.tests.alerts.world import World, local_instance

QUICK = Pace(between_calls_seconds=0)
DEFAULT_CHANNEL = "#default"
POLICY = Policy(
    channel_of_owner={"team-a": "#a", "team-b": "#b"},
    default_channel=DEFAULT_CHANNEL,
    thresholds={"thrice": 3},
    team_of_location={"web": "team-a"}.get,
    domain="dagster.example.com",
)
SETTLED_SECONDS = 21


@dataclass
class Site:
    """An instance, a store and a Slack, for tests of ticks."""

    world: World
    store: sa.Engine
    slack: FakeSlack
    client: WebClient
    address: str | Path
    policy: Policy = POLICY

    @property
    def home(self) -> Path:
        """The directory of the instance, from which another process can open it too."""
        return Path(self.world.instance.root_directory)

    def tick(self, **how: Any) -> TickReport:
        """Tick now."""
        return tick(self.world.instance, self.store, self.client, self.policy, self.world, pace=QUICK, **how)

    def settle(self, seconds: float = SETTLED_SECONDS) -> TickReport:
        """Wait until everything that has happened is due, and tick."""
        self.world.forward(seconds)
        return self.tick()

    def posts(self, channel: str) -> list[Stored]:
        """Return the messages of a channel that are no replies."""
        return [message for message in self.slack.in_channel(channel) if message.thread_ts is None]

    def replies(self, channel: str) -> list[Stored]:
        """Return the replies of a channel."""
        return [message for message in self.slack.in_channel(channel) if message.thread_ts is not None]

    def everything(self) -> dict[str, list[str]]:
        """Return the first line of every message, by channel."""
        return {
            channel: [message.text.splitlines()[0] for message in self.slack.in_channel(channel)]
            for channel in ("#a", "#b", DEFAULT_CHANNEL)
        }

    def dispositions(self) -> dict[str, str | None]:
        """Return what became of each failed run, by its id."""
        with store.reading(self.store) as connection:
            decided = {
                row.run_id: row.disposition for row in connection.execute(sa.select(outcomes).where(outcomes.c.failed))
            }
            failed = sa.select(attempts).where(attempts.c.status == AttemptStatus.FAILED)
            return {row.run_id: row.disposition or decided.get(row.run_id) for row in connection.execute(failed)}

    def without_disposition(self) -> list[str]:
        """Return the failed runs that are decided and have no disposition. There must be none."""
        has_one = sa.exists().where(
            outcomes.c.run_id == attempts.c.run_id, outcomes.c.failed, outcomes.c.disposition.is_not(None)
        )
        query = sa.select(attempts.c.run_id).where(
            attempts.c.status == AttemptStatus.FAILED,
            attempts.c.state == AttemptState.DONE,
            attempts.c.disposition.is_(None),
            sa.not_(has_one),
        )
        with store.reading(self.store) as connection:
            return list(connection.execute(query).scalars())

    def with_policy(self, **changes: Any) -> None:
        """Change the policy from now on."""
        self.policy = replace(self.policy, **changes)


@contextlib.contextmanager
def opened(home: Path, postgres_dsn: str | None = None, settings: str = "") -> Iterator[Site]:
    """Open a site in a directory, with its tables in files, or in one Postgres database as in production."""
    with (
        local_instance(home, postgres_dsn, settings) as instance,
        serving("#a", "#b", DEFAULT_CHANNEL) as slack,
    ):
        address = store.address_of(instance)
        opened_store = store.open_store(address)
        try:
            yield Site(World(instance), opened_store, slack, make_client(TOKEN, slack.base_url), address)
        finally:
            opened_store.dispose()
