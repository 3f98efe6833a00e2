"""What the definitions of a location hold, resolved as Dagster serves them, in the order of their names.

Belongs here: walking. Not here: what a definition must have (`dags/tests/policy`) or who is shown it (`ownership.py`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from dags.common.owners import OWNER_TAG


def assets_of(definitions: dg.Definitions) -> list[dg.AssetSpec]:
    """The assets that are defined here, without those of other locations that these depend on."""
    defined: set[dg.AssetKey] = set()
    for asset in definitions.assets or []:
        if isinstance(asset, dg.AssetsDefinition):
            defined |= set(asset.keys)
        elif isinstance(asset, dg.AssetSpec):
            defined.add(asset.key)
    return sorted((spec for spec in definitions.resolve_all_asset_specs() if spec.key in defined), key=name_of)


def checks_of(definitions: dg.Definitions) -> list[dg.AssetCheckSpec]:
    """The asset checks, those that an asset makes itself included."""
    makers = [*(definitions.asset_checks or []), *(definitions.assets or [])]
    specs = {spec.key: spec for one in makers if isinstance(one, dg.AssetsDefinition) for spec in one.check_specs}
    return sorted(specs.values(), key=name_of)


def jobs_of(definitions: dg.Definitions) -> list[dg.JobDefinition]:
    """The jobs that are registered, without the one that Dagster makes for materialisations by hand."""
    return [definitions.resolve_job_def(name) for name in sorted({job.name for job in definitions.jobs or []})]


def schedules_of(definitions: dg.Definitions) -> list[dg.ScheduleDefinition]:
    """The schedules."""
    names = sorted({schedule.name for schedule in definitions.schedules or []})
    return [definitions.resolve_schedule_def(name) for name in names]


def sensors_of(definitions: dg.Definitions) -> list[dg.SensorDefinition]:
    """The sensors."""
    return [
        definitions.resolve_sensor_def(name) for name in sorted({sensor.name for sensor in definitions.sensors or []})
    ]


def ops_of(definitions: dg.Definitions) -> dict[str, dg.OpDefinition]:
    """Every op that is a step of a run, of assets, checks and jobs, by its name."""
    ops = [op for job in jobs_of(definitions) for op in job.graph.iterate_op_defs()]
    for asset in [*(definitions.assets or []), *(definitions.asset_checks or [])]:
        if isinstance(asset, dg.AssetsDefinition) and asset.is_executable:
            ops += asset.node_def.iterate_op_defs()
    return {op.name: op for op in sorted(ops, key=lambda op: op.name)}


def pools_of(definitions: dg.Definitions) -> set[str]:
    """The pools that steps take a place in."""
    return {pool for op in ops_of(definitions).values() for pool in op.pools}


def name_of(definition: Any) -> str:
    """The name of a definition for people: of an asset its key, of a check that of its asset and its own."""
    if isinstance(definition, dg.AssetSpec):
        return definition.key.to_user_string()
    if isinstance(definition, dg.AssetCheckSpec):
        return f"{definition.asset_key.to_user_string()}:{definition.name}"
    return str(definition.name)


def owner_of(definition: Any) -> str | None:
    """The team of a definition, as its tag says; of a check, as its metadata says."""
    said: Mapping[str, Any] = (
        (definition.metadata or {}) if isinstance(definition, dg.AssetCheckSpec) else definition.tags
    )
    return said.get(OWNER_TAG)


def everything_of(definitions: dg.Definitions) -> Iterator[tuple[str, Any]]:
    """Each asset, job, schedule, sensor and asset check, with the word for its kind."""
    for kind, found in (
        ("asset", assets_of(definitions)),
        ("job", jobs_of(definitions)),
        ("schedule", schedules_of(definitions)),
        ("sensor", sensors_of(definitions)),
        ("asset check", checks_of(definitions)),
    ):
        for one in found:
            yield kind, one
