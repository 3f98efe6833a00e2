import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from dagster._daemon.types import DaemonHeartbeat

from dags.alerts import health, mutes, store, tables
from dags.alerts.health import RouterFigures, UnknownHealthError, problems
from dags.alerts.values import Waiting
from dags.tests.alerts.fake_slack import Kind
from dags.tests.alerts.site import Site
from dags.tests.alerts.world import local_instance, op_job

NOW = dt.datetime(2025, 11, 21, 7, 0, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
GOOD = RouterFigures(ticked_at=NOW - MINUTE, sensor_daemon_at=NOW - MINUTE)


def waiting(since: dt.datetime) -> RouterFigures:
    return replace(GOOD, waiting=[Waiting("#a", 2, since, "status 503")])


@pytest.mark.parametrize(
    "figures",
    [GOOD, waiting(NOW - 4 * MINUTE), replace(GOOD, ticked_at=NOW - 4 * MINUTE), replace(GOOD, rescued=3, uncertain=1)],
    ids=["quiet", "a message waits a little", "a late tick", "rescues"],
)
def test_a_working_router_is_healthy(figures: RouterFigures) -> None:
    assert problems(figures, NOW) == []


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        (replace(GOOD, ticked_at=None), "has never ticked"),
        (replace(GOOD, ticked_at=NOW - 6 * MINUTE), "last tick ended 6 minutes ago"),
        (replace(GOOD, sensor_daemon_at=None), "Start dagster-daemon"),
        (replace(GOOD, sensor_daemon_at=NOW - 180 * MINUTE), "came 3 hours ago"),
        (replace(GOOD, auth_refusal="Slack rejected the token (invalid_auth)"), "invalid_auth"),
        (waiting(NOW - 6 * MINUTE), "2 messages to #a have been waiting, the oldest for 6 minutes: status 503"),
    ],
    ids=["no tick", "an old tick", "no daemon", "an old daemon", "the token", "an old message"],
)
def test_each_problem_is_reported_once_with_where_to_look(figures: RouterFigures, words: str) -> None:
    (problem,) = problems(figures, NOW)
    assert words in problem


def test_the_figures_show_waiting_messages_and_open_incidents(site: Site) -> None:
    instance, world = site.world.instance, site.world
    instance.add_daemon_heartbeat(DaemonHeartbeat(world.now.timestamp(), "SENSOR", "id", []))
    world.fail(op_job("plain"))
    site.settle()
    with store.transaction(site.store) as connection:
        mutes.add(connection, "job:muted", dt.timedelta(hours=1), "known", world())
    world.fail(op_job("muted"))
    site.settle()
    world.forward(5)
    world.fail(op_job("unread"))
    world.forward(5)
    figures = health.read(instance, site.store, world())
    assert problems(figures, world()) == []
    assert figures.ticked_at is not None
    assert world() - figures.ticked_at == dt.timedelta(seconds=10)
    assert (figures.unread, figures.undecided, figures.held) == (1, 0, 0)
    assert figures.unread_since is not None
    assert 4 < (world() - figures.unread_since).total_seconds() < 6
    assert [(one.channel, one.failures, one.title) for one in figures.incidents] == [("#a", 1, "plain")]
    assert [(mute.match, kept) for mute, kept in figures.mutes] == [("job:muted", 1)]


def test_a_refused_token_is_a_problem_until_slack_accepts_a_message(site: Site) -> None:
    site.slack.fail(Kind.ERROR, code="invalid_auth", times=1)
    site.world.fail(op_job("plain"))
    site.settle()
    figures = health.read(site.world.instance, site.store, site.world())
    assert "Slack rejected the token (invalid_auth)" in (figures.auth_refusal or "")
    assert [one.rows for one in figures.waiting] == [1]
    site.settle(61)
    assert len(site.posts("#a")) == 1
    assert health.read(site.world.instance, site.store, site.world()).auth_refusal is None


def test_reading_the_figures_creates_no_store(tmp_path: Path) -> None:
    with local_instance(tmp_path) as instance, health.existing_store(instance) as found:
        assert found is None
        figures = health.read(instance, found, NOW)
    assert len(problems(figures, NOW)) == 2
    assert not (tmp_path / "alerts.sqlite").exists()


def test_a_database_without_tables_is_no_store_and_stays_without_tables(tmp_path: Path, dagster_dsn: str) -> None:
    with local_instance(tmp_path, dagster_dsn) as instance:
        for _ in range(2):
            with health.existing_store(instance) as found:
                assert found is None


@pytest.mark.parametrize("version", [0, 99])
def test_a_store_of_another_release_is_not_changed(site: Site, version: int) -> None:
    with store.transaction(site.store) as connection:
        connection.execute(sa.update(tables.schema_version).values(version=version))
    with pytest.raises(UnknownHealthError, match=f"at version {version}"), health.existing_store(site.world.instance):
        pass
    with store.reading(site.store) as connection:
        assert store.version_of(connection) == version


def test_a_rescue_is_counted(site: Site) -> None:
    site.world.fail(op_job("plain"))
    site.settle()
    with store.transaction(site.store) as connection:
        connection.execute(sa.update(tables.attempts).values(rescued=True))
    figures = health.read(site.world.instance, site.store, site.world())
    assert (figures.rescued, figures.rescued_in_a_day) == (1, 1)
    site.world.forward(2 * 86400)
    figures = health.read(site.world.instance, site.store, site.world())
    assert (figures.rescued, figures.rescued_in_a_day) == (1, 0)
