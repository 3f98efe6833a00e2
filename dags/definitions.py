"""All locations merged into one, for `dagster dev -m dags.definitions`."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping

import dagster as dg

from dags import locations


class NotALocationError(TypeError):
    """A module in `dags/locations` that exposes no definitions."""


class DuplicateDefinitionError(Exception):
    """Two locations with a definition of the same name."""


def load_locations() -> dict[str, dg.Definitions]:
    """Return the definitions of every module in `dags/locations`, by the module's name.

    Raises NotALocationError for a module without `defs`.
    """
    return {
        module.name: _definitions_of(f"{locations.__name__}.{module.name}")
        for module in pkgutil.iter_modules(locations.__path__)
    }


def merge_locations(definitions_by_location: Mapping[str, dg.Definitions]) -> dg.Definitions:
    """Return all locations as one. Raises DuplicateDefinitionError, which names everything that two of them define."""
    first: dict[str, str] = {}
    problems = []
    for location, definitions in definitions_by_location.items():
        for name in set(_names(definitions)):
            if name in first:
                problems.append(f"{name}: in {first[name]} and in {location}")
            first.setdefault(name, location)
    resources: dict[str, tuple[str, object]] = {}
    for location, definitions in definitions_by_location.items():
        for key, value in (definitions.resources or {}).items():
            earlier_location, earlier = resources.setdefault(key, (location, value))
            if earlier is not value:
                problems.append(f"resource {key}: one in {earlier_location}, another in {location}")
    if problems:
        raise DuplicateDefinitionError(
            "Locations define the same names. Rename one, or define it in one location only:\n"
            + "\n".join(f"- {problem}" for problem in sorted(problems))
        )
    return dg.Definitions.merge(*definitions_by_location.values())


def _definitions_of(module_name: str) -> dg.Definitions:
    definitions = getattr(importlib.import_module(module_name), "defs", None)
    if not isinstance(definitions, dg.Definitions):
        raise NotALocationError(
            f"{module_name} has no `defs`: add `defs = build_definitions(...)`, or move it out of dags/locations, "
            "where every module is a location."
        )
    return definitions


def _names(definitions: dg.Definitions) -> Iterator[str]:
    for asset in definitions.assets or []:
        if isinstance(asset, dg.AssetsDefinition):
            yield from (f"asset {key.to_user_string()}" for key in asset.keys)
            yield from (_check_name(spec) for spec in asset.check_specs)
        elif isinstance(asset, dg.AssetSpec | dg.SourceAsset):
            yield f"asset {asset.key.to_user_string()}"
    for checks in definitions.asset_checks or []:
        yield from (_check_name(spec) for spec in checks.check_specs)
    yield from (f"job {job.name}" for job in definitions.jobs or [])
    yield from (f"schedule {schedule.name}" for schedule in definitions.schedules or [])
    yield from (f"sensor {sensor.name}" for sensor in definitions.sensors or [])


def _check_name(spec: dg.AssetCheckSpec) -> str:
    return f"asset check {spec.asset_key.to_user_string()}:{spec.name}"


defs = merge_locations(load_locations())
