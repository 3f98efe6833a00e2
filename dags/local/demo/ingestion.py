"""Events for the demo and for `make dev`: a sample or given files, put into object storage and found by the sensor.

What does not belong here: what the sample holds (`dags/local/sample.py`), and how events are loaded (`dags/events/`).
"""

import datetime as dt
import re
from collections.abc import Sequence
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
# Far more than the sample's objects need; a sensor that never comes to an end is a failure.
MOST_TICKS = 100
GZIP_MAGIC = b"\x1f\x8b"

OVERRIDE_COLUMNS = ("team_id", "distinct_id", "person_id", "version", "is_deleted")
MANIFEST_STATEMENT = """
SELECT object, etag, state, lines, rows, rejected_rows, object_id, reason FROM ingested_objects FINAL
WHERE (object, etag) IN %(identities)s
"""


@dataclass(frozen=True)
class Input:
    """What the demo puts into object storage: keys, and the teams whose events they are. Earlier days are not shown."""

    keys: tuple[str, ...]
    team_ids: tuple[int, ...]
    first_day: dt.date = dt.date(1970, 1, 1)


@dataclass(frozen=True)
class Ingested:
    """Lines of the objects, by what became of them, and the ids that the objects have in the tables."""

    lines: int
    events: int
    rejected: int
    object_ids: tuple[int, ...]


def put_sample(stage: Stage) -> Input:
    """Puts the sample of the last days, and the overrides of its persons, where they would come from."""
    last = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    stage.say(f"S3: making the sample of the {sample.DAYS} days up to {last}")
    objects = list(sample.sample_objects(last))
    put = sample.put_sample(stage.s3, stage.settings.object_storage_bucket, objects)
    stage.say(f"S3: {sum(one.lines for one in objects)} lines in {len(objects)} objects, {put} of them new")
    rows = [(one.team_id, one.distinct_id, one.person_id, 1, 0) for one in sample.person_overrides()]
    overrides = Insert("person_distinct_id_overrides", OVERRIDE_COLUMNS, rows, deduplication_token="sample overrides")  # noqa: S106 - not a secret
    stage.cluster.any_host(overrides).result()
    first = last - dt.timedelta(days=sample.DAYS - 1)
    return Input(tuple(one.key for one in objects), sample.TEAM_IDS, first)


def put_files(stage: Stage, access_log: Path | None, events: Path | None) -> Input:
    """Puts the given files, as objects of a team of their own. Raises DemoError when one has no known form."""
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
    return Input(tuple(keys), (GIVEN_TEAM_ID,))


def file_name(path: Path) -> str:
    """The file's name, without the characters that a key cannot have."""
    return re.sub(r"[^A-Za-z0-9_.=:@+-]", "_", path.name)


def log_name(path: Path) -> str:
    """The file's name with the ending of an access log, which many servers leave out (`access_log`, `access.log.1`)."""
    name = file_name(path)
    if re.search(r"\.log(\.gz|\.zst)?$", name):
        return name
    with path.open("rb") as file:
        is_gzip = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    return f"{name.removesuffix('.gz')}.log{'.gz' if is_gzip else ''}"


def ingest(stage: Stage, source: Input) -> Ingested:
    """Lets the sensor find the objects and runs what it asks for, until they are loaded.

    Raises DemoError when an object is not loaded in the end.
    """
    versions = current_versions(stage.s3, stage.settings.object_storage_bucket, source.keys)
    resources = ingestion.defs.resources or {}
    needed = {key: resources[key] for key in watch_event_objects.required_resource_keys}
    cursor = ""
    for _ in range(MOST_TICKS):
        with dg.build_sensor_context(stage.instance, cursor, resources=needed) as context:
            tick = watch_event_objects.evaluate_tick(context)
        cursor = tick.cursor or ""
        for request in tick.run_requests or []:
            stage.say(f"Sensor {watch_event_objects.name}: asks for a run of {load_events_job.name}")
            stage.run(ingestion.defs, load_events_job.name, tags=request.tags, run_config=request.run_config)
        if not tick.run_requests and not cursor:
            stage.say(f"Sensor {watch_event_objects.name}: {tick.skip_message}")
            return ingested(stage, list(versions.values()))
    raise DemoError(f"the sensor {watch_event_objects.name} still asks for runs after {MOST_TICKS} ticks")


def ingested(stage: Stage, versions: Sequence[ObjectVersion]) -> Ingested:
    """What the manifest says of these objects. Raises DemoError, naming each one that is not loaded."""
    query = Query(MANIFEST_STATEMENT, {"identities": [version.identity for version in versions]})
    rows = {row[:2]: row[2:] for row in stage.cluster.any_host(query).result()}
    problems = []
    for version in versions:
        state, *_, reason = rows.get(version.identity, ("not in the manifest", 0, 0, 0, 0, ""))
        if state != "loaded":
            problems.append(f"{version.key}: {state} {reason}".strip())
    if problems:
        raise DemoError("objects were not loaded:\n- " + "\n- ".join(problems[:20]))
    _, lines, events, rejected, object_ids, _ = zip(*rows.values(), strict=True)
    return Ingested(sum(lines), sum(events), sum(rejected), object_ids)
