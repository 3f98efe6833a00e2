"""Each policy on each location, and on planted faults, which it must name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest
from pydantic import Field

from dags.common.inventory import everything_of, ops_of
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG, NO_CHECK_BECAUSE
from dags.tests.policy import policies
from dags.tests.policy.loaded import LOCATIONS, of_each_location
from dags.tests.policy.policies import POLICIES, Policy

OWNER = JobOwners.TEAM_CLICKHOUSE
DAYS = dg.DailyPartitionsDefinition("2027-01-01")


@of_each_location
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
def test_the_policy_holds(location: str, policy: Policy) -> None:
    problems = policy(location, LOCATIONS[location])
    assert not problems, "\n".join(problems)


def test_the_walk_finds_something_of_each_kind() -> None:
    kinds = [kind for definitions in LOCATIONS.values() for kind, _ in everything_of(definitions)]
    assert set(kinds) == {"asset", "asset check", "job", "schedule", "sensor"}
    assert len(kinds) > 20
    assert sum(len(ops_of(definitions)) for definitions in LOCATIONS.values()) > 10


class Nested(dg.Config):
    length: float = 1.0


class Settings(dg.Config):
    crane: str = ""
    beams: list[Nested] = Field(default_factory=list, description="Beams.")
    wait: float = Field(default=1.0, description="How long.")
    wait_seconds: float = Field(default=1.0, description="How long.")
    size_of: str = Field(default="", description="No number.")


class Wet(dg.Config):
    dry_run: bool = Field(default=False, description="Move nothing.")


class Dry(dg.Config):
    dry_run: bool = Field(default=True, description="Move nothing.")


class Crane(dg.ConfigurableResource[Any]):
    reach: float


@dg.op(tags=owner_tags(OWNER))
def lift() -> None: ...


@dg.op(tags=owner_tags(OWNER))
def lift_wet(config: Wet) -> None: ...


@dg.op(tags=owner_tags(OWNER))
def lift_dry(config: Dry) -> None: ...


def job(
    op: dg.OpDefinition = lift, name: str = "lift_job", config: Any = None, tags: Mapping[str, str] | None = None
) -> dg.JobDefinition:
    said = {MAX_RUNTIME_TAG: "60", MAX_RETRIES_TAG: "0", **(tags or {})}

    @dg.job(name=name, description="Lifts.", config=config, **owned_by(OWNER, **{k: v for k, v in said.items() if v}))
    def made() -> None:
        op()

    return made


LIFT_JOB = job()


def asset(name: str | None = "cranes", **given: Any) -> dg.AssetsDefinition:
    arguments: dict[str, Any] = {
        "description": "Cranes.",
        "group_name": "cranes",
        "metadata": {NO_CHECK_BECAUSE: "few"},
        "op_tags": owner_tags(OWNER),
        **owned_by(OWNER),
        **given,
    }

    def do_nothing() -> None: ...

    made: dg.AssetsDefinition = dg.asset(name=name, **{**owned_by(OWNER), "op_tags": owner_tags(OWNER), **arguments})(
        do_nothing
    )
    return made


def check(name: str = "cranes_stand", **given: Any) -> dg.AssetChecksDefinition:
    arguments = {"op_tags": owner_tags(OWNER), "metadata": owner_tags(OWNER), **given}

    @dg.asset_check(asset="cranes", name=name, description="They stand.", **arguments)
    def made() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    return made


def schedule(name: str, **given: Any) -> dg.ScheduleDefinition:
    arguments: dict[str, Any] = {"description": "Early.", **owned_by(OWNER), **given}
    return dg.ScheduleDefinition(name=name, job=LIFT_JOB, cron_schedule="0 5 * * *", **arguments)


def sensor(name: str, **given: Any) -> dg.SensorDefinition:
    @dg.sensor(name=name, job=LIFT_JOB, **{"description": "Looks.", **owned_by(OWNER), **given})
    def made() -> dg.SkipReason:
        return dg.SkipReason("nothing")

    return made


@dataclass(frozen=True)
class Planted:
    """Definitions of a location `cranes` with a fault, and the problem that the policy must return."""

    policy: Policy
    problem: str
    definitions: dict[str, Any]


def faults_of_ownership() -> Iterator[Planted]:
    policy: Policy = policies.everything_has_an_owner
    unowned: dict[str, Any] = {"owners": None, "tags": {}}
    mixed: dict[str, Any] = {"owners": ["team:team-ingestion"], "tags": {"owner": "team-clickhouse"}}
    unknown: dict[str, Any] = {"owners": ["team:team-unknown"], "tags": {"owner": "team-unknown"}}
    yield Planted(policy, "asset cranes has no owner: define the location with", {"assets": [asset(**unowned)]})
    yield Planted(policy, "has owners ['team:team-ingestion'] and tag team-clickhouse", {"assets": [asset(**mixed)]})
    yield Planted(policy, "owner team-unknown, which is not in JobOwners", {"assets": [asset(**unknown)]})
    yield Planted(policy, "sensor look has no owner: add **owned_by", {"sensors": [sensor("look", **unowned)]})
    without = check(metadata={})
    yield Planted(
        policy,
        "check cranes:cranes_stand has no owner: define the location with",
        {"asset_checks": [without]},
    )
    unowned_job = dg.JobDefinition(name="lift_job", graph_def=dg.GraphDefinition(name="lift_job", node_defs=[lift]))
    yield Planted(policy, "job lift_job has no owner: add **owned_by", {"jobs": [unowned_job]})
    unowned_schedule = schedule("lift_schedule", **unowned)
    yield Planted(policy, "schedule lift_schedule has no owner: add **owned_by", {"schedules": [unowned_schedule]})

    policy = policies.every_step_has_an_owner
    yield Planted(policy, "step cranes has no owner: add op_tags=owner_tags", {"assets": [asset(op_tags={})]})
    yield Planted(policy, "step cranes_cranes_stand has no owner", {"asset_checks": [check(op_tags={})]})


def faults_of_assets_and_jobs() -> Iterator[Planted]:
    policy: Policy = policies.everything_has_a_description
    yield Planted(policy, "asset cranes has no description: add", {"assets": [asset(description=" ")]})
    yield Planted(policy, "sensor look has no description", {"sensors": [sensor("look", description=None)]})

    policy = policies.every_asset_is_in_the_group_of_its_location
    yield Planted(policy, "in the group default: give it group_name='cranes'", {"assets": [asset(group_name=None)]})
    yield Planted(policy, "asset cranes is in the group beams", {"assets": [asset(group_name="beams")]})

    policy = policies.every_asset_has_a_check_or_a_reason_for_none
    yield Planted(policy, "asset cranes has no check: add one, or the reason as", {"assets": [asset(metadata={})]})
    both = {"assets": [asset()], "asset_checks": [check()]}
    yield Planted(policy, "has a check and a reason for none: remove 'no_check_because'", both)

    policy = policies.every_job_has_a_maximum_runtime_and_a_number_of_retries
    yield Planted(
        policy, "has nothing as dagster/max_runtime: add the seconds", {"jobs": [job(tags={MAX_RUNTIME_TAG: ""})]}
    )
    yield Planted(policy, "has 1h as dagster/max_runtime", {"jobs": [job(tags={MAX_RUNTIME_TAG: "1h"})]})
    yield Planted(policy, "has 0 as dagster/max_runtime", {"jobs": [job(tags={MAX_RUNTIME_TAG: "0"})]})
    yield Planted(policy, "nothing as dagster/max_retries: add how often", {"jobs": [job(tags={MAX_RETRIES_TAG: ""})]})


def faults_of_names() -> Iterator[Planted]:
    policy: Policy = policies.names_are_snake_case
    yield Planted(policy, "job liftJob is not in snake_case", {"jobs": [job(name="liftJob")]})
    yield Planted(policy, "asset a/Crane is not in snake_case", {"assets": [asset(name=None, key=["a", "Crane"])]})
    yield Planted(policy, "pool A_pool is not in snake_case", {"assets": [asset(pool="A_pool")]})

    policy = policies.names_end_as_their_kind_requires
    yield Planted(policy, "job lift does not end in _job: rename it", {"jobs": [job(name="lift")]})
    early = [schedule("early_schedule")]
    yield Planted(policy, "schedule early_schedule is not named after its job: call it lift_", {"schedules": early})
    yield Planted(policy, "sensor look_sensor ends in _sensor, which repeats", {"sensors": [sensor("look_sensor")]})
    yield Planted(policy, "asset cranes_table ends in _table, which repeats", {"assets": [asset("cranes_table")]})
    yield Planted(
        policy,
        "cranes:cranes_check ends in _check, which",
        {"asset_checks": [check("cranes_check")]},
    )

    policy = policies.names_of_partitioned_assets_contain_their_grain
    yield Planted(policy, "has daily partitions: add daily to its name", {"assets": [asset(partitions_def=DAYS)]})
    misnamed = asset("cranes_hourly", partitions_def=DAYS)
    yield Planted(policy, "asset cranes_hourly has daily partitions", {"assets": [misnamed]})


def faults_of_config() -> Iterator[Planted]:
    policy: Policy = policies.every_config_field_has_a_description
    yield Planted(policy, "step lift_from takes crane without a description", {"jobs": [job(lift_from())]})
    yield Planted(policy, "step lift_from takes beams.length without a description", {"jobs": [job(lift_from())]})
    yield Planted(
        policy, "resource crane takes reach without a description", {"resources": {"crane": Crane(reach=1.0)}}
    )

    policy = policies.every_measure_in_the_config_names_its_unit
    yield Planted(policy, "step lift_from takes wait without a unit", {"jobs": [job(lift_from())]})

    policy = policies.destructive_jobs_are_dry_runs_by_default
    yield Planted(policy, "takes dry_run, and its tag destructive is None: say", {"jobs": [job(lift_dry)]})
    yield Planted(policy, "its tag destructive is yes", {"jobs": [job(lift_dry, tags={DESTRUCTIVE_TAG: "yes"})]})
    yield Planted(policy, "destroys data and takes no dry_run", {"jobs": [job(lift, tags={DESTRUCTIVE_TAG: "true"})]})
    wet = "step {} is no dry run by default: give dry_run the default True"
    yield Planted(policy, wet.format("lift_wet"), {"jobs": [job(lift_wet, tags={DESTRUCTIVE_TAG: "true"})]})
    preset = {"ops": {"lift_dry": {"config": {"dry_run": False}}}}
    preset_wet = job(lift_dry, config=preset, tags={DESTRUCTIVE_TAG: "true"})
    yield Planted(policy, wet.format("lift_dry"), {"jobs": [preset_wet]})


def lift_from() -> dg.OpDefinition:
    @dg.op(tags=owner_tags(OWNER))
    def lift_from(config: Settings) -> None: ...

    return lift_from


PLANTED = [*faults_of_ownership(), *faults_of_assets_and_jobs(), *faults_of_names(), *faults_of_config()]


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: f"{fault.policy.__name__}: {fault.problem}")
def test_a_planted_fault_is_named_with_its_place_and_its_remedy(fault: Planted) -> None:
    definitions = dg.Definitions(**fault.definitions)
    problems = fault.policy("cranes", definitions)
    (found,) = [problem for problem in problems if fault.problem in problem]
    assert found.startswith("dags/locations/cranes.py: ")


def test_every_policy_fails_for_some_definitions() -> None:
    assert {fault.policy for fault in PLANTED} == set(POLICIES)


def test_a_location_without_faults_has_no_problems() -> None:
    checked = asset("beams_daily", partitions_def=DAYS, metadata={})

    @dg.asset_check(
        asset="beams_daily",
        description="They are straight.",
        op_tags=owner_tags(OWNER),
        metadata=owner_tags(OWNER),
    )
    def beams_are_straight() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    @dg.multi_asset(
        specs=[
            dg.AssetSpec(
                "bolts",
                deps=["nuts_of_others"],
                description="Bolts.",
                group_name="cranes",
                metadata={NO_CHECK_BECAUSE: "few"},
                **owned_by(OWNER),
            )
        ],
        op_tags=owner_tags(OWNER),
    )
    def bolts() -> None: ...

    definitions = dg.Definitions(
        assets=[asset(), checked, bolts],
        asset_checks=[beams_are_straight],
        jobs=[
            LIFT_JOB,
            job(lift_dry, "clear_job", tags={DESTRUCTIVE_TAG: "true"}),
            job(lift_wet, "paint_job", tags={DESTRUCTIVE_TAG: "false"}),
        ],
        schedules=[schedule("lift_schedule"), schedule("lift_again_schedule")],
        sensors=[sensor("look_for_beams"), sensor("look_by_tag", owners=None, tags=owner_tags(OWNER))],
    )
    assert [problem for policy in POLICIES for problem in policy("cranes", definitions)] == []


def test_the_name_of_a_location_is_checked_too() -> None:
    (found,) = policies.names_are_snake_case("big-cranes", dg.Definitions())
    assert "location big-cranes is not in snake_case" in found
