import datetime as dt
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pydantic
import pytest

from dags.definitions import load_locations
from dags.maintenance.run_retention import (
    DeletedRuns,
    RunRetentionConfig,
    delete_runs,
    run_retention_job,
    run_retention_schedule,
)
from dags.tests.alerts.world import local_instance, origin

DAYS = dg.StaticPartitionsDefinition(["monday", "tuesday"])


@dg.op(config_schema={"fails": dg.Field(bool, default_value=False)})
def work(context: dg.OpExecutionContext) -> None:
    if context.op_config["fails"]:
        raise RuntimeError("as configured")


@dg.job
def plain_job() -> None:
    work()


@dg.asset(partitions_def=DAYS)
def by_day() -> None: ...


@dg.asset
def whole() -> None: ...


@pytest.fixture(params=["sqlite", "postgres"])
def instance(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """Yield an instance without runs, on SQLite and on Postgres."""
    dsn = request.getfixturevalue("postgres_dsn") if request.param == "postgres" else None
    with local_instance(tmp_path / "home", dsn) as made:
        yield made


def ran(instance: dg.DagsterInstance, *, fails: bool = False) -> str:
    config = {"ops": {"work": {"config": {"fails": fails}}}}
    return plain_job.execute_in_process(instance=instance, run_config=config, raise_on_error=False).run_id


def now() -> dt.datetime:
    """Return a time after everything so far, and before everything that follows."""
    time.sleep(0.01)
    return dt.datetime.now(dt.UTC)


def kept(instance: dg.DagsterInstance) -> set[str]:
    return {run.run_id for run in instance.get_runs()}


def delete_before(instance: dg.DagsterInstance, before: dt.datetime, **how: float) -> DeletedRuns:
    return delete_runs(instance, before, dry_run=False, pause_seconds=0, **how)  # type: ignore[arg-type] # numbers all


def test_old_runs_are_deleted_with_their_events_and_newer_ones_stay(instance: dg.DagsterInstance) -> None:
    old = [ran(instance), ran(instance, fails=True)]
    before = now()
    young = ran(instance)
    assert delete_before(instance, before) == DeletedRuns(runs=2)
    assert kept(instance) == {young}
    assert [entry for run_id in old for entry in instance.all_logs(run_id)] == []
    assert instance.all_logs(young) != []


def test_a_dry_run_counts_the_same_runs_and_deletes_none(instance: dg.DagsterInstance) -> None:
    old = {ran(instance), ran(instance)}
    assert delete_runs(instance, now(), dry_run=True) == DeletedRuns(runs=2)
    assert kept(instance) == old


def test_an_unfinished_run_stays_however_old_it_is(instance: dg.DagsterInstance) -> None:
    unfinished = {
        instance.create_run_for_job(plain_job, status=status, remote_job_origin=origin(plain_job.name, "web")).run_id
        for status in dg.DagsterRunStatus
        if status not in (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
    }
    assert len(unfinished) >= 5
    ran(instance)
    assert delete_before(instance, now()) == DeletedRuns(runs=1)
    assert kept(instance) == unfinished


def test_the_run_of_the_latest_materialization_stays_and_earlier_ones_are_deleted(instance: dg.DagsterInstance) -> None:
    def made(asset: dg.AssetsDefinition, partition: str | None = None) -> str:
        return dg.materialize([asset], instance=instance, partition_key=partition).run_id

    made(whole)
    made(by_day, "monday")
    current = {made(by_day, "tuesday"), made(whole), made(by_day, "monday")}
    assert delete_before(instance, now()) == DeletedRuns(runs=2, current=3)
    assert kept(instance) == current
    assert instance.get_materialized_partitions(by_day.key) == {"monday", "tuesday"}


def test_more_runs_than_a_batch_holds_are_deleted_and_progress_is_reported(instance: dg.DagsterInstance) -> None:
    current = dg.materialize([whole], instance=instance).run_id
    for _ in range(7):
        ran(instance)
    reports: list[DeletedRuns] = []
    result = delete_runs(instance, now(), dry_run=False, batch_runs=3, pause_seconds=0, report=reports.append)
    assert result == DeletedRuns(runs=7, current=1)
    assert [one.runs + one.current for one in reports] == [3, 6, 8]
    assert kept(instance) == {current}


def test_a_pass_that_stops_at_its_deadline_is_continued_by_the_next(instance: dg.DagsterInstance) -> None:
    for _ in range(3):
        ran(instance)
    stopped = delete_before(instance, now(), deadline=time.monotonic())
    assert stopped == DeletedRuns(runs=0, is_complete=False)
    assert delete_before(instance, now()) == DeletedRuns(runs=3)
    assert kept(instance) == set()


def test_a_pass_that_dies_is_continued_by_the_next(instance: dg.DagsterInstance) -> None:
    for _ in range(4):
        ran(instance)

    def die(_: DeletedRuns) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        delete_runs(instance, now(), dry_run=False, batch_runs=2, report=die)
    assert len(kept(instance)) == 2
    assert delete_before(instance, now()) == DeletedRuns(runs=2)


def test_the_job_is_a_dry_run_and_its_schedule_is_not() -> None:
    with dg.instance_for_test() as instance:
        ran(instance)
        result = run_retention_job.execute_in_process(instance=instance)
        (output,) = result.filter_events(lambda event: event.is_successful_output)
        metadata = output.step_output_data.metadata
        assert metadata["dry_run"].value is True
        # The run has just ended, and the config allows no age below seven days.
        assert metadata["runs_that_would_be_deleted"].value == 0
        with dg.build_schedule_context(instance=instance) as context:
            request = run_retention_schedule(context)
    assert isinstance(request, dg.RunRequest)
    assert request.run_config["ops"]["delete_old_runs"]["config"]["dry_run"] is False


def test_runs_that_the_alert_router_still_reads_cannot_be_deleted() -> None:
    with pytest.raises(pydantic.ValidationError, match="keep_days"):
        RunRetentionConfig(keep_days=2)


def test_one_location_schedules_the_job_by_default() -> None:
    having = [
        name
        for name, location in load_locations().items()
        if any(schedule.name == run_retention_schedule.name for schedule in location.schedules or [])
    ]
    assert having == ["shared"]
    assert run_retention_schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    assert run_retention_job.tags["dagster/max_retries"] == "0"
