import inspect
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from dags.common.owners import JobOwners, owned_by, owner_tags, team_of_location

OWNER = JobOwners.TEAM_CLICKHOUSE


def test_a_definition_of_each_kind_carries_the_owner_as_owner_and_as_tag() -> None:
    @dg.asset(**owned_by(OWNER, cost="high"), op_tags=owner_tags(OWNER))
    def an_asset() -> None: ...

    @dg.multi_asset(specs=[dg.AssetSpec("one_of_many", **owned_by(OWNER, cost="high"))])
    def some_assets() -> None: ...

    @dg.job(**owned_by(OWNER, cost="high"))
    def an_op_job() -> None: ...

    @dg.schedule(cron_schedule="0 0 * * *", job=an_op_job, **owned_by(OWNER, cost="high"))
    def a_schedule() -> None: ...

    @dg.sensor(job=an_op_job, **owned_by(OWNER, cost="high"))
    def a_sensor() -> None: ...

    an_asset_job = dg.define_asset_job("an_asset_job", selection="an_asset", **owned_by(OWNER, cost="high"))
    definitions = dg.Definitions(
        assets=[an_asset, some_assets], jobs=[an_op_job, an_asset_job], schedules=[a_schedule], sensors=[a_sensor]
    )
    # The resolved definitions, as in a deployment.
    found: list[Any] = [
        *definitions.resolve_all_asset_specs(),
        definitions.resolve_job_def("an_op_job"),
        definitions.resolve_job_def("an_asset_job"),
        definitions.resolve_schedule_def("a_schedule"),
        definitions.resolve_sensor_def("a_sensor"),
    ]
    assert len(found) == 6
    for definition in found:
        assert list(definition.owners or []) == ["team:team-clickhouse"], definition
        assert {"owner": "team-clickhouse", "cost": "high"}.items() <= dict(definition.tags).items(), definition


def test_the_step_of_an_asset_carries_the_owner_as_tag() -> None:
    @dg.asset(**owned_by(OWNER, cost="high"), op_tags=owner_tags(OWNER))
    def an_asset() -> None: ...

    @dg.multi_asset(specs=[dg.AssetSpec("one_of_many", **owned_by(OWNER))], op_tags=owner_tags(OWNER))
    def some_assets() -> None: ...

    assert an_asset.op.tags == some_assets.op.tags == {"owner": "team-clickhouse"}


def test_an_op_carries_the_owner_as_tag() -> None:
    @dg.op(tags=owner_tags(OWNER, cost="high"))
    def an_op() -> None: ...

    assert an_op.tags == {"owner": "team-clickhouse", "cost": "high"}


def test_an_asset_check_carries_the_owner_on_its_op_and_in_its_metadata() -> None:
    @dg.asset_check(asset="an_asset", op_tags=owner_tags(OWNER), metadata=owner_tags(OWNER, runbook="rates"))
    def a_check() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    assert a_check.op.tags["owner"] == "team-clickhouse"
    (spec,) = a_check.check_specs
    assert spec.metadata == {"owner": "team-clickhouse", "runbook": "rates"}


def test_runs_of_an_owned_job_carry_the_owner_as_tag() -> None:
    @dg.op
    def an_op() -> None: ...

    @dg.job(**owned_by(OWNER))
    def a_job() -> None:
        an_op()

    with dg.DagsterInstance.ephemeral() as instance:
        result = a_job.execute_in_process(instance=instance)
        assert result.dagster_run.tags["owner"] == "team-clickhouse"


def test_a_second_owner_is_rejected() -> None:
    tags = {"owner": "team-other"}
    for helper in (owner_tags, owned_by):
        with pytest.raises(ValueError, match=r"set by the first argument \(team-clickhouse\)"):
            helper(OWNER, **tags)


def test_a_tag_may_have_a_slash_in_its_name() -> None:
    assert owner_tags(OWNER, **{"dagster/priority": "1"}) == {"owner": "team-clickhouse", "dagster/priority": "1"}


@pytest.mark.parametrize(
    "definition",
    [
        dg.asset,
        dg.graph_asset,
        dg.AssetSpec,
        dg.job,
        dg.define_asset_job,
        dg.schedule,
        dg.ScheduleDefinition,
        dg.build_schedule_from_partitioned_job,
        dg.sensor,
        dg.SensorDefinition,
    ],
)
def test_definitions_for_owned_by_take_owners_and_tags(definition: Callable[..., object]) -> None:
    assert {"owners", "tags"} <= set(inspect.signature(definition).parameters)


@pytest.mark.parametrize(
    "definition",
    [
        dg.op,
        dg.graph,
        dg.observable_source_asset,
        dg.asset_sensor,
        dg.multi_asset_sensor,
        dg.run_status_sensor,
        dg.run_failure_sensor,
        dg.AutomationConditionSensorDefinition,
    ],
)
def test_definitions_for_owner_tags_take_tags_and_no_owners(definition: Callable[..., object]) -> None:
    parameters = set(inspect.signature(definition).parameters)
    assert "tags" in parameters
    assert "owners" not in parameters, "Dagster takes owners here now: use owned_by, and say so in owners.py"


def test_the_name_of_a_location_gives_its_team() -> None:
    assert team_of_location("web_analytics") == "team-web-analytics"
    assert team_of_location("shared") == "team-data-platform"
    assert team_of_location("elsewhere") is None
