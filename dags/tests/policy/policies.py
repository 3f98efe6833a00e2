"""Rules that can be checked for each location by itself. A policy returns its problems, each with a place and a remedy.

`shared_policies.py` has the rules that need all locations, or the instance.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
)
from dags.common.owners import OWNER_TAG, JobOwners
from dags.common.tags import DESTRUCTIVE_TAG, MAX_RETRIES_TAG, MAX_RUNTIME_TAG, NO_CHECK_BECAUSE

Policy = Callable[[str, dg.Definitions], list[str]]

TEAMS = {owner.value for owner in JobOwners}

SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# Names that break a rule and stay, each with the reason.
FIXED_NAMES = {
    "squash_person_overrides": "runbooks and past alerts name the job",
    "web_sessions_export": "it exports the table of its name",
    "web_report_export": "its objects have the grain in their name",
}
# Endings that repeat the kind of the definition.
REDUNDANT_ENDINGS = {"asset": ("_asset", "_table"), "sensor": ("_sensor",), "asset check": ("_check",)}
GRAINS: Mapping[type[dg.PartitionsDefinition], str] = {
    dg.HourlyPartitionsDefinition: "hourly",
    dg.DailyPartitionsDefinition: "daily",
    dg.WeeklyPartitionsDefinition: "weekly",
    dg.MonthlyPartitionsDefinition: "monthly",
}
# A number whose name has one of these words needs one of these units.
MEASURES = {"age", "cutoff", "delay", "duration", "interval", "memory", "period", "size", "timeout", "wait"}
UNITS = {"milliseconds", "seconds", "minutes", "hours", "days", "bytes", "mebibytes", "gigabytes", "percent", "rows"}


def _where(location: str, kind: str, name: str) -> str:
    return f"dags/locations/{location}.py: {kind} {name}"


def everything_has_an_owner(location: str, definitions: dg.Definitions) -> list[str]:
    """The same team of JobOwners as tag and as `owners=`."""
    problems = []
    for kind, one in everything_of(definitions):
        owner = owner_of(one)
        owners = list(getattr(one, "owners", None) or [])
        by_location = kind in {"asset", "asset check"}
        remedy = "define the location with build_definitions(owner=…)" if by_location else "add **owned_by(…)"
        # A check, and a sensor of runs or assets, has no owners= in Dagster.
        may_lack_owners = kind == "asset check" or isinstance(one, dg.SensorDefinition)
        if owner is None:
            problem = f"has no owner: {remedy}"
        elif owner not in TEAMS:
            problem = f"has the owner {owner}, which is not in JobOwners: use a team of dags/common/owners.py"
        elif owners != [f"team:{owner}"] and not (may_lack_owners and not owners):
            problem = f"has owners {owners} and tag {owner}: give both with **owned_by(…)"
        else:
            continue
        problems.append(f"{_where(location, kind, name_of(one))} {problem}")
    return problems


def every_step_has_an_owner(location: str, definitions: dg.Definitions) -> list[str]:
    """As tag of the op, the only owner that is stored with a run, so that an alert finds it."""
    return [
        f"{_where(location, 'step', name)} has no owner: add op_tags=owner_tags(OWNER) to the asset or check, "
        "tags=owner_tags(OWNER) to the op"
        for name, op in ops_of(definitions).items()
        if op.tags.get(OWNER_TAG) not in TEAMS
    ]


def everything_has_a_description(location: str, definitions: dg.Definitions) -> list[str]:
    """For the Dagster UI."""
    return [
        f"{_where(location, kind, name_of(one))} has no description: add a docstring or description="
        for kind, one in everything_of(definitions)
        if not (one.description or "").strip()
    ]


def every_asset_is_in_the_group_of_its_location(location: str, definitions: dg.Definitions) -> list[str]:
    """So that the groups in the Dagster UI are the teams."""
    return [
        f"{_where(location, 'asset', name_of(spec))} is in the group {spec.group_name}: give it group_name={location!r}"
        for spec in assets_of(definitions)
        if spec.group_name != location
    ]


def every_asset_has_a_check_or_a_reason_for_none(location: str, definitions: dg.Definitions) -> list[str]:
    """One of the two, and not both."""
    checked = {spec.asset_key for spec in checks_of(definitions)}
    problems = []
    for spec in assets_of(definitions):
        reason = str(spec.metadata.get(NO_CHECK_BECAUSE, "")).strip()
        if spec.key not in checked and not reason:
            problem = f"has no check: add one, or the reason as metadata={{NO_CHECK_BECAUSE: …}} ({NO_CHECK_BECAUSE!r})"
        elif spec.key in checked and reason:
            problem = f"has a check and a reason for none: remove {NO_CHECK_BECAUSE!r} from its metadata"
        else:
            continue
        problems.append(f"{_where(location, 'asset', name_of(spec))} {problem}")
    return problems


def every_job_has_a_maximum_runtime_and_a_number_of_retries(location: str, definitions: dg.Definitions) -> list[str]:
    """Whole numbers, the runtime above zero."""
    problems = []
    for job in jobs_of(definitions):
        where = _where(location, "job", job.name)
        runtime, retries = job.run_tags.get(MAX_RUNTIME_TAG, ""), job.run_tags.get(MAX_RETRIES_TAG, "")
        if not re.fullmatch(r"[1-9][0-9]*", runtime):
            problems.append(
                f"{where} has {runtime or 'nothing'} as {MAX_RUNTIME_TAG}: add the seconds after which a run is "
                'terminated, as in **owned_by(OWNER, **{MAX_RUNTIME_TAG: "1800", MAX_RETRIES_TAG: "0"})'
            )
        if not re.fullmatch(r"[0-9]+", retries):
            problems.append(
                f"{where} has {retries or 'nothing'} as {MAX_RETRIES_TAG}: add how often a run whose process died is "
                'retried, "0" for never, as in **owned_by(OWNER, **{MAX_RETRIES_TAG: "0"})'
            )
    return problems


def names_are_snake_case(location: str, definitions: dg.Definitions) -> list[str]:
    """The names of all definitions, steps, pools, and the location itself."""
    named = [(kind, name_of(one)) for kind, one in everything_of(definitions)]
    named += [("step", name) for name in ops_of(definitions)]
    named += [("pool", pool) for pool in sorted(pools_of(definitions))]
    return [
        f"{_where(location, kind, name)} is not in snake_case: use words of a-z and digits, joined by underscores"
        for kind, name in [*named, ("location", location)]
        if not all(SNAKE_CASE.fullmatch(part) for part in re.split("[/:]", name))
    ]


def names_end_as_their_kind_requires(location: str, definitions: dg.Definitions) -> list[str]:
    """Jobs end in `_job`, schedules in their job's name and `_schedule`; others do not end in their kind."""
    problems = [
        f"{_where(location, 'job', job.name)} does not end in _job: rename it"
        for job in jobs_of(definitions)
        if not job.name.endswith("_job") and job.name not in FIXED_NAMES
    ]
    for schedule in schedules_of(definitions):
        stem = schedule.job_name.removesuffix("_job")
        if not (schedule.name.startswith(stem) and schedule.name.endswith("_schedule")):
            problems.append(
                f"{_where(location, 'schedule', schedule.name)} is not named after its job: call it {stem}_schedule"
            )
    for kind, one in everything_of(definitions):
        problems += [
            f"{_where(location, kind, name_of(one))} ends in {ending}, which repeats its kind: name what it does"
            for ending in REDUNDANT_ENDINGS.get(kind, ())
            if name_of(one).endswith(ending)
        ]
    return problems


def names_of_partitioned_assets_contain_their_grain(location: str, definitions: dg.Definitions) -> list[str]:
    """The word "daily" for daily partitions, and likewise for hours, weeks and months."""
    problems = []
    for spec in assets_of(definitions):
        grain = next((word for kind, word in GRAINS.items() if isinstance(spec.partitions_def, kind)), None)
        name = name_of(spec)
        if grain is not None and grain not in re.split("[_/]", name) and name not in FIXED_NAMES:
            problems.append(f"{_where(location, 'asset', name)} has {grain} partitions: add {grain} to its name")
    return problems


def every_config_field_has_a_description(location: str, definitions: dg.Definitions) -> list[str]:
    """For the launchpad."""
    return [
        f"{_where(location, kind, name)} takes {path} without a description: give it one, Field(description=…)"
        for kind, name, schema in _configs(definitions)
        for path, field in _fields(schema)
        if not (field.description or "").strip()
    ]


def every_measure_in_the_config_names_its_unit(location: str, definitions: dg.Definitions) -> list[str]:
    """A timeout, for example, ends in `_seconds`."""
    return [
        f"{_where(location, kind, name)} takes {path} without a unit: add one to its name, such as _seconds or _bytes"
        for kind, name, schema in _configs(definitions)
        for path, field in _fields(schema)
        if _is_number(field.config_type) and _lacks_its_unit(path.rsplit(".", 1)[-1])
    ]


def destructive_jobs_are_dry_runs_by_default(location: str, definitions: dg.Definitions) -> list[str]:
    """A job with `dry_run` says by tag whether it destroys data; if it does, `dry_run` is True by default."""
    problems = []
    for job in jobs_of(definitions):
        where = _where(location, "job", job.name)
        destructive = job.run_tags.get(DESTRUCTIVE_TAG)
        defaults = dict(_dry_run_defaults(job))
        if defaults and destructive not in {"true", "false"}:
            problems.append(
                f"{where} takes dry_run, and its tag {DESTRUCTIVE_TAG} is {destructive}: say whether it destroys data, "
                'with the tag DESTRUCTIVE_TAG "true" or "false"'
            )
        if destructive == "true" and not defaults:
            problems.append(
                f"{where} destroys data and takes no dry_run: give its op dry_run: bool = Field(default=True)"
            )
        if destructive == "true":
            problems += [
                f"{where} destroys data, and its step {op} is no dry run by default: give dry_run the default True"
                for op, default in defaults.items()
                if default is not True
            ]
    return problems


def _dry_run_defaults(job: dg.JobDefinition) -> Iterator[tuple[str, bool | None]]:
    """Yield each op that takes `dry_run`, with its default in a run without config; None if it is required."""
    preset = (job.run_config or {}).get("ops", {})
    for op in job.graph.iterate_op_defs():
        for path, field in _fields(op.config_schema):
            if path == "dry_run":
                default = field.default_value if field.default_provided else None
                yield op.name, preset.get(op.name, {}).get("config", {}).get("dry_run", default)


def _configs(definitions: dg.Definitions) -> Iterator[tuple[str, str, Any]]:
    """Yield the kind and name of each step and resource with the schema of its config."""
    for name, op in ops_of(definitions).items():
        yield "step", name, op.config_schema
    for name, resource in sorted((definitions.resources or {}).items()):
        # A resource that is neither of these is a plain value without config.
        if isinstance(resource, dg.ConfigurableResource | dg.ConfigurableIOManager):
            yield "resource", name, resource.to_config_schema()
        elif isinstance(resource, dg.ResourceDefinition):
            yield "resource", name, resource.config_schema


def _fields(schema: Any) -> Iterator[tuple[str, Any]]:
    """Yield every field of a config schema, including nested ones, with its path."""
    field = schema.as_field()
    if field is not None:
        yield from _fields_within(field.config_type, "")


def _fields_within(config_type: Any, path: str) -> Iterator[tuple[str, Any]]:
    # Lists and optional values have an inner type, structures have fields, scalars have neither.
    inner = getattr(config_type, "inner_type", None)
    if inner is not None:
        yield from _fields_within(inner, path)
    for name, field in getattr(config_type, "fields", {}).items():
        here = f"{path}.{name}" if path else name
        yield here, field
        yield from _fields_within(field.config_type, here)


def _lacks_its_unit(name: str) -> bool:
    words = set(name.split("_"))
    return not MEASURES.isdisjoint(words) and UNITS.isdisjoint(words)


def _is_number(config_type: Any) -> bool:
    inner = getattr(config_type, "inner_type", None)
    return _is_number(inner) if inner is not None else config_type.given_name in {"Int", "Float"}


POLICIES: tuple[Policy, ...] = (
    everything_has_an_owner,
    every_step_has_an_owner,
    everything_has_a_description,
    every_asset_is_in_the_group_of_its_location,
    every_asset_has_a_check_or_a_reason_for_none,
    every_job_has_a_maximum_runtime_and_a_number_of_retries,
    names_are_snake_case,
    names_end_as_their_kind_requires,
    names_of_partitioned_assets_contain_their_grain,
    every_config_field_has_a_description,
    every_measure_in_the_config_names_its_unit,
    destructive_jobs_are_dry_runs_by_default,
)
