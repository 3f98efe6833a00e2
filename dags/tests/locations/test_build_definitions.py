from collections.abc import Iterator

import dagster as dg

from dags.common.inventory import assets_of, checks_of, owner_of
from dags.common.owners import JobOwners, owned_by, owner_tags
from dags.locations import build_definitions

OWNER = JobOwners.TEAM_INGESTION
OTHER = JobOwners.TEAM_CLICKHOUSE


@dg.asset(tags={"cost": "high"}, check_specs=[dg.AssetCheckSpec("is_tall", asset="crane")])
def crane() -> Iterator[dg.MaterializeResult[None]]:
    yield dg.MaterializeResult(check_results=[dg.AssetCheckResult(passed=True)])


@dg.multi_asset(specs=[dg.AssetSpec("beams"), dg.AssetSpec("bolts", **owned_by(OTHER))])
def beams_and_bolts() -> Iterator[dg.MaterializeResult[None]]:
    yield dg.MaterializeResult(asset_key="beams")
    yield dg.MaterializeResult(asset_key="bolts")


@dg.asset_check(asset=crane, metadata={"runbook": "cranes"})
def crane_stands() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.asset_check(asset=crane, metadata=owner_tags(OTHER))
def crane_is_paid() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


DEFINITIONS = build_definitions(
    owner=OWNER,
    assets=[crane, beams_and_bolts, dg.AssetSpec("steel")],
    asset_checks=[crane_stands, crane_is_paid],
    jobs=[dg.define_asset_job("build_job", selection=dg.AssetSelection.all())],
    resources={},
)


def test_a_location_puts_its_owner_on_each_asset_that_names_none() -> None:
    specs = {spec.key.to_user_string(): spec for spec in assets_of(DEFINITIONS)}
    assert {name: owner_of(spec) for name, spec in specs.items()} == {
        "beams": "team-ingestion",
        "bolts": "team-clickhouse",
        "crane": "team-ingestion",
        "steel": "team-ingestion",
    }
    assert {name: list(spec.owners) for name, spec in specs.items()} == {
        "beams": ["team:team-ingestion"],
        "bolts": ["team:team-clickhouse"],
        "crane": ["team:team-ingestion"],
        "steel": ["team:team-ingestion"],
    }
    assert specs["crane"].tags["cost"] == "high"


def test_a_location_puts_its_owner_on_each_check_that_names_none() -> None:
    checks = {spec.name: spec for spec in checks_of(DEFINITIONS)}
    assert {name: owner_of(spec) for name, spec in checks.items()} == {
        "crane_is_paid": "team-clickhouse",
        "crane_stands": "team-ingestion",
        "is_tall": "team-ingestion",
    }
    assert (checks["crane_stands"].metadata or {})["runbook"] == "cranes"


def test_what_got_its_owner_from_the_location_still_runs() -> None:
    result = DEFINITIONS.resolve_job_def("build_job").execute_in_process()
    assert result.success
    assert len(result.get_asset_materialization_events()) == 3
    assert len(result.get_asset_check_evaluations()) == 3
    # Dagster would make it one, with a warning, each time that it loads the location.
    assert all(isinstance(checks, dg.AssetChecksDefinition) for checks in DEFINITIONS.asset_checks or [])


def test_the_location_says_who_owns_it() -> None:
    assert DEFINITIONS.metadata["owner"].value == "team-ingestion"
