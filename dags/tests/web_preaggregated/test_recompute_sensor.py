import datetime as dt
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.events import StepMaterializationData

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert
from dags.common.partitions import range_tags
from dags.common.tags import PARTITION_TAG, PRIORITY_TAG
from dags.tests.web_preaggregated.events import Event, Override, Web, at, person
from dags.tests.web_preaggregated.test_stale_days import DAY, TODAY, day, put
from dags.web_preaggregated.jobs import (
    STALE_DAYS_TAG,
    WEB_TABLES_DAILY,
    evaluate_stale_days,
    record_override_days_job,
    web_analytics_daily_job,
)
from dags.web_preaggregated.override_days import record_override_days
from dags.web_preaggregated.stale_days import input_fingerprints, stale_days

NOW = dt.datetime.combine(TODAY, dt.time(12, 30), tzinfo=dt.UTC)
FIRST = dt.date(2015, 1, 1)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as value:
        yield value


def compute(cluster: ClickhouseCluster, *days: dt.date, hours_ago: float = 5, run_id: str = "run") -> None:
    """Record days as computed from their present input."""
    found = cluster.any_host(lambda client: input_fingerprints(client, days, None, TODAY)).result()
    computed_at = NOW - dt.timedelta(hours=hours_ago)
    columns = ("day", "input_fingerprint", "run_id", "computed_at", "version")
    version = int(computed_at.timestamp())
    rows = [(one, fingerprint, run_id, computed_at, version) for one, fingerprint in found.items()]
    cluster.any_host(Insert("web_session_days", columns, rows)).result()


def stale(cluster: ClickhouseCluster) -> list[int]:
    return [(one.day - DAY).days for one in stale_days(cluster, None, TODAY, FIRST)]


def tick(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster, now: dt.datetime = NOW
) -> tuple[list[dg.RunRequest], str]:
    result = evaluate_stale_days(instance, cluster, now, nightly_is_on=True)
    return list(result.run_requests or []), result.cursor or ""


def ranges(requests: list[dg.RunRequest]) -> list[tuple[str, str]]:
    return [
        (one.tags["dagster/asset_partition_range_start"], one.tags["dagster/asset_partition_range_end"])
        for one in requests
        if one.job_name == web_analytics_daily_job.name
    ]


def log_materializations(instance: dg.DagsterInstance, run_id: str, *days: dt.date) -> None:
    for key in WEB_TABLES_DAILY:
        for one in days:
            event = dg.DagsterEvent(
                dg.DagsterEventType.ASSET_MATERIALIZATION.value,
                "job",
                event_specific_data=StepMaterializationData(dg.AssetMaterialization(key, partition=str(one))),
            )
            instance.report_dagster_event(event, run_id)


def test_days_are_stale_from_a_change_until_they_are_computed(cluster: ClickhouseCluster) -> None:
    assert stale(cluster) == []
    put(cluster, 7, {day(0): 3})
    assert stale(cluster) == [1, 0, -1]
    compute(cluster, day(-1), day(0), day(1))
    assert stale(cluster) == []
    put(cluster, 8, {day(2): 3})
    assert stale(cluster) == [3, 2, 1]
    compute(cluster, day(1), day(2), day(3), hours_ago=4)
    put(cluster, 8, {day(2): 3}, state="replaced", version=2)
    assert stale(cluster) == [3, 2, 1]


def test_a_day_is_stale_when_all_of_its_input_is_gone(cluster: ClickhouseCluster) -> None:
    cluster.any_host(
        Insert("web_session_days", ("day", "input_fingerprint", "version"), [(day(0), 12345, 1), (day(1), 0, 1)])
    ).result()
    assert stale(cluster) == [0]


def test_today_is_never_stale_and_yesterday_is_not_stale_from_what_arrives_today(cluster: ClickhouseCluster) -> None:
    put(cluster, 7, {TODAY: 3})
    assert stale(cluster) == []
    put(cluster, 8, {TODAY - dt.timedelta(days=1): 3})
    assert stale(cluster) == [9, 8]


def test_the_tick_requests_ranges_with_a_low_priority_and_says_what_remains(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster
) -> None:
    put(cluster, 7, {day(0): 3, day(5): 1})
    compute(cluster, day(4), hours_ago=0.5)
    put(cluster, 8, {day(5): 1})
    requests, message = tick(instance, cluster)
    assert ranges(requests) == [(str(day(5)), str(day(6))), (str(day(-1)), str(day(1)))]
    assert {(one.tags[PRIORITY_TAG], one.tags[STALE_DAYS_TAG]) for one in requests} == {("-1", "true")}
    assert message == (
        "Requested 5 stale days: 2026-03-16 to 2026-03-17, 2026-03-10 to 2026-03-12. "
        "1 stale days were computed or requested less than an hour ago."
    )


def test_without_stale_days_the_tick_is_skipped(instance: dg.DagsterInstance, cluster: ClickhouseCluster) -> None:
    assert tick(instance, cluster) == ([], "No day is stale.")


@pytest.mark.parametrize("job", [web_analytics_daily_job.name, "__ASSET_JOB"])
def test_days_of_an_unfinished_run_are_not_requested(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster, job: str
) -> None:
    put(cluster, 7, {day(0): 3})
    tags = {PARTITION_TAG: str(day(0))}
    instance.add_run(
        dg.DagsterRun(job, status=dg.DagsterRunStatus.STARTED, asset_selection=frozenset(WEB_TABLES_DAILY), tags=tags)
    )
    requests, message = tick(instance, cluster)
    assert ranges(requests) == [(str(day(1)), str(day(1))), (str(day(-1)), str(day(-1)))]
    assert "1 stale days are in an unfinished run or backfill." in message


def test_one_batch_is_in_progress_at_a_time_and_failed_days_wait_for_an_hour(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster
) -> None:
    put(cluster, 7, {day(0): 3})
    tags = {**range_tags(day(2), day(4)), STALE_DAYS_TAG: "true"}
    run = instance.add_run(dg.DagsterRun(web_analytics_daily_job.name, status=dg.DagsterRunStatus.STARTED, tags=tags))
    requests, message = tick(instance, cluster)
    assert requests == []
    assert "3 stale days wait until the runs that were requested before have finished." in message
    instance.delete_run(run.run_id)
    tags = {**range_tags(day(0), day(1)), STALE_DAYS_TAG: "true"}
    instance.add_run(dg.DagsterRun(web_analytics_daily_job.name, status=dg.DagsterRunStatus.FAILURE, tags=tags))
    assert ranges(tick(instance, cluster, dt.datetime.now(dt.UTC))[0]) == [(str(day(-1)), str(day(-1)))]


def test_days_whose_run_died_before_it_logged_them_are_requested_again(
    instance: dg.DagsterInstance, cluster: ClickhouseCluster
) -> None:
    put(cluster, 7, {day(0): 3})
    run = dg.DagsterRun(web_analytics_daily_job.name, status=dg.DagsterRunStatus.FAILURE)
    instance.add_run(run)
    compute(cluster, day(-1), day(0), day(1), run_id=run.run_id)
    log_materializations(instance, run.run_id, day(1))
    assert ranges(tick(instance, cluster)[0]) == [(str(day(-1)), str(day(0)))]
    log_materializations(instance, run.run_id, day(-1), day(0))
    assert tick(instance, cluster) == ([], "No day is stale.")


def test_new_overrides_are_looked_up_by_a_run_at_most_every_20_minutes(instance: dg.DagsterInstance, web: Web) -> None:
    web.add(Event(at("10:00"), distinct_id="a"))
    web.override(Override("a", person(7)))
    now = dt.datetime.now(dt.UTC)
    (request,), message = tick(instance, web.cluster, now)
    assert request.job_name == record_override_days_job.name
    assert "1 groups of person overrides changed: record_override_days_job finds their days." in message
    instance.add_run(dg.DagsterRun(record_override_days_job.name, status=dg.DagsterRunStatus.SUCCESS))
    assert tick(instance, web.cluster, now)[0] == []
    assert len(tick(instance, web.cluster, now + dt.timedelta(minutes=25))[0]) == 1
    record_override_days(web.cluster, "run")
    assert len(ranges(tick(instance, web.cluster, now)[0])) == 1
