"""The definitions of a location by kind, resolved as Dagster serves them and sorted by name."""

from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from dags.common.owners import OWNER_TAG


def assets_of(definitions: dg.Definitions) -> list[dg.AssetSpec]:
    """Return the assets that are defined here, without those of other locations that they depend on."""
    defined: set[dg.AssetKey] = set()
    for asset in definitions.assets or []:
        if isinstance(asset, dg.AssetsDefinition):
            defined |= set(asset.keys)
        elif isinstance(asset, dg.AssetSpec):
            defined.add(asset.key)
    return sorted((spec for spec in definitions.resolve_all_asset_specs() if spec.key in defined), key=name_of)


def checks_of(definitions: dg.Definitions) -> list[dg.AssetCheckSpec]:
    """Return the asset checks, including the checks that an asset evaluates itself."""
    makers = [*(definitions.asset_checks or []), *(definitions.assets or [])]
    specs = {spec.key: spec for one in makers if isinstance(one, dg.AssetsDefinition) for spec in one.check_specs}
    return sorted(specs.values(), key=name_of)


def jobs_of(definitions: dg.Definitions) -> list[dg.JobDefinition]:
    """Return the registered jobs, without the implicit job of manual materializations."""
    return [definitions.resolve_job_def(name) for name in sorted({job.name for job in definitions.jobs or []})]


def schedules_of(definitions: dg.Definitions) -> list[dg.ScheduleDefinition]:
    """Return the schedules."""
    names = sorted({schedule.name for schedule in definitions.schedules or []})
    return [definitions.resolve_schedule_def(name) for name in names]


def sensors_of(definitions: dg.Definitions) -> list[dg.SensorDefinition]:
    """Return the sensors."""
    return [
        definitions.resolve_sensor_def(name) for name in sorted({sensor.name for sensor in definitions.sensors or []})
    ]


def ops_of(definitions: dg.Definitions) -> dict[str, dg.OpDefinition]:
    """Return every op that is a step of a run, of assets, checks and jobs, by its name."""
    ops = [op for job in jobs_of(definitions) for op in job.graph.iterate_op_defs()]
    for asset in [*(definitions.assets or []), *(definitions.asset_checks or [])]:
        if isinstance(asset, dg.AssetsDefinition) and asset.is_executable:
            ops += asset.node_def.iterate_op_defs()
    return {op.name: op for op in sorted(ops, key=lambda op: op.name)}


def pools_of(definitions: dg.Definitions) -> set[str]:
    """Return the pools of the steps."""
    return {pool for op in ops_of(definitions).values() for pool in op.pools}


def name_of(definition: Any) -> str:
    """Return the name of a definition for messages: the key of an asset, the key and the name of a check."""
    if isinstance(definition, dg.AssetSpec):
        return definition.key.to_user_string()
    if isinstance(definition, dg.AssetCheckSpec):
        return f"{definition.asset_key.to_user_string()}:{definition.name}"
    return str(definition.name)


def owner_of(definition: Any) -> str | None:
    """Return the owner of a definition from its tag, and of a check from its metadata."""
    tags: Mapping[str, Any] = (
        (definition.metadata or {}) if isinstance(definition, dg.AssetCheckSpec) else definition.tags
    )
    return tags.get(OWNER_TAG)


def everything_of(definitions: dg.Definitions) -> Iterator[tuple[str, Any]]:
    """Yield each asset, job, schedule, sensor and asset check with the name of its kind."""
    for kind, found in (
        ("asset", assets_of(definitions)),
        ("job", jobs_of(definitions)),
        ("schedule", schedules_of(definitions)),
        ("sensor", sensors_of(definitions)),
        ("asset check", checks_of(definitions)),
    ):
        for one in found:
            yield kind, one
