import datetime as dt
from collections.abc import Iterator

import dagster as dg
import pytest

from dags.common.partitions import RANGE_END_TAG, RANGE_START_TAG
from dags.common.schedules import UNFINISHED
from dags.common.settings import Settings, get_settings
from dags.locations.web_analytics import defs
from dags.web_preaggregated.assets import SESSIONS_CURRENT_DAY, SESSIONS_DAILY, max_partitions_per_run
from dags.web_preaggregated.jobs import (
    web_analytics_daily_schedule,
    web_pre_aggregate_current_day_hourly_schedule,
)

TICK = dt.datetime(2026, 10, 24, 1, 0, tzinfo=dt.UTC)
PRODUCTION = {
    "CLOUD_DEPLOYMENT": "EU",
    "SLACK_TOKEN": "token",
    "CLICKHOUSE_PASSWORD": "password",
    "OBJECT_STORAGE_ACCESS_KEY_ID": "key",
    "OBJECT_STORAGE_SECRET_ACCESS_KEY": "secret",
    "POSTGRES_PASSWORD": "password",
    "VISITOR_HASH_KEY": "a key of sixteen",
}
SCHEDULES = [web_analytics_daily_schedule, web_pre_aggregate_current_day_hourly_schedule]


@pytest.fixture
def production(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DEBUG", raising=False)
    for name, value in PRODUCTION.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    # A tick opens the instance by its address, so one in memory will not do.
    with dg.instance_for_test() as value:
        yield value


def evaluate(
    schedule: dg.ScheduleDefinition, instance: dg.DagsterInstance, tick: dt.datetime = TICK
) -> tuple[list[dg.RunRequest], str]:
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=tick, repository_def=defs.get_repository_def()
    ) as context:
        data = schedule.evaluate_tick(context)
    return list(data.run_requests or []), data.skip_message or ""


@pytest.mark.usefixtures("production")
def test_the_daily_tick_requests_yesterday_and_the_day_before_in_one_run(instance: dg.DagsterInstance) -> None:
    (request,), _ = evaluate(web_analytics_daily_schedule, instance)
    assert (request.tags[RANGE_START_TAG], request.tags[RANGE_END_TAG]) == ("2026-10-22", "2026-10-23")


@pytest.mark.usefixtures("production")
def test_the_hourly_tick_requests_one_run(instance: dg.DagsterInstance) -> None:
    assert len(evaluate(web_pre_aggregate_current_day_hourly_schedule, instance)[0]) == 1


@pytest.mark.usefixtures("production")
# A queued run needs a code location: the test with a daemon has such runs.
@pytest.mark.parametrize("status", [one for one in UNFINISHED if one is not dg.DagsterRunStatus.QUEUED])
@pytest.mark.parametrize(
    ("schedule", "key"), [(SCHEDULES[0], SESSIONS_DAILY), (SCHEDULES[1], SESSIONS_CURRENT_DAY)], ids=["daily", "hourly"]
)
def test_a_tick_is_skipped_with_the_run_id_while_a_job_run_or_backfill_is_in_progress(
    instance: dg.DagsterInstance, schedule: dg.ScheduleDefinition, key: dg.AssetKey, status: dg.DagsterRunStatus
) -> None:
    for job_name, selection in ((schedule.job_name, None), ("__ASSET_JOB", frozenset({key}))):
        run_id = dg.DagsterRun(job_name="x").run_id
        instance.add_run(dg.DagsterRun(job_name, run_id=run_id, status=status, asset_selection=selection))
        requests, reason = evaluate(schedule, instance)
        assert requests == []
        assert f"Run {run_id}" in reason
        instance.delete_run(run_id)
    assert len(evaluate(schedule, instance)[0]) == 1


@pytest.mark.usefixtures("production")
def test_runs_of_other_assets_and_finished_runs_do_not_cause_a_skip(instance: dg.DagsterInstance) -> None:
    instance.add_run(
        dg.DagsterRun(
            "__ASSET_JOB", status=dg.DagsterRunStatus.STARTED, asset_selection=frozenset({SESSIONS_CURRENT_DAY})
        )
    )
    instance.add_run(dg.DagsterRun("web_analytics_daily_job", status=dg.DagsterRunStatus.FAILURE))
    assert len(evaluate(web_analytics_daily_schedule, instance)[0]) == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_tick_outside_production_is_skipped_with_the_remedy(
    instance: dg.DagsterInstance, schedule: dg.ScheduleDefinition, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLOUD_DEPLOYMENT", raising=False)
    get_settings.cache_clear()
    requests, reason = evaluate(schedule, instance)
    get_settings.cache_clear()
    assert requests == []
    assert "Start the job manually" in reason


def test_the_schedules_tick_daily_at_one_and_hourly_at_twenty_past() -> None:
    assert [schedule.cron_schedule for schedule in SCHEDULES] == ["0 1 * * *", "20 * * * *"]


def test_the_number_of_days_per_run_comes_from_the_environment_or_is_the_default_if_invalid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAGSTER_WEB_PREAGGREGATED_MAX_PARTITIONS_PER_RUN", "5")
    assert max_partitions_per_run() == 5
    monkeypatch.setenv("DAGSTER_WEB_PREAGGREGATED_MAX_PARTITIONS_PER_RUN", "many")
    assert max_partitions_per_run() == Settings.model_fields["dagster_web_preaggregated_max_partitions_per_run"].default
