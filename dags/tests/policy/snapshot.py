"""A file with every definition of every location, so that a review shows what a change adds, changes or removes.

`python -m dags.tests.policy.snapshot` shows how the file and the code differ; with `--write`, as in `make snapshot`, it
writes the file.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import dagster as dg
import yaml

from dags.common.inventory import assets_of, checks_of, jobs_of, name_of, owner_of, pools_of, schedules_of, sensors_of
from dags.common.owners import OWNER_TAG
from dags.definitions import load_locations

SNAPSHOT = Path(__file__).with_name("definitions.yaml")
HEAD = "# What every location defines. Written by `make snapshot`; compared with the code by a test.\n"


def snapshot(locations: Mapping[str, dg.Definitions]) -> str:
    """Return all definitions as YAML, sorted by location, kind and name, without empty values."""
    text = yaml.safe_dump(
        {location: _location(definitions) for location, definitions in locations.items()},
        allow_unicode=True,
        default_flow_style=False,
        width=120,
    )
    return HEAD + text


def difference(written: str, locations: Mapping[str, dg.Definitions]) -> str:
    """Return the difference between the file and the code as a diff; empty if there is none."""
    lines = difflib.unified_diff(
        written.splitlines(), snapshot(locations).splitlines(), SNAPSHOT.name, "the code", n=4, lineterm=""
    )
    return "\n".join(lines)


def _location(definitions: dg.Definitions) -> dict[str, Any]:
    return _filled(
        assets={name_of(one): _asset(one) for one in assets_of(definitions)},
        asset_checks={
            name_of(one): _filled(owner=owner_of(one), blocking=one.blocking) for one in checks_of(definitions)
        },
        jobs={one.name: _job(one) for one in jobs_of(definitions)},
        schedules={one.name: _schedule(one) for one in schedules_of(definitions)},
        sensors={one.name: _sensor(one) for one in sensors_of(definitions)},
        resources=sorted(definitions.resources or {}),
        pools=sorted(pools_of(definitions)),
    )


def _asset(spec: dg.AssetSpec) -> dict[str, Any]:
    return _filled(
        owner=owner_of(spec),
        group=spec.group_name,
        tags=_tags(spec.tags),
        partitions=None if spec.partitions_def is None else str(spec.partitions_def),
        depends_on=sorted(dep.asset_key.to_user_string() for dep in spec.deps),
        metadata={key: str(value) for key, value in spec.metadata.items() if not key.startswith("dagster/")},
    )


def _job(job: dg.JobDefinition) -> dict[str, Any]:
    ops = list(job.graph.iterate_op_defs())
    return _filled(
        owner=owner_of(job),
        tags=_tags(job.run_tags),
        steps=sorted(op.name for op in ops),
        pools=sorted({pool for op in ops for pool in op.pools}),
        partitions=None if job.partitions_def is None else str(job.partitions_def),
    )


def _schedule(schedule: dg.ScheduleDefinition) -> dict[str, Any]:
    cron = schedule.cron_schedule
    return _filled(
        owner=owner_of(schedule),
        job=schedule.job_name,
        cron=cron if isinstance(cron, str) else list(cron),
        timezone=schedule.execution_timezone or "UTC",
        by_default=schedule.default_status.value,
        tags=_tags(schedule.tags),
    )


def _sensor(sensor: dg.SensorDefinition) -> dict[str, Any]:
    return _filled(
        owner=owner_of(sensor),
        kind=sensor.sensor_type.value,
        jobs=sorted(target.job_name for target in sensor.targets),
        seconds_between_ticks=sensor.minimum_interval_seconds,
        by_default=sensor.default_status.value,
        tags=_tags(sensor.tags),
    )


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key != OWNER_TAG}


def _filled(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, [], {}, False)}


@click.command()
@click.option("--write", is_flag=True, help="Write the file instead of failing on a difference.")
def main(*, write: bool) -> None:
    """Compare the snapshot of all definitions with the code."""
    written = SNAPSHOT.read_text() if SNAPSHOT.exists() else ""
    locations = load_locations()
    found = difference(written, locations)
    if found:
        click.echo(found)
    if write:
        SNAPSHOT.write_text(snapshot(locations))
    elif found:
        raise click.ClickException(f"{SNAPSHOT.name} differs from the code: run `make snapshot`, and commit the file.")


if __name__ == "__main__":
    main(prog_name="python -m dags.tests.policy.snapshot")
