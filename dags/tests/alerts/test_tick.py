import datetime as dt
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from dags.alerts import store, tables
from dags.alerts.queries import incidents
from dags.alerts.retention import delete_old_rows
from dags.alerts.tick import WatchError
from dags.alerts.values import Finding
from dags.common.event_log import private
from dags.common.tags import ASSET_JOB
from dags.tests.alerts.fake_slack import Kind
from dags.tests.alerts.site import DEFAULT_CHANNEL, Site, opened
from dags.tests.alerts.world import asset_job, op_job, user_error

HOUR = 3600
WILL_RETRY = {"dagster/will_retry": "true"}
ASSETS = (("x", "team-a"), ("y", "team-a"), ("z", "team-b"))


def first_line(site: Site, channel: str = "#a") -> str:
    (post,) = site.posts(channel)
    return post.text.splitlines()[0]


def test_a_failure_is_notified_once_in_the_channel_of_the_owner_of_the_failed_step(site: Site) -> None:
    site.world.fail(op_job("two_teams", ("team-a", "team-b")), ["step_1"])
    for _ in range(4):
        site.settle()
    assert len(site.posts("#b")) == 1
    assert "`two_teams` is failing" in site.posts("#b")[0].text
    assert "step_1" in site.posts("#b")[0].text
    assert "ValueError" in site.posts("#b")[0].text
    assert site.posts("#a") == site.replies("#b") == []


def test_a_failure_is_not_notified_before_the_settle_time(site: Site) -> None:
    site.world.fail(op_job("plain"))
    site.settle(19)
    assert site.posts("#a") == []
    site.settle(2)
    assert len(site.posts("#a")) == 1


def test_each_owner_of_failed_steps_is_notified_of_their_own_steps(site: Site) -> None:
    site.world.fail(op_job("two_teams", ("team-a", "team-b")), ["step_0", "step_1"])
    site.settle()
    assert "step_0" in site.posts("#a")[0].text
    assert "step_1" not in site.posts("#a")[0].text
    assert "step_1" in site.posts("#b")[0].text


def test_a_success_resolves_the_incident_in_its_thread_and_in_its_message(site: Site) -> None:
    job = op_job("plain")
    site.world.fail(job)
    site.settle()
    site.world.succeed(job)
    site.settle()
    (post,), (reply,) = site.posts("#a"), site.replies("#a")
    assert "Resolved" in post.text
    assert "Resolved" in reply.text
    assert reply.thread_ts == post.ts


def test_a_failure_and_a_success_that_one_tick_sees_are_one_message(site: Site) -> None:
    job = op_job("plain")
    site.world.fail(job)
    site.world.forward(60)
    site.world.succeed(job)
    site.settle()
    assert "Resolved" in first_line(site)
    assert site.replies("#a") == []


def test_a_skipped_success_resolves_a_failure_that_arrives_late(site: Site) -> None:
    job = op_job("plain")
    site.world.fail(job, tags={"dagster/schedule_name": "hourly"})
    site.settle()
    # By hand, which is a series of its own, and without a failure as yet.
    late = site.world.start(job)
    failed_at = site.world.now
    site.world.forward(60)
    site.world.succeed(job)
    site.settle()
    seen_at, site.world.now = site.world.now, failed_at
    site.world.end(late, job.name, dg.DagsterEventType.RUN_FAILURE)
    site.world.now = seen_at
    site.settle()
    assert ["Resolved" in post.text for post in site.posts("#a")] == [False, True]


def test_a_job_with_a_threshold_is_notified_when_it_is_reached_and_not_before(site: Site) -> None:
    job = op_job("thrice")
    for _ in range(2):
        site.world.fail(job)
        site.settle()
    assert site.posts("#a") == []
    assert set(site.dispositions().values()) == {"below the threshold: 2 of 3"}
    site.world.start(job)
    site.world.fail(job)
    site.settle()
    assert len(site.posts("#a")) == 1
    assert "3 consecutive failures" in site.posts("#a")[0].text


def test_a_success_between_failures_restarts_the_count(site: Site) -> None:
    job = op_job("thrice")
    for how in ("fail", "fail", "succeed", "fail", "fail"):
        getattr(site.world, how)(job)
        site.settle()
    assert site.posts("#a") == []


def test_canceled_and_muted_runs_neither_count_nor_end_consecutive_failures(site: Site) -> None:
    job = op_job("thrice")
    site.world.fail(job)
    site.world.cancel(job)
    site.world.fail(job)
    muted = site.world.fail(job, tags={"disable_slack_notifications": "true"})
    site.settle()
    assert site.posts("#a") == []
    assert site.dispositions()[muted] == "muted by the tag disable_slack_notifications"
    site.world.fail(job, tags={"disable_slack_notifications": "false"})
    site.settle()
    assert len(site.posts("#a")) == 1


def test_further_failures_go_into_the_thread_and_are_counted_in_the_message(site: Site) -> None:
    job = op_job("plain")
    for _ in range(4):
        site.world.fail(job)
        site.settle(60)
    site.settle(600)
    assert len(site.posts("#a")) == 1
    assert "4 consecutive failures" in site.posts("#a")[0].text
    assert 1 <= len(site.replies("#a")) <= 3


def test_consecutive_failures_of_days_get_a_reminder_every_four_hours_while_they_go_on(site: Site) -> None:
    job = op_job("plain")
    for _ in range(6):
        site.world.fail(job)
        site.settle(1.5 * HOUR)
    for _ in range(5):
        site.settle(2 * HOUR)
    reminders = [message for message in site.replies("#a") if "still failing" in message.text]
    assert len(reminders) == 2
    assert len(site.posts("#a")) == 1
    assert [message for message in site.replies("#a") if message.is_broadcast] == reminders


def test_a_retry_that_succeeds_sends_no_message(site: Site) -> None:
    job = op_job("plain")
    first = site.world.fail(job, tags=WILL_RETRY)
    site.settle(30)
    again = site.world.succeed(job, parent=first, tags={"dagster/retry_number": "1"})
    site.settle()
    site.settle(HOUR)
    assert site.everything() == {"#a": [], "#b": [], DEFAULT_CHANNEL: []}
    assert site.dispositions() == {first: f"retried in {again}"}


def test_a_retry_that_fails_makes_all_attempts_one_failure(site: Site) -> None:
    job = op_job("plain")
    first = site.world.fail(job, tags=WILL_RETRY)
    site.settle(30)
    second = site.world.fail(job, parent=first, tags={"dagster/retry_number": "1", **WILL_RETRY})
    site.settle(30)
    assert site.posts("#a") == []
    third = site.world.fail(job, parent=second, tags={"dagster/retry_number": "2"})
    site.settle()
    assert "is failing" in first_line(site)
    assert "Attempt: 3" in site.posts("#a")[0].text
    assert site.dispositions()[first] == f"retried in {second}"
    assert site.dispositions()[second] == f"retried in {third}"


def test_a_promised_retry_that_never_starts_is_a_failure_after_ten_minutes(site: Site) -> None:
    run_id = site.world.fail(op_job("plain"), tags=WILL_RETRY)
    site.settle()
    disposition = site.dispositions()[run_id]
    assert disposition is not None
    assert disposition.startswith("held for a retry until")
    site.settle(560)
    assert site.posts("#a") == []
    site.settle(60)
    assert "promised a retry" in site.posts("#a")[0].text


def test_a_running_retry_is_waited_for_as_long_as_it_exists(site: Site) -> None:
    job = op_job("plain")
    first = site.world.fail(job, tags=WILL_RETRY)
    site.world.forward(30)
    retry = site.world.start(job, parent=first, tags={"dagster/retry_number": "1"})
    site.world.instance.add_run_tags(first, {"dagster/auto_retry_run_id": retry})
    for _ in range(6):
        site.settle(500)
    assert site.posts("#a") == []
    site.world.instance.delete_run(retry)
    for _ in range(3):
        site.settle(500)
    assert len(site.posts("#a")) == 1


def test_a_re_execution_by_hand_resolves_the_failure_of_a_scheduled_run(site: Site) -> None:
    job = op_job("plain")
    first = site.world.fail(job, tags={"dagster/schedule_name": "nightly"})
    site.settle()
    site.world.succeed(job, tags={})
    site.settle()
    assert "is failing" in first_line(site)
    site.world.succeed(job, parent=first)
    site.settle()
    assert "Resolved" in first_line(site)


def test_one_run_that_fails_several_assets_of_an_owner_is_one_message_that_is_resolved_when_all_are(site: Site) -> None:
    job = asset_job(ASSETS)
    assert job.name == ASSET_JOB
    site.world.fail(job, ["x", "y", "z"], assets=["x", "y", "z"])
    site.settle()
    assert all(name in site.posts("#a")[0].text for name in ("`x`", "`y`"))
    assert "`z`" in site.posts("#b")[0].text
    site.world.succeed(job, assets=["x"])
    site.settle()
    assert "Resolved" not in site.posts("#a")[0].text
    site.world.succeed(job, assets=["y"])
    site.settle()
    assert "Resolved" in first_line(site, "#a")
    assert "Resolved" not in first_line(site, "#b")


def test_each_asset_has_its_own_series_although_its_runs_share_a_job_name(site: Site) -> None:
    job = asset_job(ASSETS)
    site.world.fail(job, ["x"], assets=["x"])
    site.settle()
    site.world.succeed(job, assets=["y"])
    site.settle()
    assert "Resolved" not in first_line(site)


def test_an_asset_that_succeeds_in_a_run_that_fails_elsewhere_is_resolved(site: Site) -> None:
    job = asset_job(ASSETS)
    site.world.fail(job, ["x"], assets=["x"])
    site.settle()
    run_id = site.world.start(job, assets=["x", "z"])
    site.world.step_succeeds(run_id, job.name, "x")
    site.world.step_fails(run_id, job.name, "z")
    site.world.end(run_id, job.name, dg.DagsterEventType.RUN_FAILURE)
    site.settle()
    assert "Resolved" in first_line(site, "#a")
    assert "failing" in first_line(site, "#b")


def test_a_backfill_is_one_message_and_a_last_one_when_it_ends(site: Site, make_backfill: Any) -> None:
    job = asset_job(ASSETS)
    backfill = make_backfill(site)
    for number in range(12):
        site.world.fail(job, ["x"], assets=["x"], tags={"dagster/backfill": backfill, "dagster/partition": str(number)})
        if number % 4 == 0:
            site.settle(7)
    site.settle()
    assert len(site.posts("#a")) == 1
    site.settle(61)
    assert "12" in site.posts("#a")[0].text
    make_backfill(site, backfill, ended=True)
    site.settle(30)
    site.settle(30)
    assert len(site.posts("#a")) == 1
    assert len(site.replies("#a")) == 1
    assert site.without_disposition() == []


@pytest.fixture
def make_backfill() -> Any:
    from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill

    def made(site: Site, backfill_id: str = "abcdefgh", *, ended: bool = False) -> str:
        backfill = PartitionBackfill(
            backfill_id=backfill_id,
            status=BulkActionStatus.COMPLETED_FAILED if ended else BulkActionStatus.REQUESTED,
            from_failure=False,
            tags={},
            backfill_timestamp=site.world.now.timestamp(),
            backfill_end_timestamp=site.world.now.timestamp() if ended else None,
        )
        if ended:
            site.world.instance.update_backfill(backfill)
        else:
            site.world.instance.add_backfill(backfill)
        return backfill_id

    return made


def test_more_than_twenty_incidents_in_five_minutes_are_a_storm_with_details_in_its_thread(site: Site) -> None:
    jobs = [op_job(f"job_{number}") for number in range(22)]
    for job in jobs:
        site.world.fail(job)
        site.world.forward(1)
    site.settle()
    assert len(site.posts("#a")) == 21
    assert any("2 more incidents" in post.text for post in site.posts("#a"))
    assert len(site.replies("#a")) == 2
    for job in jobs:
        site.world.succeed(job)
    site.settle()
    site.settle(400)
    assert len(site.posts("#a")) == 21
    assert sum("Resolved:" in message.text.splitlines()[0] for message in site.slack.in_channel("#a")) == 42


def test_a_failed_check_of_severity_error_is_notified_and_a_warning_is_not(site: Site) -> None:
    job = asset_job(ASSETS)
    site.world.check(job, "z", "rows", passed=False, severity=dg.AssetCheckSeverity.WARN)
    site.settle()
    assert site.posts("#b") == []
    site.world.check(job, "z", "rows", passed=False)
    site.settle()
    assert "z:rows" in site.posts("#b")[0].text
    site.world.check(job, "z", "rows", passed=True)
    site.settle()
    assert "Resolved" in first_line(site, "#b")


def test_a_run_that_fails_outside_its_steps_is_notified_to_the_owners_of_its_unfinished_steps(site: Site) -> None:
    job = op_job("two_teams", ("team-a", "team-b"))
    run_id = site.world.start(job)
    site.world.step_succeeds(run_id, job.name, "step_0")
    site.world.end(run_id, job.name, dg.DagsterEventType.RUN_FAILURE, "The run worker process died.")
    site.settle()
    assert site.posts("#a") == []
    assert "The run worker process died." in site.posts("#b")[0].text


def test_an_unowned_failure_goes_to_the_default_channel(site: Site) -> None:
    site.world.fail(op_job("nobodys", (None,)), location="elsewhere")
    site.settle()
    assert "nobodys" in first_line(site, DEFAULT_CHANNEL)


def test_a_failure_whose_run_was_deleted_is_notified_with_the_facts_of_its_event(site: Site) -> None:
    run_id = site.world.fail(op_job("plain"))
    site.tick()
    site.world.instance.delete_run(run_id)
    site.settle()
    assert "plain" in first_line(site, DEFAULT_CHANNEL)


def test_a_run_that_turns_from_failure_to_success_is_resolved(site: Site) -> None:
    job = op_job("plain")
    run_id = site.world.fail(job)
    site.settle()
    site.world.end(run_id, job.name, dg.DagsterEventType.RUN_FAILURE)
    site.world.end(run_id, job.name, dg.DagsterEventType.RUN_SUCCESS)
    site.settle()
    assert "Resolved" in first_line(site)
    assert len(site.replies("#a")) == 1


def test_a_failure_that_becomes_visible_after_its_success_is_notified_as_resolved(site: Site) -> None:
    job = op_job("plain")
    past = site.world.now - dt.timedelta(seconds=90)
    site.world.succeed(job)
    site.settle()
    now, site.world.now = site.world.now, past
    site.world.fail(job)
    site.world.now = now
    site.settle()
    assert "Resolved" in first_line(site)


def test_an_undecodable_event_is_reported_and_delays_no_other(site: Site) -> None:
    broken, fine = site.world.fail(op_job("broken")), site.world.fail(op_job("fine"))
    logs = private._event_logs()
    with site.world.instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        connection.execute(
            sa.update(logs)
            .where(logs.c.run_id == broken, logs.c.dagster_event_type == "PIPELINE_FAILURE")
            .values(event='{"__class__": "Unheard", "of": 1}')
        )
    report = site.tick()
    assert len(report.undecodable) == 1
    site.settle()
    assert {fine, broken} == set(site.dispositions())
    assert len(site.posts("#a")) == 2


def test_a_run_that_cannot_be_classified_is_notified_and_delays_no_other(site: Site) -> None:
    job = asset_job(ASSETS)
    strange = site.world.check(job, "x", "rows", passed=False)
    site.world.fail(op_job("fine"))
    site.tick()
    with store.transaction(site.store) as connection:
        connection.execute(sa.update(tables.attempts).where(tables.attempts.c.run_id == strange).values(detail="{"))
    site.settle()
    assert len(site.posts("#a")) == 1
    assert len(site.posts(DEFAULT_CHANNEL)) == 1


def test_the_sweep_rescues_a_failed_run_whose_event_was_never_seen(site: Site) -> None:
    job = op_job("plain")
    run_id = site.world.fail(job)
    logs = private._event_logs()
    with site.world.instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        connection.execute(sa.delete(logs).where(logs.c.run_id == run_id))
    site.settle(60)
    assert site.posts("#a") == []
    report = site.settle(300)
    assert list(report.rescued) == [run_id]
    site.settle()
    assert len(site.posts("#a")) == 1
    assert list(site.settle(400).rescued) == []


def test_events_that_become_visible_out_of_order_are_found_by_the_overlap(site: Site) -> None:
    runs = [site.world.fail(op_job(f"job_{number}")) for number in range(3)]
    logs = private._event_logs()
    with site.world.instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        hidden = connection.execute(
            sa.select(logs).where(logs.c.run_id == runs[0], logs.c.dagster_event_type == "PIPELINE_FAILURE")
        ).one()
        connection.execute(sa.delete(logs).where(logs.c.id == hidden.id))
    assert site.tick().events == 2
    with site.world.instance.event_log_storage.index_connection() as connection:  # type: ignore[attr-defined]
        connection.execute(sa.insert(logs).values(**hidden._mapping))
    site.world.forward(60)
    assert site.tick().events == 1
    assert len(site.posts("#a")) == 3


def test_the_first_tick_of_all_notifies_of_the_last_two_days_and_nothing_older(memory_path: Path) -> None:
    with opened(memory_path / "home") as site:
        now = site.world.now
        for hours in (49, 47, 1):
            site.world.now = now - dt.timedelta(hours=hours)
            site.world.fail(op_job(f"failed_{hours}_hours_ago"))
        site.world.now = now
        site.tick()
        assert len(site.posts("#a")) == 2


def test_a_finding_opens_an_incident_that_is_resolved_when_the_finding_is_gone(site: Site) -> None:
    found = [Finding("tick:nightly", "team-b", "Schedule nightly fails", "ValueError: boom", site.world.now, "web")]
    site.tick(watch=lambda: found)
    assert "nightly" in first_line(site, "#b")
    site.world.forward(130)
    site.tick(watch=lambda: found)
    assert len(site.slack.in_channel("#b")) == 1
    site.world.forward(130)
    site.tick(watch=list)
    assert len(site.posts("#b")) == 1
    assert len(site.replies("#b")) == 1


def test_watch_rules_that_cannot_run_are_reported_resolve_nothing_and_delay_no_failure(site: Site) -> None:
    def broken() -> list[Finding]:
        raise OSError("no answer")

    found = [Finding("tick:nightly", "team-b", "Schedule nightly fails", "ValueError: boom", site.world.now, "web")]
    site.tick(watch=lambda: found)
    site.world.fail(op_job("plain"))
    site.world.forward(130)
    report = site.tick(watch=broken)
    assert len(site.posts("#a")) == 1
    assert len(site.slack.in_channel("#b")) == 1
    with pytest.raises(WatchError, match="OSError: no answer"):
        report.raise_for_problems()


def test_two_ticks_at_once_notify_once(site: Site) -> None:
    import threading

    for number in range(8):
        site.world.fail(op_job(f"job_{number}"))
    site.world.forward(21)
    ticks = [threading.Thread(target=site.tick) for _ in range(2)]
    for one in ticks:
        one.start()
    for one in ticks:
        one.join()
    site.tick()
    assert len(site.slack.in_channel("#a")) == 8


def test_no_message_is_lost_while_slack_is_down_and_all_are_sent_afterwards(site: Site) -> None:
    job = op_job("plain")
    site.slack.fail(Kind.ERROR, code="account_inactive")
    site.world.fail(job)
    report = site.settle()
    assert report.delivered.problems
    site.world.forward(HOUR)
    site.world.succeed(job)
    site.settle()
    assert site.posts("#a") == []
    site.slack.clear_faults()
    site.settle(120)
    assert "Resolved" in first_line(site)


def test_a_secret_in_an_error_reaches_neither_the_store_nor_slack(site: Site) -> None:
    secret = "hunter2-very-secret"  # noqa: S105 - a planted one
    site.world.fail(op_job("plain"), error=user_error("ValueError", f"cannot log in with {secret} at the database"))
    site.world.forward(21)
    site.tick(secrets=[secret])
    assert "[redacted]" in site.posts("#a")[0].text
    assert secret not in site.posts("#a")[0].everything()
    with store.reading(site.store) as connection:
        for table in tables.metadata.sorted_tables:
            assert secret not in str(connection.execute(sa.select(table)).all())


def test_every_failed_run_has_a_disposition(site: Site, make_backfill: Any) -> None:
    job, thrice = op_job("plain"), op_job("thrice")
    backfill = make_backfill(site)
    runs = [
        site.world.fail(job),
        site.world.fail(job),
        site.world.fail(thrice),
        site.world.fail(thrice, tags={"disable_slack_notifications": "true"}),
        site.world.fail(op_job("held"), tags=WILL_RETRY),
        site.world.fail(job, tags={"dagster/backfill": backfill}),
        site.world.fail(op_job("nobodys", (None,)), location="elsewhere"),
    ]
    site.settle()
    dispositions = site.dispositions()
    assert set(dispositions) == set(runs)
    assert None not in dispositions.values()
    assert site.without_disposition() == []


def test_rows_that_are_resolved_and_old_are_deleted_and_open_ones_are_not(site: Site) -> None:
    closed, still_open = op_job("closed"), op_job("still_open")
    site.world.fail(closed)
    site.world.fail(still_open)
    site.settle()
    site.world.succeed(closed)
    site.settle()
    site.world.forward(91 * 24 * HOUR)
    delete_old_rows(site.store, site.world.now)
    with store.reading(site.store) as connection:
        threads = incidents.find(connection)
        kept = set(connection.execute(sa.select(tables.outbox.c.thread)).scalars())
        names = set(connection.execute(sa.select(tables.outcomes.c.job_name)).scalars())
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.attempts)).scalar() == 0
    assert kept == {thread.key for thread in threads}
    assert len(threads) == 1
    assert names == {"still_open"}


def test_an_open_incident_is_resolved_even_after_the_retention(site: Site) -> None:
    job = op_job("plain")
    site.world.fail(job)
    site.settle()
    site.world.forward(91 * 24 * HOUR)
    site.tick()
    site.world.succeed(job)
    site.settle()
    assert "Resolved" in first_line(site)
