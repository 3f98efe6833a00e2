"""The asset `events`: its run config, its metadata, and how it fails when some objects cannot be loaded."""

import datetime as dt
import functools
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from dags.common.clickhouse.ddl import SchemaForm
from dags.common.clickhouse.schema import is_clustered
from dags.common.clickhouse.tables import EVENTS
from dags.common.locks import exclusive
from dags.common.markdown import markdown_table
from dags.common.metadata import table_metadata
from dags.common.owners import JobOwners, owner_tags
from dags.common.resources import ClickhouseResource, PostgresResource, S3Resource
from dags.common.settings import get_settings
from dags.events.batches import BatchLimits, batches_of
from dags.events.loading import BatchResult, Loader, load_batch, lock_name
from dags.events.objects import (
    EVENTS_PREFIX,
    ObjectProblem,
    ObjectVersion,
    current_versions,
    is_folder_marker,
    list_all,
    problem_of,
)
from dags.events.resource import EventSourceResource

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

OWNER = JobOwners.TEAM_INGESTION
# A lock keeps loads apart. The pool keeps waiting loads from occupying workers.
POOL = "events_load"
RETRY_POLICY = dg.RetryPolicy(max_retries=2, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
MAX_LISTED_OBJECTS = 20


class EventObject(dg.Config):
    """One object to load."""

    key: str = Field(description="Key of the object, such as events/team=1/2026-10-01.jsonl.gz.")
    etag: str = Field(
        default="",
        description="Etag of the object when the run was requested. It only distinguishes runs: the current content is "
        "loaded.",
    )


class LoadEventsConfig(dg.Config):
    """The objects to load, by key or by prefix. Objects that are already loaded are skipped."""

    objects: list[EventObject] = Field(default_factory=list, description="Objects to load, as the sensor lists them.")
    prefix: str = Field(
        default="",
        description="Load every object under this prefix, such as events/team=1/2026-10-. For manual runs.",
    )
    retry_unreadable: bool = Field(
        default=False, description="Try objects again that could not be read before. By default they are skipped."
    )
    objects_per_batch: int = Field(default=1000, ge=1, le=5000, description="Maximum number of objects in a batch.")
    gigabytes_per_batch: float = Field(
        default=2.0, gt=0, description="Maximum size of a batch in gigabytes, as stored."
    )
    lock_wait_seconds: float = Field(
        default=3600.0, gt=0, description="How long to wait for another load before the step fails and is retried."
    )


@dg.asset(
    name="events",
    op_tags=owner_tags(OWNER),
    group_name="ingestion",
    kinds={"clickhouse", "s3"},
    metadata=table_metadata(EVENTS),
    pool=POOL,
    retry_policy=RETRY_POLICY,
    # Access logs are rotated daily: without a new object for two days, some source has stopped.
    freshness_policy=dg.FreshnessPolicy.time_window(dt.timedelta(hours=48), dt.timedelta(hours=26)),
)
def events(
    context: dg.AssetExecutionContext,
    config: LoadEventsConfig,
    clickhouse: ClickhouseResource,
    postgres: PostgresResource,
    s3: S3Resource,
    event_source: EventSourceResource,
) -> None:
    """Events of every team in the table `events`, each object of s3://<bucket>/events/ loaded exactly once."""
    started = time.monotonic()
    source, client = event_source.source(), s3.client()
    bucket = source.storage.bucket
    versions, problems = _find_objects(client, bucket, config)
    cluster = clickhouse.cluster(context)
    loader = Loader(
        cluster=cluster,
        postgres=postgres.client(),
        storage=source.storage,
        visitor_hash_key=source.visitor_hash_key,
        log_rules=source.log_rules,
        list_versions=functools.partial(current_versions, client, bucket),
        run_id=context.run.run_id,
        form=SchemaForm(cluster.database, cluster.name if is_clustered(get_settings()) else None),
    )
    limits = BatchLimits(config.objects_per_batch, int(config.gigabytes_per_batch * 1024**3))
    results = []
    for batch in batches_of(versions, limits):
        keys = [version.key for version in batch]
        with exclusive(postgres.client(), lock_name(cluster), config.lock_wait_seconds) as lock:
            result = load_batch(loader, keys, lock, retry_unreadable=config.retry_unreadable)
        results.append(result)
        context.log.info(
            f"{keys[0]} to {keys[-1]}: {len(result.loaded)} objects loaded, {result.already_loaded} already loaded, "
            f"{len(result.problems)} not loaded."
        )
    problems += [problem for result in results for problem in result.problems]
    metadata = _metadata(results, problems, time.monotonic() - started)
    if not problems:
        context.add_asset_metadata(metadata)
        return
    if any(result.loaded for result in results):
        # Dagster records no materialization for a failed step, but these objects are loaded.
        context.log_event(dg.AssetMaterialization(context.asset_key, metadata=metadata))
    raise dg.Failure(description=_failure_message(problems), metadata=metadata, allow_retries=False)


def _find_objects(
    s3: "S3Client", bucket: str, config: LoadEventsConfig
) -> tuple[list[ObjectVersion], list[ObjectProblem]]:
    """Return the objects that the run config selects, in the order of their keys, and those that cannot be loaded."""
    if bool(config.objects) == bool(config.prefix):
        raise dg.Failure(
            description="Set either `objects` or `prefix` in the run config, for example "
            '{"ops": {"events": {"config": {"prefix": "events/team=1/"}}}}',
            allow_retries=False,
        )
    if config.prefix:
        if not config.prefix.startswith(EVENTS_PREFIX):
            raise dg.Failure(
                description=f"The prefix {config.prefix!r} does not begin with {EVENTS_PREFIX}.", allow_retries=False
            )
        found = [version for version in list_all(s3, bucket, config.prefix) if not is_folder_marker(version.key)]
        keys = [version.key for version in found]
    else:
        keys = sorted({one.key for one in config.objects})
        found = sorted(current_versions(s3, bucket, keys).values())
    present = {version.key for version in found}
    reasons = {key: problem_of(key) or (None if key in present else "is not in the bucket") for key in keys}
    problems = [ObjectProblem(key, reason, is_unreadable=False) for key, reason in reasons.items() if reason]
    return [version for version in found if not reasons[version.key]], problems


def _failure_message(problems: Sequence[ObjectProblem]) -> str:
    lines = [f"- {problem.key}: {problem.reason}" for problem in problems[:MAX_LISTED_OBJECTS]]
    if len(problems) > MAX_LISTED_OBJECTS:
        lines.append(f"- and {len(problems) - MAX_LISTED_OBJECTS} more")
    return (
        f"{len(problems)} objects were not loaded, all others were:\n"
        + "\n".join(lines)
        + "\nAn unreadable object is tried again when its content changes or a run sets `retry_unreadable`. The sensor "
        "requests the other objects again, for as long as it takes."
    )


def _metadata(results: Sequence[BatchResult], problems: Sequence[ObjectProblem], seconds: float) -> dict[str, Any]:
    loaded = [entry for result in results for entry in result.loaded]
    skipped: Counter[str] = Counter()
    for entry in loaded:
        skipped.update(entry.skipped_rows)
    lines = sum(entry.lines for entry in loaded)
    rejected = sum(entry.rejected_rows for entry in loaded)
    objects = [
        (entry.key, entry.rows, entry.rejected_rows, sum(entry.skipped_rows.values()))
        for entry in sorted(loaded, key=lambda entry: -entry.rejected_rows)[:MAX_LISTED_OBJECTS]
    ]
    return {
        "objects_loaded": len(loaded),
        "objects_already_loaded": sum(result.already_loaded for result in results),
        "objects_not_loaded": len(problems),
        "lines": lines,
        "rows": sum(entry.rows for entry in loaded),
        "rejected_rows": rejected,
        "rejected_percent": round(100 * rejected / lines, 3) if lines else 0.0,
        "skipped_rows": skipped.total(),
        "size_bytes": sum(entry.size_bytes for entry in loaded),
        "seconds": round(seconds, 3),
        "skipped_by_rule": dg.MetadataValue.md(markdown_table(("rule", "lines"), "lr", skipped.most_common())),
        "objects": dg.MetadataValue.md(markdown_table(("object", "rows", "rejected", "skipped"), "lrrr", objects)),
    }
