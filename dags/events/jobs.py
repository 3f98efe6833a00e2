"""The sensor that finds new objects and asks for runs.

Each tick lists a bounded part of the bucket from where the last one ended, and starts over at the end. What the
manifest knows, and what a run that is not over yet is to load, is not asked for. The cursor is a position and no more:
without it the sensor starts at the beginning, and finds what it would have found.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.owners import owned_by
from dags.common.schedules import UNFINISHED
from dags.events import manifest
from dags.events.assets import OWNER, load_events_job
from dags.events.batches import BatchLimits, batch_hash, batches_of
from dags.events.manifest import SETTLED, Manifest
from dags.events.objects import EVENTS_PREFIX, ObjectVersion, is_folder_mark, list_page, problem_of
from dags.events.resource import EventSource

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BATCH_TAG = "events/batch"
SHOWN = 5


@dataclass(frozen=True)
class TickLimits:
    """How much one tick lists (pages of 1,000 objects) and asks for. `attempts` are runs of the very same batch."""

    pages: int = 10
    runs: int = 10
    attempts: int = 3
    batch: BatchLimits = field(default_factory=BatchLimits)


@dataclass(frozen=True)
class Listing:
    """A part of the bucket in the order of keys, and the cursor from which the next tick goes on."""

    versions: Sequence[ObjectVersion]
    cursor: str


def list_part(s3: "S3Client", bucket: str, cursor: str, pages: int) -> Listing:
    """At most so many pages after the cursor. The cursor is empty where the listing begins or has ended."""
    versions: list[ObjectVersion] = []
    for _ in range(pages):
        page, more = list_page(s3, bucket, EVENTS_PREFIX, versions[-1].key if versions else cursor)
        versions += page
        if not more:
            return Listing(versions, "")
    return Listing(versions, versions[-1].key if versions else "")


def pending_of(
    versions: Iterable[ObjectVersion], known: Manifest, in_flight: set[tuple[str, str]]
) -> list[ObjectVersion]:
    """The objects that nobody has loaded or is about to load."""
    return [
        version
        for version in versions
        if not is_folder_mark(version.key)
        and problem_of(version.key) is None
        and version.identity not in in_flight
        and (version.identity not in known or known[version.identity].state not in SETTLED)
    ]


@dataclass(frozen=True)
class TickPlan:
    """What a tick asks for: batches with the number of runs that each has had, and those that had too many."""

    batches: Sequence[tuple[Sequence[ObjectVersion], int]]
    given_up: Sequence[Sequence[ObjectVersion]]
    cursor: str


def plan_tick(
    listing: Listing, pending: Sequence[ObjectVersion], runs_of: Callable[[str], int], limits: TickLimits
) -> TickPlan:
    """The batches to ask for. Where there are more than a tick may ask for, the next tick begins with the rest."""
    batches: list[tuple[Sequence[ObjectVersion], int]] = []
    given_up: list[Sequence[ObjectVersion]] = []
    for batch in batches_of(pending, limits.batch):
        if len(batches) == limits.runs:
            before = [version.key for version in listing.versions if version.key < batch[0].key]
            return TickPlan(batches, given_up, before[-1])
        runs = runs_of(batch_hash(batch))
        if runs < limits.attempts:
            batches.append((batch, runs))
        else:
            given_up.append(batch)
    return TickPlan(batches, given_up, listing.cursor)


def evaluate(
    instance: dg.DagsterInstance,
    cursor: str,
    s3: "S3Client",
    cluster: ClickhouseCluster,
    bucket: str,
    limits: TickLimits = TickLimits(),
) -> dg.SensorResult:
    """One tick: what to ask for, or why nothing, and the next cursor."""
    listing = list_part(s3, bucket, cursor, limits.pages)
    if not listing.versions:
        where = f"after {cursor}" if cursor else f"under s3://{bucket}/{EVENTS_PREFIX}"
        return dg.SensorResult(skip_reason=f"There are no objects {where}.", cursor=listing.cursor)
    known = manifest.read_range(cluster, listing.versions[0].key, listing.versions[-1].key)
    in_flight = objects_in_flight(instance)
    pending = pending_of(listing.versions, known, in_flight)

    def runs_of(batch: str) -> int:
        return instance.get_runs_count(dg.RunsFilter(job_name=load_events_job.name, tags={BATCH_TAG: batch}))

    plan = plan_tick(listing, pending, runs_of, limits)
    requests = [_request(batch, runs) for batch, runs in plan.batches]
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=plan.cursor)
    return dg.SensorResult(skip_reason=" ".join(_reasons(listing, in_flight, plan)), cursor=plan.cursor)


def objects_in_flight(instance: dg.DagsterInstance) -> set[tuple[str, str]]:
    """Key and etag of every object that a run which is not over was asked to load."""
    runs = instance.get_runs(dg.RunsFilter(job_name=load_events_job.name, statuses=list(UNFINISHED)))
    return {(one["key"], one.get("etag", "")) for run in runs for one in _objects_of(run.run_config)}


def _objects_of(run_config: Any) -> list[dict[str, str]]:
    objects: list[dict[str, str]] = run_config.get("ops", {}).get("events", {}).get("config", {}).get("objects", [])
    return objects


def _request(batch: Sequence[ObjectVersion], runs: int) -> dg.RunRequest:
    contents = batch_hash(batch)
    objects = [{"key": version.key, "etag": version.etag} for version in batch]
    return dg.RunRequest(
        # Other content is another key, and so is another try after a run that ended without loading everything.
        run_key=f"{contents}-{runs}",
        run_config={"ops": {"events": {"config": {"objects": objects}}}},
        tags={BATCH_TAG: contents},
    )


def _reasons(listing: Listing, in_flight: set[tuple[str, str]], plan: TickPlan) -> Iterator[str]:
    versions = [version for version in listing.versions if not is_folder_mark(version.key)]
    waiting = sum(version.identity in in_flight for version in versions)
    odd = [problem for version in versions if (problem := problem_of(version.key)) is not None]
    given_up = [version for batch in plan.given_up for version in batch]
    yield f"{len(versions)} objects looked at: {len(versions) - waiting - len(odd) - len(given_up)} are dealt with."
    if waiting:
        yield f"{waiting} are to be loaded by a run that is not over."
    if given_up:
        yield (
            f"{len(given_up)} were not loaded by {BATCH_TAG} runs that ended, and are not asked for again: look at "
            f"these runs, then run load_events_job by hand ({_listed([version.key for version in given_up])})."
        )
    if odd:
        yield f"{len(odd)} cannot be loaded: {_listed(odd)}."


def _listed(texts: Sequence[str]) -> str:
    return "; ".join(texts[:SHOWN]) + (f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


@dg.sensor(
    job=load_events_job,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Finds objects of events that are not loaded, and asks for runs that load them in batches.",
    **owned_by(OWNER),
)
def watch_event_objects(
    context: dg.SensorEvaluationContext,
    s3: dg.ResourceParam[Any],
    cluster: dg.ResourceParam[ClickhouseCluster],
    event_source: dg.ResourceParam[EventSource],
) -> dg.SensorResult:
    """List, compare with the manifest and with the runs under way, ask."""
    return evaluate(context.instance, context.cursor or "", s3, cluster, event_source.storage.bucket)
