from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from dags.common.owners import TEAM_OF_OTHER_LOCATIONS, JobOwners, owned_by
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.slack_alerts import CONSECUTIVE_FAILURE_THRESHOLDS, notification_channel_per_team
from dags.tests.policy import shared_policies as policies
from dags.tests.policy.loaded import LOCATIONS, of_each_location

ROOT = Path(__file__).parents[3]
OWNERS = [owner.value for owner in JobOwners]
INSTANCE: dict[str, Any] = yaml.safe_load((ROOT / policies.DAGSTER_YAML).read_text())

# Teams that own no location, each with the reason, such as that all its work is in the locations of other teams.
TEAMS_WITHOUT_LOCATION: dict[str, str] = {}


@dg.op(pool="cranes")
def work() -> None: ...


def job_of(seconds: int, name: str = "work_job", **tags: str) -> dg.JobDefinition:
    ownership = owned_by(JobOwners.TEAM_CLICKHOUSE, **{MAX_RUNTIME_TAG: str(seconds), MAX_RETRIES_TAG: "0"}, **tags)
    return dg.JobDefinition(name=name, graph_def=dg.GraphDefinition(name=name, node_defs=[work]), **ownership)


def firing(cron: str, zone: str | None = None, seconds: int = 3600, name: str = "work") -> dg.Definitions:
    job = job_of(seconds, f"{name}_job")
    schedule = dg.ScheduleDefinition(
        name=f"{name}_schedule",
        job=job,
        cron_schedule=cron,
        execution_timezone=zone,
        **owned_by(JobOwners.TEAM_CLICKHOUSE),
    )
    return dg.Definitions(jobs=[job], schedules=[schedule])


def test_every_owner_has_a_channel_of_its_own() -> None:
    problems = policies.every_owner_has_a_channel(OWNERS, notification_channel_per_team)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("channels", "problem"),
    [
        ({"team-a": "#a"}, "team-b has no channel: add it to notification_channel_per_team"),
        ({"team-a": "#a", "team-b": "b"}, "team-b has no channel"),
        ({"team-a": "#a", "team-b": "#b", "team-c": "#c"}, "team-c has a channel and is not in JobOwners: remove it"),
        ({"team-a": "#a", "team-b": "#a"}, "team-a and team-b share the channel #a: give each its own"),
    ],
)
def test_a_missing_unknown_or_shared_channel_is_named(channels: dict[str, str], problem: str) -> None:
    (found,) = policies.every_owner_has_a_channel(["team-a", "team-b"], channels)
    assert problem in found


def test_every_owner_has_a_location_or_a_reason_to_have_none() -> None:
    problems = policies.every_owner_has_a_location(OWNERS, list(LOCATIONS), TEAMS_WITHOUT_LOCATION)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("locations", "without", "problem"),
    [
        (["clickhouse"], {}, "team-ingestion has no location: run make new-team"),
        (["clickhouse", "ingestion"], {"team-ingestion": "it is new"}, "team-ingestion has a location now: remove it"),
    ],
)
def test_an_owner_without_location_is_named_and_so_is_one_that_has_one_now(
    locations: list[str], without: dict[str, str], problem: str
) -> None:
    (found,) = policies.every_owner_has_a_location(["team-clickhouse", "team-ingestion"], locations, without)
    assert problem in found


def test_every_location_belongs_to_the_team_that_it_names() -> None:
    problems = policies.every_location_belongs_to_the_team_that_it_names(LOCATIONS, TEAM_OF_OTHER_LOCATIONS)
    assert not problems, "\n".join(problems)


def test_a_location_without_owner_and_one_that_is_named_like_another_team_are_named() -> None:
    of_ingestion = dg.Definitions(metadata={"owner": "team-ingestion"})
    locations = {"cranes": dg.Definitions(), "clickhouse": of_ingestion, "ingestion": of_ingestion}
    problems = policies.every_location_belongs_to_the_team_that_it_names(locations, {"docks": "team-ingestion"})
    no_location, no_owner, other_team = problems
    assert no_location == "dags/common/owners.py: TEAM_OF_OTHER_LOCATIONS names docks, which is no location: remove it"
    assert no_owner == "dags/locations/cranes.py has no owner: define it with build_definitions(owner=…)"
    assert "clickhouse.py is owned by team-ingestion, and its name says team-clickhouse: name it after" in other_team


def test_every_threshold_names_a_job_and_is_above_one() -> None:
    assert CONSECUTIVE_FAILURE_THRESHOLDS
    problems = policies.thresholds_name_jobs(CONSECUTIVE_FAILURE_THRESHOLDS, LOCATIONS)
    assert not problems, "\n".join(problems)


def test_a_threshold_of_no_job_and_a_threshold_of_one_are_named() -> None:
    locations = {"cranes": dg.Definitions(jobs=[job_of(60)])}
    assert policies.thresholds_name_jobs({"work_job": 3}, locations) == []
    no_job, idle = policies.thresholds_name_jobs({"wrok_job": 3, "work_job": 1}, locations)
    assert "no job is called wrok_job: correct or remove it in CONSECUTIVE_FAILURE_THRESHOLDS" in no_job
    assert "the threshold of work_job is 1" in idle


def test_the_limits_of_the_instance_are_in_use() -> None:
    assert INSTANCE["concurrency"]["runs"]["tag_concurrency_limits"], "there is no limit to check"
    problems = policies.run_limits_name_tags_in_use(INSTANCE, LOCATIONS)
    problems += policies.pools_in_use_are_limited(INSTANCE, LOCATIONS)
    problems += policies.no_job_may_run_longer_than_the_instance_allows(INSTANCE, LOCATIONS)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ({"key": "crane"}, None),
        ({"key": "crane", "value": "north"}, None),
        ({"key": "crane", "value": {"applyLimitPerUniqueValue": True}}, None),
        ({"key": "carne"}, "no job has the tag carne, which has a limit: correct or remove the limit"),
        ({"key": "crane", "value": "south"}, "the value south, which has a limit: correct or remove the limit; values"),
        ({"key": "dagster/backfill"}, "no job has the tag dagster/backfill"),
    ],
)
def test_a_limit_on_a_tag_that_no_run_has_is_named(limit: dict[str, Any], problem: str | None) -> None:
    locations = {"cranes": dg.Definitions(jobs=[job_of(60, crane="north")])}
    instance = {"concurrency": {"runs": {"tag_concurrency_limits": [{**limit, "limit": 1}]}}}
    found = policies.run_limits_name_tags_in_use(instance, locations)
    assert found == [] if problem is None else problem in "".join(found)


def test_a_pool_without_a_limit_is_named() -> None:
    locations = {"cranes": dg.Definitions(jobs=[job_of(60)])}
    for concurrency in ({}, {"pools": {"granularity": "run"}}, {"pools": {"default_limit": 0}}):
        (found,) = policies.pools_in_use_are_limited({"concurrency": concurrency}, locations)
        assert "the pools cranes are in use" in found
        assert "set concurrency.pools.default_limit" in found
    assert policies.pools_in_use_are_limited({"concurrency": {}}, {"idle": dg.Definitions()}) == []


def test_a_job_that_may_run_longer_than_the_instance_allows_is_named() -> None:
    instance = {"run_monitoring": {"max_runtime_seconds": 3600}}
    assert not policies.no_job_may_run_longer_than_the_instance_allows(
        instance, {"cranes": dg.Definitions(jobs=[job_of(3600)])}
    )
    (found,) = policies.no_job_may_run_longer_than_the_instance_allows(
        instance, {"cranes": dg.Definitions(jobs=[job_of(3601)])}
    )
    assert found.startswith("dags/locations/cranes.py: job work_job may run 3601 seconds, above the 3600")


def test_no_two_heavy_jobs_start_in_the_same_minute() -> None:
    problems = policies.heavy_jobs_do_not_start_together(LOCATIONS)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("one", "other", "first_minute"),
    [
        (firing("0 5 * * 3"), firing("0 5 * * 6", name="other"), None),
        (firing("0 5 * * *"), firing("0 5 * * 6", name="other"), "2027-01-02 05:00 UTC"),
        (firing("0 5 * * *"), firing("0 5 * * 6", name="other", seconds=3599), None),
        (firing("20 * * * *"), firing("20 3 1 1 *", name="other"), "2027-01-01 03:20 UTC"),
        # The same moment in another zone, half of the year.
        (firing("0 5 * * *"), firing("0 7 * * *", "Europe/Berlin", name="other"), "2027-03-28 05:00 UTC"),
    ],
)
def test_heavy_jobs_that_start_together_are_named_with_the_first_minute(
    one: dg.Definitions, other: dg.Definitions, first_minute: str | None
) -> None:
    found = policies.heavy_jobs_do_not_start_together({"one": one, "other": other})
    if first_minute is None:
        assert found == []
    else:
        (problem,) = found
        assert problem.startswith("dags/locations/one.py: work_schedule and other_schedule of other start heavy jobs")
        assert problem.endswith(f"first at {first_minute}: move one of them by some minutes")


@of_each_location
def test_no_schedule_ticks_while_clocks_change(location: str) -> None:
    problems = policies.no_schedule_ticks_while_clocks_change(location, LOCATIONS[location])
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("cron", "zone", "odd"),
    [
        ("30 2 * * *", None, None),
        ("30 2 * * *", "UTC", None),
        ("30 3 * * *", "Europe/Berlin", None),
        ("30 2 * * 1-6", "Europe/Berlin", None),
        ("30 2 * * *", "Europe/Berlin", "2027-03-28 02:30"),
        ("59 1 * * *", "America/New_York", "2027-11-07 01:59"),
        ("0 * * * *", "America/New_York", "2027-03-14 02:00"),
        # Where clocks change at midnight.
        ("30 23 * * *", "Asia/Beirut", "2027-10-30 23:30"),
        ("0 0 * * *", "Asia/Beirut", "2027-03-28 00:00"),
        # By half an hour.
        ("45 1 * * *", "Australia/Lord_Howe", "2027-04-04 01:45"),
        ("15 1 * * *", "Australia/Lord_Howe", None),
        ("0 2 * * *", "Asia/Kolkata", None),
    ],
)
def test_a_tick_in_a_skipped_or_repeated_hour_is_named(cron: str, zone: str | None, odd: str | None) -> None:
    found = policies.no_schedule_ticks_while_clocks_change("cranes", firing(cron, zone))
    if odd is None:
        assert found == []
    else:
        (problem,) = found
        assert f"schedule work_schedule ({cron}) ticks at {odd} {zone}" in problem
        assert 'give it execution_timezone="UTC"' in problem
