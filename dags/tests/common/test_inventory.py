from collections.abc import Iterator

import dagster as dg

from dags.common.inventory import (
    assets_of,
    checks_of,
    everything_of,
    jobs_of,
    name_of,
    ops_of,
    owner_of,
    pools_of,
    schedules_of,
    sensors_of,
)
from dags.common.owners import JobOwners, owned_by, owner_tags

OWNER = JobOwners.TEAM_CLICKHOUSE


@dg.asset(key=["yard", "cranes"], deps=["steel_of_others"], pool="yard", **owned_by(OWNER), op_tags=owner_tags(OWNER))
def cranes() -> None: ...


@dg.multi_asset(
    specs=[dg.AssetSpec("beams", **owned_by(OWNER)), dg.AssetSpec("bolts")],
    check_specs=[dg.AssetCheckSpec("beams_are_straight", asset="beams")],
)
def beams_and_bolts() -> Iterator[dg.MaterializeResult[None]]:
    yield dg.MaterializeResult(asset_key="beams")


@dg.asset_check(asset=cranes, op_tags=owner_tags(OWNER), metadata=owner_tags(OWNER))
def cranes_stand() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.op(pool="road")
def drive() -> None: ...


@dg.job(**owned_by(OWNER))
def drive_job() -> None:
    drive()


@dg.sensor(job=drive_job)
def look() -> dg.SkipReason:
    return dg.SkipReason("nothing")


DEFINITIONS = dg.Definitions(
    assets=[cranes, beams_and_bolts, dg.AssetSpec("anchors")],
    asset_checks=[cranes_stand],
    jobs=[drive_job, dg.define_asset_job("beams_job", selection=["beams", "bolts"])],
    schedules=[dg.ScheduleDefinition(name="drive_schedule", job=drive_job, cron_schedule="0 5 * * *")],
    sensors=[look],
)


def test_every_definition_is_listed_by_kind_and_name() -> None:
    assert [(kind, name_of(one)) for kind, one in everything_of(DEFINITIONS)] == [
        ("asset", "anchors"),
        ("asset", "beams"),
        ("asset", "bolts"),
        ("asset", "yard/cranes"),
        ("job", "beams_job"),
        ("job", "drive_job"),
        ("schedule", "drive_schedule"),
        ("sensor", "look"),
        ("asset check", "beams:beams_are_straight"),
        ("asset check", "yard/cranes:cranes_stand"),
    ]


def test_an_asset_of_another_location_is_not_listed() -> None:
    assert "steel_of_others" not in [name_of(spec) for spec in assets_of(DEFINITIONS)]


def test_jobs_are_resolved_without_the_implicit_job() -> None:
    jobs = jobs_of(DEFINITIONS)
    assert [job.name for job in jobs] == ["beams_job", "drive_job"]
    assert [op.name for op in jobs[0].graph.iterate_op_defs()] == ["beams_and_bolts"]


def test_steps_of_assets_checks_and_jobs_are_found_with_their_pools() -> None:
    assert list(ops_of(DEFINITIONS)) == ["beams_and_bolts", "drive", "yard__cranes", "yard__cranes_cranes_stand"]
    assert pools_of(DEFINITIONS) == {"road", "yard"}


def test_the_owner_is_the_tag_of_a_definition_and_the_metadata_of_a_check() -> None:
    owners = {name_of(one): owner_of(one) for _, one in everything_of(DEFINITIONS)}
    assert owners["yard/cranes"] == owners["yard/cranes:cranes_stand"] == owners["drive_job"] == "team-clickhouse"
    assert owners["bolts"] is owners["look"] is owners["beams:beams_are_straight"] is None


def test_a_location_without_definitions_has_none() -> None:
    empty = dg.Definitions()
    assert list(everything_of(empty)) == []
    assert not any(walk(empty) for walk in (assets_of, checks_of, jobs_of, schedules_of, sensors_of, ops_of, pools_of))
