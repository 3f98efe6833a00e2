import datetime as dt

import pytest
import sqlalchemy as sa

from dags.alerts import mutes, store, tables
from dags.alerts.mutes import MuteError, matches, mute_of, parse_duration, parse_match
from dags.alerts.queries.mutes import delete_summarized, without_summary
from dags.alerts.values import Finding, Mute, MuteKind, MuteSubject
from dags.common.tags import ASSET_JOB
from dags.tests.alerts.site import DEFAULT_CHANNEL, Site
from dags.tests.alerts.world import asset_job, op_job

NOW = dt.datetime(2025, 11, 21, 7, 0, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)


def mute_on(match: str) -> Mute:
    kind, pattern = parse_match(match)
    return Mute(1, kind, pattern, "known", NOW, NOW + HOUR)


def mute(site: Site, match: str, duration: dt.timedelta = HOUR) -> Mute:
    with store.transaction(site.store) as connection:
        return mutes.add(connection, match, duration, "the source is moving", site.world())


@pytest.mark.parametrize(
    ("match", "subject"),
    [
        ("owner:team-a", MuteSubject(owner="team-a")),
        ("job:web_*", MuteSubject(job_name="web_daily_job")),
        ("location:web", MuteSubject(location="web")),
        ("asset:web_*", MuteSubject(asset_keys=("web_a", "web_b"))),
        ("asset:*", MuteSubject(asset_keys=("raw/web_a",))),
        ("finding:schedule/web/*", MuteSubject(finding="schedule/web/nightly")),
    ],
)
def test_a_mute_matches_what_its_pattern_names(match: str, subject: MuteSubject) -> None:
    assert matches(mute_on(match), subject)


@pytest.mark.parametrize(
    ("match", "subject"),
    [
        ("owner:team-a", MuteSubject(owner=None)),
        ("owner:team-a", MuteSubject(owner="team-ab")),
        ("owner:team-a", MuteSubject(job_name="team-a")),
        ("job:Web_*", MuteSubject(job_name="web_daily_job")),
        ("asset:*", MuteSubject(asset_keys=())),
        ("asset:web_*", MuteSubject(asset_keys=("web_a", "raw"))),
    ],
)
def test_in_doubt_a_mute_does_not_match(match: str, subject: MuteSubject) -> None:
    assert not matches(mute_on(match), subject)


def test_a_mute_applies_from_its_start_until_just_before_its_end() -> None:
    one = mute_on("job:a")
    held = [
        at for at in (NOW - HOUR / 60, NOW, NOW + HOUR / 2, NOW + HOUR) if mute_of([one], at, MuteSubject(job_name="a"))
    ]
    assert held == [NOW, NOW + HOUR / 2]


@pytest.mark.parametrize("text", ["web_*", "jobs:a", "job:", "job: ", ""])
def test_an_invalid_match_is_refused_with_the_valid_forms(text: str) -> None:
    with pytest.raises(MuteError, match=r"owner:PATTERN, job:PATTERN.*as in job:web_\*"):
        parse_match(text)


def test_durations_are_in_minutes_hours_and_days() -> None:
    assert [parse_duration(text) for text in ("30m", "4h", "14d")] == [HOUR / 2, 4 * HOUR, dt.timedelta(days=14)]
    assert parse_match("asset:a:b") == (MuteKind.ASSET, "a:b")


@pytest.mark.parametrize("text", ["4", "4 h", "0h", "-1h", "1w", "1.5h", ""])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(MuteError, match="as in 30m, 4h or 2d"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["15d", "337h", "20161m"])
def test_a_mute_of_more_than_14_days_is_refused(text: str) -> None:
    with pytest.raises(MuteError, match="longer than 14 days"):
        parse_duration(text)


def test_a_muted_failure_is_suppressed_has_a_disposition_and_is_in_the_summary_at_the_end(site: Site) -> None:
    made = mute(site, "job:plain")
    runs = [site.world.fail(op_job("plain")) for _ in range(3)]
    other = site.world.fail(op_job("other"))
    site.settle()
    assert [first_line(post.text) for post in site.posts("#a")] == ["*🔴 `other` is failing*"]
    assert {site.dispositions()[run] for run in runs} == {f"muted by mute {made.id}"}
    assert (site.dispositions()[other] or "").startswith("notified")
    assert site.without_disposition() == []
    site.settle(3600)
    (summary,) = [post for post in site.posts("#a") if "mute" in post.text]
    assert "it suppressed 3 alerts" in summary.text
    assert "plain: 3 failures" in summary.text
    assert "the source is moving" in summary.text
    assert all(run[:8] in summary.text for run in runs)
    site.settle()
    assert len(site.posts("#a")) == 2


def test_failures_before_and_after_a_mute_are_notified(site: Site) -> None:
    site.world.fail(op_job("before"))
    site.world.forward(1)
    mute(site, "owner:*")
    site.world.forward(3600)
    site.world.fail(op_job("after"))
    site.settle()
    assert sorted(first_line(post.text) for post in site.posts("#a")) == [
        "*🔴 `after` is failing*",
        "*🔴 `before` is failing*",
    ]


def test_a_failure_that_arrives_after_the_summary_is_notified(site: Site) -> None:
    mute(site, "job:plain", HOUR / 60)
    site.settle(90)
    with store.reading(site.store) as connection:
        assert without_summary(connection) == []
    moment = site.world.now
    site.world.now = moment - dt.timedelta(seconds=85)
    site.world.fail(op_job("plain"))
    site.world.now = moment
    site.settle()
    assert len(site.posts("#a")) == 1


def test_every_owner_gets_a_summary_of_their_own(site: Site) -> None:
    mute(site, "location:web")
    site.world.fail(op_job("two_teams", ("team-a", "team-b")), ["step_0", "step_1"])
    site.settle(3700)
    assert ["it suppressed 1 alert" in post.text for post in (*site.posts("#a"), *site.posts("#b"))] == [True, True]


def test_a_mute_that_suppressed_nothing_has_no_summary(site: Site) -> None:
    mute(site, "owner:*")
    site.settle(3700)
    assert site.everything() == {"#a": [], "#b": [], DEFAULT_CHANNEL: []}


def test_a_muted_backfill_opens_no_incident(site: Site) -> None:
    mute(site, "asset:x")
    job = asset_job((("x", "team-a"),))
    for _ in range(3):
        site.world.fail(job, ["x"], assets=["x"], tags={"dagster/backfill": "abcdefgh"})
    site.settle(3700)
    (summary,) = site.posts("#a")
    assert "it suppressed 3 alerts" in summary.text


def test_a_summary_names_the_assets_of_asset_runs(site: Site) -> None:
    mute(site, "asset:x")
    site.world.fail(asset_job((("x", "team-a"),)), ["x"], assets=["x"])
    site.settle(3700)
    (summary,) = site.posts("#a")
    assert "x: 1 failure" in summary.text
    assert ASSET_JOB not in summary.text


def test_unmuting_ends_a_mute_now_and_sends_its_summary(site: Site) -> None:
    made = mute(site, "job:plain")
    site.world.fail(op_job("plain"))
    site.world.forward(1)
    with store.transaction(site.store) as connection:
        mutes.end(connection, made.id, site.world())
    site.settle()
    assert ["it suppressed 1 alert" in post.text for post in site.posts("#a")] == [True]
    with store.transaction(site.store) as connection, pytest.raises(MuteError, match=f"No mute {made.id} is in force"):
        mutes.end(connection, made.id, site.world())


def test_a_muted_finding_is_counted_and_is_notified_when_it_outlasts_the_mute(site: Site) -> None:
    made = mute(site, "finding:location/*")
    broken = Finding("location/web", "team-a", "Code location web does not load", "boom", site.world(), "web")
    for seconds in (0, 300, 3600):
        site.world.forward(seconds)
        site.tick(watch=lambda: [broken])
        with store.reading(site.store) as connection:
            assert mutes.count(connection, made) == 1
    site.settle()
    assert sorted(first_line(post.text) for post in site.posts("#a")) == [
        "*🔔 `A mute has ended: it suppressed 1 alert`*",
        "*🟠 `Code location web does not load`*",
    ]


def test_a_mute_does_not_resolve_a_finding_that_was_notified_before(site: Site) -> None:
    broken = Finding("location/web", "team-a", "Code location web does not load", "boom", site.world(), "web")
    site.tick(watch=lambda: [broken])
    site.settle()
    mute(site, "owner:team-a")
    site.world.forward(300)
    site.tick(watch=lambda: [broken])
    site.settle()
    (post,) = site.posts("#a")
    assert "Resolved" not in post.text
    site.world.forward(300)
    site.tick(watch=list)
    site.settle()
    (post,) = site.posts("#a")
    assert "Resolved" in post.text


def test_a_mute_without_a_reason_is_refused(store_url: str) -> None:
    opened = store.open_store(store_url)
    with store.transaction(opened) as connection, pytest.raises(MuteError, match="needs a reason"):
        mutes.add(connection, "job:a", HOUR, " ", NOW)
    opened.dispose()


def test_mutes_are_deleted_after_the_retention_and_those_in_force_are_not(site: Site) -> None:
    mute(site, "job:plain")
    site.world.fail(op_job("plain"))
    site.settle(3700)
    mute(site, "job:other", dt.timedelta(days=14))
    with store.transaction(site.store) as connection:
        delete_summarized(connection, site.world.now + HOUR)
        left = connection.execute(sa.select(tables.mutes.c.pattern)).scalars().all()
        assert list(left) == ["other"]
        assert connection.execute(sa.select(tables.outcomes.c.muted_by)).scalars().all() == ["mute 1"]


def first_line(text: str) -> str:
    return text.splitlines()[0]
