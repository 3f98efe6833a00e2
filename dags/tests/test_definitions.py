import dagster as dg
import pytest

from dags.common.owners import JobOwners
from dags.definitions import DuplicateDefinitionError, defs, load_locations, merge_locations
from dags.locations import build_definitions

OWNER = JobOwners.TEAM_INGESTION


@dg.asset
def rates() -> None: ...


@dg.asset_check(asset=rates)
def rates_are_fresh() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.op
def work() -> None: ...


@dg.job
def work_job() -> None:
    work()


@dg.schedule(cron_schedule="0 0 * * *", job=work_job)
def work_schedule() -> None: ...


@dg.sensor(job=work_job)
def work_sensor() -> None: ...


def test_every_module_of_the_locations_is_merged() -> None:
    locations = load_locations()
    assert {"clickhouse", "shared"} <= set(locations)
    for name, location in locations.items():
        jobs = {job.name for job in location.jobs or []}
        assert jobs <= {job.name for job in defs.jobs or []}, name


def test_the_merged_definitions_can_be_loaded() -> None:
    dg.Definitions.validate_loadable(defs)


@pytest.mark.parametrize(
    ("definitions", "name"),
    [
        (dg.Definitions(assets=[rates]), "asset rates"),
        (dg.Definitions(assets=[dg.AssetSpec("rates")]), "asset rates"),
        (dg.Definitions(asset_checks=[rates_are_fresh]), "asset check rates:rates_are_fresh"),
        (dg.Definitions(jobs=[work_job]), "job work_job"),
        (dg.Definitions(schedules=[work_schedule]), "schedule work_schedule"),
        (dg.Definitions(sensors=[work_sensor]), "sensor work_sensor"),
    ],
)
def test_a_definition_of_two_locations_is_named_with_both(definitions: dg.Definitions, name: str) -> None:
    with pytest.raises(DuplicateDefinitionError) as caught:
        merge_locations({"first": definitions, "second": dg.Definitions(), "third": definitions})
    assert f"- {name}: in first and in third" in str(caught.value)
    assert "Rename one" in str(caught.value)


def test_a_location_may_list_a_definition_twice() -> None:
    merged = merge_locations({"one": dg.Definitions(jobs=[work_job], schedules=[work_schedule])})
    assert [job.name for job in merged.jobs or []] == ["work_job"]


def test_two_resources_of_one_name_are_rejected_and_a_shared_one_is_not() -> None:
    shared = {"a": object()}
    merge_locations(
        {
            "one": build_definitions(owner=OWNER, resources=shared),
            "two": build_definitions(owner=OWNER, resources=shared),
        }
    )
    other = {"one": dg.Definitions(resources=shared), "two": dg.Definitions(resources={"a": object()})}
    with pytest.raises(DuplicateDefinitionError, match="resource a: one in one, another in two"):
        merge_locations(other)
