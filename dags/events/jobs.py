"""The job `load_events_job`, and the sensor that finds new objects and requests runs of it.

Each tick lists a bounded part of the bucket from where the last tick ended, and starts over after the end. Objects that
the manifest has, or that an unfinished run will load, are not requested. Objects whose runs failed are requested again
for as long as they fail, less and less often. The cursor is only a position: without it the sensor starts at the
beginning and finds the same objects.
"""

import datetime as dt
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.owners import owned_by
from dags.common.resources import ClickhouseResource, S3Resource
from dags.common.schedules import UNFINISHED, skip_if_already_running
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.events import manifest
from dags.events.assets import OWNER, events
from dags.events.batches import batch_hash
from dags.events.checks import every_object_can_be_loaded, few_events_are_rejected
from dags.events.discovery import Attempts, Listing, TickLimits, TickPlan, list_part, pending_objects, plan_tick
from dags.events.objects import EVENTS_PREFIX, ObjectVersion, is_folder_marker, problem_of
from dags.events.resource import EventSourceResource

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

BATCH_TAG = "events/batch"
MAX_LISTED_OBJECTS = 5
# Of these the attempts to load an object are counted.
MAX_FAILED_RUNS = 500

load_events_job = dg.define_asset_job(
    "load_events_job",
    selection=dg.AssetSelection.assets(events).without_checks() | dg.AssetSelection.checks(few_events_are_rejected),
    description="Loads objects, or all objects under a prefix, that are not loaded yet.",
    # A run whose process died is retried: running a load again converges.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "14400", MAX_RETRIES_TAG: "3"}),
)

check_event_objects_job = dg.define_asset_job(
    "check_event_objects_job",
    selection=dg.AssetSelection.checks(every_object_can_be_loaded),
    description="Finds the objects under the watched prefix that cannot be loaded, wait, or are empty.",
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "3600", MAX_RETRIES_TAG: "1"}),
)


@dg.schedule(
    job=check_event_objects_job,
    cron_schedule="50 5 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Checks every morning that each object of the bucket can be loaded.",
    **owned_by(OWNER),
)
def check_event_objects_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Request the check, unless the one before is still in progress."""
    return skip_if_already_running(context, check_event_objects_job.name) or dg.RunRequest()


def evaluate_tick(
    instance: dg.DagsterInstance,
    cursor: str,
    s3: "S3Client",
    cluster: ClickhouseCluster,
    bucket: str,
    limits: TickLimits,
    *,
    now: dt.datetime,
    report: Callable[[str], None] = logger.info,
) -> dg.SensorResult:
    """Return the runs to request, or why there are none, and the next cursor.

    What waits after failed runs is reported also when there are runs to request.
    """
    listing = list_part(s3, bucket, cursor, limits.max_pages)
    if not listing.versions:
        where = f"after {cursor}" if cursor else f"under s3://{bucket}/{EVENTS_PREFIX}"
        return dg.SensorResult(skip_reason=f"There are no objects {where}.", cursor=listing.cursor)
    known = manifest.read_range(cluster, listing.versions[0].key, listing.versions[-1].key)
    in_progress = objects_in_progress(instance)
    pending = pending_objects(listing.versions, known, in_progress)

    attempts = failed_attempts(instance)
    plan = plan_tick(listing, pending, attempts, limits, now)
    waits = _waits(plan.waiting, attempts)
    if plan.batches:
        for wait in waits:
            report(wait)
        requests = [_run_request(batch, _count_runs(instance, batch_hash(batch))) for batch in plan.batches]
        return dg.SensorResult(run_requests=requests, cursor=plan.cursor)
    reasons = [*_skip_reasons(listing, in_progress, plan), *waits]
    return dg.SensorResult(skip_reason=" ".join(reasons), cursor=plan.cursor)


def objects_in_progress(instance: dg.DagsterInstance) -> set[tuple[str, str]]:
    """Return key and etag of every object that an unfinished run was requested to load."""
    runs = instance.get_runs(dg.RunsFilter(job_name=load_events_job.name, statuses=list(UNFINISHED)))
    return {(one["key"], one.get("etag", "")) for run in runs for one in _objects_of(run.run_config)}


def failed_attempts(instance: dg.DagsterInstance) -> dict[tuple[str, str], Attempts]:
    """Return the failed runs of each object, by key and etag, as far as the newest MAX_FAILED_RUNS runs know."""
    unsuccessful = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    filters = dg.RunsFilter(job_name=load_events_job.name, statuses=unsuccessful)
    attempts: dict[tuple[str, str], Attempts] = {}
    for record in instance.get_run_records(filters, limit=MAX_FAILED_RUNS):
        ended = record.create_timestamp
        if record.end_time is not None:
            ended = dt.datetime.fromtimestamp(record.end_time, dt.UTC)
        for one in _objects_of(record.dagster_run.run_config):
            identity = one["key"], one.get("etag", "")
            known = attempts.get(identity, Attempts(0, record.create_timestamp, ended))
            attempts[identity] = Attempts(
                known.count + 1, min(known.since, record.create_timestamp), max(known.last, ended)
            )
    return attempts


def _count_runs(instance: dg.DagsterInstance, batch: str) -> int:
    return instance.get_runs_count(dg.RunsFilter(job_name=load_events_job.name, tags={BATCH_TAG: batch}))


def _objects_of(run_config: Any) -> list[dict[str, str]]:
    objects: list[dict[str, str]] = run_config.get("ops", {}).get("events", {}).get("config", {}).get("objects", [])
    return objects


def _run_request(batch: Sequence[ObjectVersion], earlier_runs: int) -> dg.RunRequest:
    contents = batch_hash(batch)
    objects = [{"key": version.key, "etag": version.etag} for version in batch]
    return dg.RunRequest(
        # Dagster launches each run key once, so changed content and each further attempt need a key of their own.
        run_key=f"{contents}-{earlier_runs}",
        run_config={"ops": {"events": {"config": {"objects": objects}}}},
        tags={BATCH_TAG: contents},
    )


def _skip_reasons(listing: Listing, in_progress: set[tuple[str, str]], plan: TickPlan) -> Iterator[str]:
    versions = [version for version in listing.versions if not is_folder_marker(version.key)]
    waiting = sum(version.identity in in_progress for version in versions)
    invalid = [problem for version in versions if (problem := problem_of(version.key)) is not None]
    done = len(versions) - waiting - len(invalid) - len(plan.waiting)
    yield f"{len(versions)} objects scanned: {done} already loaded or unreadable."
    if waiting:
        yield f"{waiting} will be loaded by a run that is still in progress."
    if invalid:
        yield f"{len(invalid)} cannot be loaded: {_listed(invalid)}."


def _waits(waiting: Sequence[ObjectVersion], attempts: Mapping[tuple[str, str], Attempts]) -> list[str]:
    """Return what waits after failed runs, since when, and until when."""
    if not waiting:
        return []
    found = [attempts[version.identity] for version in waiting]
    since, due = min(one.since for one in found), min(one.due for one in found)
    text = (
        f"{len(waiting)} wait after failed runs, since {since:%Y-%m-%d %H:%M} UTC; the next attempt is at {due:%H:%M} "
        f"UTC: {_listed([version.key for version in waiting])}. The errors are in the failed runs of load_events_job."
    )
    return [text]


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - MAX_LISTED_OBJECTS
    return "; ".join(texts[:MAX_LISTED_OBJECTS]) + (f" and {more} more" if more > 0 else "")


@dg.sensor(
    job=load_events_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Finds objects of events that are not loaded, and requests runs that load them in batches.",
    **owned_by(OWNER),
)
def watch_event_objects(
    context: dg.SensorEvaluationContext,
    s3: S3Resource,
    clickhouse: ClickhouseResource,
    event_source: EventSourceResource,
) -> dg.SensorResult:
    """List objects, compare them with the manifest and with unfinished runs, and request the rest."""
    cluster = clickhouse.tagged(QueryTags(step="watch_event_objects", owner=OWNER.value))
    bucket = event_source.source().storage.bucket
    return evaluate_tick(
        context.instance,
        context.cursor or "",
        s3.client(),
        cluster,
        bucket,
        TickLimits(),
        now=dt.datetime.now(dt.UTC),
        report=context.log.info,
    )
