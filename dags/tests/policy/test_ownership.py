from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest

from dags.common.owners import OWNER_TAG, JobOwners
from dags.definitions import load_locations
from dags.slack_alerts import notification_channel_per_team

LOCATIONS = load_locations()
TEAMS = {owner.value for owner in JobOwners}


def definitions_with_owners(location: dg.Definitions) -> Iterator[tuple[str, Any]]:
    """Every definition of a location that has `owners`, with a name for people."""
    # Not those that another location defines, and that this one only depends on.
    defined = {key for asset in location.assets or [] if isinstance(asset, dg.AssetsDefinition) for key in asset.keys}
    for spec in location.resolve_all_asset_specs():
        if spec.key in defined:
            yield f"asset {spec.key.to_user_string()}", spec
    for job in location.jobs or []:
        yield f"job {job.name}", location.resolve_job_def(job.name)
    for schedule in location.schedules or []:
        yield f"schedule {schedule.name}", location.resolve_schedule_def(schedule.name)
    for sensor in location.sensors or []:
        yield f"sensor {sensor.name}", location.resolve_sensor_def(sensor.name)


def checks_of(location: dg.Definitions) -> Iterator[dg.AssetCheckSpec]:
    for checks in location.asset_checks or []:
        yield from checks.check_specs
    for asset in location.assets or []:
        if isinstance(asset, dg.AssetsDefinition):
            yield from asset.check_specs


def steps_of(location: dg.Definitions) -> Iterator[tuple[str, dg.OpDefinition]]:
    """Every op of a location that is a step of a run, with a name for people."""
    for asset in [*(location.assets or []), *(location.asset_checks or [])]:
        if isinstance(asset, dg.AssetsDefinition) and asset.is_executable:
            yield f"{asset.node_def.name}", asset.op
    for job in location.jobs or []:
        if isinstance(job, dg.JobDefinition):
            for node in job.graph.iterate_op_defs():
                yield f"{job.name}: {node.name}", node


def problem_of(definition: Any) -> str | None:
    tag = dict(definition.tags).get(OWNER_TAG)
    owners = list(getattr(definition, "owners", None) or [])
    if tag is None:
        return "it has no owner: add **owned_by(JobOwners.TEAM_…)"
    if tag not in TEAMS:
        return f"its owner {tag} is not in JobOwners: use a team of dags/common/owners.py"
    # A sensor of runs or assets has no owners= in Dagster, only the tag.
    if owners != [f"team:{tag}"] and not (isinstance(definition, dg.SensorDefinition) and not owners):
        return f"its owners are {owners} and its tag is {tag}: give both with **owned_by(JobOwners.TEAM_…)"
    return None


def test_every_definition_of_every_location_has_an_owner() -> None:
    walked = [
        (f"{location}: {name}", definition)
        for location, definitions in LOCATIONS.items()
        for name, definition in definitions_with_owners(definitions)
    ]
    assert len(walked) > 5, "the walk found nothing to look at"
    problems = [f"{name}: {problem}" for name, one in walked if (problem := problem_of(one)) is not None]
    assert not problems, "\n".join(problems)


def test_every_asset_check_has_an_owner() -> None:
    walked = [(location, spec) for location, definitions in LOCATIONS.items() for spec in checks_of(definitions)]
    assert walked, "the walk found no asset check"
    problems = [
        f"{location}: asset check {spec.asset_key.to_user_string()}:{spec.name} has no owner: "
        "add **check_owned_by(JobOwners.TEAM_…)"
        for location, spec in walked
        if (spec.metadata or {}).get(OWNER_TAG) not in TEAMS
    ]
    assert not problems, "\n".join(problems)


def test_every_step_of_every_run_says_who_hears_when_it_fails() -> None:
    walked = [(location, *step) for location, definitions in LOCATIONS.items() for step in steps_of(definitions)]
    assert len(walked) > 5, "the walk found nothing to look at"
    problems = [
        f"{location}: step {name} has no owner: use **asset_owned_by(…) for an asset, **step_owned_by(…) for a "
        "multi_asset, **check_owned_by(…) for a check, **tagged_as_owned_by(…) for an op"
        for location, name, step in walked
        if step.tags.get(OWNER_TAG) not in TEAMS
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("owner", list(JobOwners))
def test_every_owner_has_a_channel(owner: JobOwners) -> None:
    channel = notification_channel_per_team.get(owner.value, "")
    assert channel.startswith("#"), f"{owner.value} has no channel: add it to notification_channel_per_team"


def test_every_channel_is_of_an_owner() -> None:
    strangers = set(notification_channel_per_team) - TEAMS
    assert not strangers, f"not in JobOwners: {strangers}. Remove them from notification_channel_per_team"


def test_two_teams_do_not_share_a_channel() -> None:
    assert len(set(notification_channel_per_team.values())) == len(notification_channel_per_team)


def test_the_walk_sees_what_is_wrong() -> None:
    @dg.job
    def nobodys_job() -> None: ...

    @dg.job(owners=["team:team-clickhouse"], tags={"owner": "team-ingestion"})
    def twisted_job() -> None: ...

    @dg.job(owners=["team:nobody"], tags={"owner": "nobody"})
    def strangers_job() -> None: ...

    assert "has no owner" in str(problem_of(nobodys_job))
    assert "its owners are ['team:team-clickhouse'] and its tag is team-ingestion" in str(problem_of(twisted_job))
    assert "is not in JobOwners" in str(problem_of(strangers_job))
