"""Events for the demo and for `make dev`: a sample or given files, put into object storage and loaded by the sensor.

`dags/local/sample.py` makes the sample.
"""

import datetime as dt
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from dags.common.clickhouse.query import Insert, Query
from dags.events.jobs import load_events_job, watch_event_objects
from dags.events.objects import ObjectVersion, current_versions, problem_of
from dags.local import sample
from dags.local.demo.stage import DemoError, Stage
from dags.locations import ingestion

GIVEN_TEAM_ID = 100
# More than the sample needs: a sensor that still requests runs after these has failed.
MAX_TICKS = 100
GZIP_MAGIC = b"\x1f\x8b"

OVERRIDE_COLUMNS = ("team_id", "distinct_id", "person_id", "version", "is_deleted")
MANIFEST_STATEMENT = """
SELECT object, etag, state, lines, rows, rejected_rows, object_id, skipped_rows, reason FROM ingested_objects FINAL
WHERE (object, etag) IN %(identities)s
"""


@dataclass(frozen=True)
class DemoInput:
    """The objects in object storage, by key, and their teams. The report leaves out days before `first_day`."""

    keys: tuple[str, ...]
    team_ids: tuple[int, ...]
    first_day: dt.date = dt.date(1970, 1, 1)


@dataclass(frozen=True)
class LoadedObjects:
    """Counts of the lines of the objects, those skipped by rule, and the ids of the objects in the tables."""

    lines: int
    events: int
    rejected: int
    object_ids: tuple[int, ...]
    skipped: Mapping[str, int]


def put_sample(stage: Stage) -> DemoInput:
    """Put the sample of the last days into S3, and the overrides of its persons into ClickHouse."""
    last = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    stage.say(f"S3: making the sample of the {sample.DAYS} days up to {last}")
    objects = list(sample.sample_objects(last))
    put = sample.put_sample(stage.s3, stage.settings.object_storage_bucket, objects)
    lines = sum(sample_object.lines for sample_object in objects)
    stage.say(f"S3: {lines} lines in {len(objects)} objects, {put} of them new")
    overridden = sample.person_overrides()
    rows = [(override.team_id, override.distinct_id, override.person_id, 1, 0) for override in overridden]
    overrides = Insert("person_distinct_id_overrides", OVERRIDE_COLUMNS, rows, deduplication_token="sample overrides")  # noqa: S106 - not a secret
    stage.cluster.any_host(overrides).result()
    first = last - dt.timedelta(days=sample.DAYS - 1)
    return DemoInput(tuple(sample_object.key for sample_object in objects), sample.TEAM_IDS, first)


def put_files(stage: Stage, access_log: Path | None, events: Path | None) -> DemoInput:
    """Put the given files into S3, as objects of a separate team. Raises DemoError for an unknown format."""
    keys = []
    for path, name in ((access_log, log_name), (events, file_name)):
        if path is None:
            continue
        key = f"events/team={GIVEN_TEAM_ID}/{name(path)}"
        problem = problem_of(key)
        if problem is not None:
            raise DemoError(problem)
        stage.say(f"S3: putting {path} ({path.stat().st_size} bytes) as {key}")
        stage.s3.upload_file(str(path), stage.settings.object_storage_bucket, key)
        keys.append(key)
    return DemoInput(tuple(keys), (GIVEN_TEAM_ID,))


def file_name(path: Path) -> str:
    """Return the file's name with the characters that a key cannot have replaced."""
    return re.sub(r"[^A-Za-z0-9_.=:@+-]", "_", path.name)


def log_name(path: Path) -> str:
    """Return the file's name with the suffix of access logs, which many servers omit (`access_log`, `access.log.1`)."""
    name = file_name(path)
    if re.search(r"\.log(\.gz|\.zst)?$", name):
        return name
    with path.open("rb") as file:
        is_gzip = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return f"{name.removesuffix('.gz')}.log{'.gz' if is_gzip else ''}"


def ingest(stage: Stage, source: DemoInput) -> LoadedObjects:
    """Evaluate the sensor and run the runs that it requests, until the objects are loaded.

    Raises DemoError when an object is not loaded after that.
    """
    versions = current_versions(stage.s3, stage.settings.object_storage_bucket, source.keys)
    resources = ingestion.defs.resources or {}
    needed = {key: resources[key] for key in watch_event_objects.required_resource_keys}
    cursor = ""
    for _ in range(MAX_TICKS):
        with dg.build_sensor_context(stage.instance, cursor, resources=needed) as context:
            tick = watch_event_objects.evaluate_tick(context)
        cursor = tick.cursor or ""
        for request in tick.run_requests or []:
            stage.say(f"Sensor {watch_event_objects.name}: requests a run of {load_events_job.name}")
            stage.run(ingestion.defs, load_events_job.name, tags=request.tags, run_config=request.run_config)
        if not tick.run_requests and not cursor:
            stage.say(f"Sensor {watch_event_objects.name}: {tick.skip_message}")
            return loaded_objects(stage, list(versions.values()))
    raise DemoError(f"the sensor {watch_event_objects.name} still requests runs after {MAX_TICKS} ticks")


def loaded_objects(stage: Stage, versions: Sequence[ObjectVersion]) -> LoadedObjects:
    """Return what the manifest has on these objects. Raises DemoError, which names each one that is not loaded."""
    query = Query(MANIFEST_STATEMENT, {"identities": [version.identity for version in versions]})
    rows = {row[:2]: row[2:] for row in stage.cluster.any_host(query).result()}
    problems = []
    for version in versions:
        state, *_, reason = rows.get(version.identity, ("not in the manifest", 0, 0, 0, 0, {}, ""))
        if state != "loaded":
            problems.append(f"{version.key}: {state} {reason}".strip())
    if problems:
        raise DemoError("objects were not loaded:\n- " + "\n- ".join(problems[:20]))
    _, lines, events, rejected, object_ids, by_rule, _ = zip(*rows.values(), strict=True)
    skipped = sum(map(Counter, by_rule), Counter[str]())
    return LoadedObjects(sum(lines), sum(events), sum(rejected), object_ids, skipped)
