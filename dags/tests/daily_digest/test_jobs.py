import datetime as dt
from collections.abc import Iterator

import dagster as dg
import pytest

from dags.daily_digest.assets import WEB_SESSIONS
from dags.daily_digest.jobs import analytics_digest_daily_schedule

YESTERDAY = dt.date(2026, 3, 11)
DAY_BEFORE = dt.date(2026, 3, 10)
TICK = dt.datetime(2026, 3, 12, 6, 20, tzinfo=dt.UTC)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as opened:
        yield opened


def tick_after(instance: dg.DagsterInstance, *computed: dt.date) -> tuple[list[dg.RunRequest], str]:
    """Return the run requests and the skip message of a tick, with the web tables of these days computed."""
    for day in computed:
        instance.report_runless_asset_event(dg.AssetMaterialization(WEB_SESSIONS, partition=str(day)))
    with dg.build_schedule_context(instance, scheduled_execution_time=TICK) as context:
        tick = analytics_digest_daily_schedule.evaluate_tick(context)
    return list(tick.run_requests or []), tick.skip_message or ""


@pytest.mark.parametrize("first", [YESTERDAY, DAY_BEFORE])
def test_a_tick_requests_yesterday_and_the_day_before_if_it_is_computed(
    instance: dg.DagsterInstance, first: dt.date
) -> None:
    (request,), _ = tick_after(instance, first, YESTERDAY)
    assert request.tags["dagster/asset_partition_range_start"] == str(first)
    assert request.tags["dagster/asset_partition_range_end"] == str(YESTERDAY)


def test_a_tick_is_skipped_while_the_web_tables_are_not_computed(instance: dg.DagsterInstance) -> None:
    requests, reason = tick_after(instance, DAY_BEFORE)
    assert not requests
    assert f"The web tables of {YESTERDAY} are not computed" in reason


def test_a_tick_is_skipped_while_a_run_is_in_progress(instance: dg.DagsterInstance) -> None:
    run = dg.DagsterRun(job_name="analytics_digest_daily_job", status=dg.DagsterRunStatus.STARTED)
    instance.add_run(run)
    requests, reason = tick_after(instance, YESTERDAY)
    assert not requests
    assert run.run_id in reason
