import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pydantic
import pytest

from dags.definitions import load_locations
from dags.maintenance.run_retention import (
    Forgotten,
    RunRetentionConfig,
    forget_runs,
    run_retention_job,
    run_retention_schedule,
)
from dags.tests.alerts.world import local_instance, origin

DAYS = dg.StaticPartitionsDefinition(["monday", "tuesday"])


@dg.op(config_schema={"fails": dg.Field(bool, default_value=False)})
def work(context: dg.OpExecutionContext) -> None:
    if context.op_config["fails"]:
        raise RuntimeError("as asked for")


@dg.job
def plain_job() -> None:
    work()


@dg.asset(partitions_def=DAYS)
def by_day() -> None: ...


@dg.asset
def whole() -> None: ...


@pytest.fixture(params=["sqlite", "postgres"])
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance without runs, on each database in turn."""
    dsn = request.getfixturevalue("postgres_dsn") if request.param == "postgres" else None
    with local_instance(tmp_path / "home", dsn) as made:
        yield made


def ran(instance: dg.DagsterInstance, *, fails: bool = False) -> str:
    config = {"ops": {"work": {"config": {"fails": fails}}}}
    return plain_job.execute_in_process(instance=instance, run_config=config, raise_on_error=False).run_id


def now() -> dt.datetime:
    """A time after everything so far, and before everything from here on."""
    time.sleep(0.01)
    return dt.datetime.now(dt.UTC)


def kept(instance: dg.DagsterInstance) -> set[str]:
    return {run.run_id for run in instance.get_runs()}


def forget(instance: dg.DagsterInstance, before: dt.datetime, **how: float) -> Forgotten:
    return forget_runs(instance, before, dry_run=False, pause_seconds=0, **how)  # type: ignore[arg-type] # numbers all


def test_runs_that_ended_before_go_with_their_events_and_later_ones_stay(instance: dg.DagsterInstance) -> None:
    old = [ran(instance), ran(instance, fails=True)]
    before = now()
    young = ran(instance)
    assert forget(instance, before) == Forgotten(runs=2)
    assert kept(instance) == {young}
    assert [entry for run_id in old for entry in instance.all_logs(run_id)] == []
    assert instance.all_logs(young) != []


def test_a_dry_run_counts_the_same_and_changes_nothing(instance: dg.DagsterInstance) -> None:
    old = {ran(instance), ran(instance)}
    assert forget_runs(instance, now(), dry_run=True) == Forgotten(runs=2)
    assert kept(instance) == old


def test_a_run_that_is_not_over_stays_however_old(instance: dg.DagsterInstance) -> None:
    unfinished = {
        instance.create_run_for_job(plain_job, status=status, remote_job_origin=origin(plain_job.name, "web")).run_id
        for status in dg.DagsterRunStatus
        if status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    }
    assert len(unfinished) >= 5
    ran(instance)
    assert forget(instance, now()) == Forgotten(runs=1)
    assert kept(instance) == unfinished


def test_the_run_that_made_what_an_asset_is_now_stays_and_those_before_it_go(instance: dg.DagsterInstance) -> None:
    def made(asset: dg.AssetsDefinition, partition: str | None = None) -> str:
        return dg.materialize([asset], instance=instance, partition_key=partition).run_id

    made(whole)
    made(by_day, "monday")
    current = {made(by_day, "tuesday"), made(whole), made(by_day, "monday")}
    assert forget(instance, now()) == Forgotten(runs=2, current=3)
    assert kept(instance) == current
    assert instance.get_materialized_partitions(by_day.key) == {"monday", "tuesday"}


def test_more_runs_than_a_batch_holds_all_go_and_progress_is_told(instance: dg.DagsterInstance) -> None:
    current = dg.materialize([whole], instance=instance).run_id
    for _ in range(7):
        ran(instance)
    told: list[Forgotten] = []
    result = forget_runs(instance, now(), dry_run=False, batch_runs=3, pause_seconds=0, report=told.append)
    assert result == Forgotten(runs=7, current=1)
    assert [one.runs + one.current for one in told] == [3, 6, 8]
    assert kept(instance) == {current}


def test_what_a_deadline_left_is_done_by_the_next_pass(instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        ran(instance)
    stopped = forget(instance, now(), deadline=time.monotonic())
    assert stopped == Forgotten(runs=0, is_complete=False)
    assert forget(instance, now()) == Forgotten(runs=3)
    assert kept(instance) == set()


def test_a_pass_that_dies_in_the_middle_is_taken_up_by_the_next(instance: dg.DagsterInstance) -> None:
    for _ in range(4):
        ran(instance)

    def die(_: Forgotten) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forget_runs(instance, now(), dry_run=False, batch_runs=2, report=die)
    assert len(kept(instance)) == 2
    assert forget(instance, now()) == Forgotten(runs=2)


def test_the_job_is_a_dry_run_and_its_schedule_is_not() -> None:
    with dg.instance_for_test() as instance:
        ran(instance)
        result = run_retention_job.execute_in_process(instance=instance)
        (output,) = result.filter_events(lambda event: event.is_successful_output)
        metadata = output.step_output_data.metadata
        assert metadata["dry_run"].value is True
        # What has just ended is younger than any age that may be asked for.
        assert metadata["runs_that_would_be_deleted"].value == 0
        with dg.build_schedule_context(instance=instance) as context:
            request = run_retention_schedule(context)
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["ops"]["delete_old_runs"]["config"]["dry_run"] is False


def test_what_the_alert_router_still_reads_cannot_be_asked_for() -> None:
    with pytest.raises(pydantic.ValidationError, match="keep_days"):
        RunRetentionConfig(keep_days=2)


def test_one_location_runs_it_and_its_schedule_by_default() -> None:
    having = [
        name
        for name, location in load_locations().items()
        if any(schedule.name == run_retention_schedule.name for schedule in location.schedules or [])
    ]
    assert having == ["shared"]
    assert run_retention_schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert run_retention_job.tags["dagster/max_retries"] == "0"
