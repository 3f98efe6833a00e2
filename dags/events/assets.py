"""The asset `events`, its job and its check: run config, metadata, and how a partial failure ends a run.

Not here: how objects are loaded (`loading.py`), and who asks for it (`sensors.py`).
"""

import datetime as dt
import functools
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm
from dags.common.clickhouse.schema import is_clustered
from dags.common.locks import exclusive
from dags.common.owners import JobOwners, asset_owned_by, check_owned_by, owned_by
from dags.common.resources import Postgres, query_tags
from dags.common.settings import get_settings
from dags.common.tags import MAX_RETRIES_TAG, MAX_RUNTIME_TAG
from dags.events import manifest
from dags.events.batches import BatchLimits, batches_of
from dags.events.loading import BatchResult, Loader, Problem, load_batch, lock_name
from dags.events.manifest import Entry, ObjectState
from dags.events.objects import (
    EVENTS_PREFIX,
    ObjectVersion,
    current_versions,
    is_folder_mark,
    list_all,
    problem_of,
)
from dags.events.resource import EventSource

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

OWNER = JobOwners.TEAM_INGESTION
# Loads exclude each other anyway; the pool keeps those that would wait out of the workers.
POOL = "events_load"
RETRY_POLICY = dg.RetryPolicy(max_retries=2, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
SHOWN = 20


class EventObject(dg.Config):
    """One object to load."""

    key: str = Field(description="Key of the object, such as events/team=1/2026-10-01.jsonl.gz.")
    etag: str = Field(
        default="",
        description="Etag that it had when the run was asked for. Tells runs apart; what the object is now is loaded.",
    )


class LoadEventsConfig(dg.Config):
    """What to load: objects, or everything under a prefix. What is loaded already is passed over."""

    objects: list[EventObject] = Field(default_factory=list, description="Objects to load, as the sensor gives them.")
    prefix: str = Field(
        default="",
        description="Load every object under this prefix, such as events/team=1/2026-10-. For a load by hand.",
    )
    retry_unreadable: bool = Field(
        default=False, description="Try objects again that could not be read before. Otherwise they are left alone."
    )
    objects_per_batch: int = Field(default=1000, ge=1, le=5000, description="Most objects that are read at once.")
    gigabytes_per_batch: float = Field(default=2.0, gt=0, description="Most gigabytes, as stored, read at once.")
    lock_wait_seconds: float = Field(
        default=3600.0, gt=0, description="How long to wait for another load before the step fails, and is retried."
    )


@dg.asset(
    name="events",
    **asset_owned_by(OWNER),
    group_name="ingestion",
    pool=POOL,
    retry_policy=RETRY_POLICY,
)
def events(
    context: dg.AssetExecutionContext,
    config: LoadEventsConfig,
    cluster: dg.ResourceParam[ClickhouseCluster],
    postgres: dg.ResourceParam[Postgres],
    s3: dg.ResourceParam[Any],
    event_source: dg.ResourceParam[EventSource],
) -> None:
    """Events of every team in the table `events`, each object of s3://<bucket>/events/ loaded exactly once."""
    started = time.monotonic()
    bucket = event_source.storage.bucket
    versions, problems = _wanted(s3, bucket, config)
    tagged = cluster.tagged(query_tags(context))
    loader = Loader(
        cluster=tagged,
        storage=event_source.storage,
        visitor_hash_key=event_source.visitor_hash_key,
        versions_now=functools.partial(current_versions, s3, bucket),
        run_id=context.run.run_id,
        form=SchemaForm(cluster.database, cluster.name if is_clustered(get_settings()) else None),
    )
    limits = BatchLimits(config.objects_per_batch, int(config.gigabytes_per_batch * 1024**3))
    results = []
    for batch in batches_of(versions, limits):
        with exclusive(postgres, lock_name(cluster), config.lock_wait_seconds) as lock:
            result = load_batch(loader, [one.key for one in batch], lock, again=config.retry_unreadable)
        results.append(result)
        context.log.info(
            f"{batch[0].key} to {batch[-1].key}: {len(result.loaded)} objects loaded, {result.already_loaded} were "
            f"already, {len(result.problems)} could not be."
        )
    problems += [problem for result in results for problem in result.problems]
    metadata = _metadata(results, problems, time.monotonic() - started)
    if not problems:
        context.add_asset_metadata(metadata)
        return
    if any(result.loaded for result in results):
        # The step fails, so Dagster will not record by itself what was loaded all the same.
        context.log_event(dg.AssetMaterialization(context.asset_key, metadata=metadata))
    raise dg.Failure(description=_described(problems), metadata=metadata, allow_retries=False)


def _wanted(s3: "S3Client", bucket: str, config: LoadEventsConfig) -> tuple[list[ObjectVersion], list[Problem]]:
    """The objects that the run config names, in the order of their keys, and those that cannot be loaded at all."""
    if bool(config.objects) == bool(config.prefix):
        raise dg.Failure(
            description="Give either `objects` or a `prefix` in the run config: "
            '{"ops": {"events": {"config": {"prefix": "events/team=1/"}}}}',
            allow_retries=False,
        )
    if config.prefix:
        if not config.prefix.startswith(EVENTS_PREFIX):
            raise dg.Failure(description=f"A prefix begins with {EVENTS_PREFIX}.", allow_retries=False)
        found = [version for version in list_all(s3, bucket, config.prefix) if not is_folder_mark(version.key)]
        keys = [version.key for version in found]
    else:
        keys = sorted({one.key for one in config.objects})
        found = sorted(current_versions(s3, bucket, keys).values())
    problems = [Problem(key, reason, is_unreadable=False) for key in keys if (reason := problem_of(key)) is not None]
    present = {version.key for version in found}
    problems += [
        Problem(key, "is not in the bucket", is_unreadable=False)
        for key in keys
        if key not in present and problem_of(key) is None
    ]
    return [version for version in found if problem_of(version.key) is None], problems


def _described(problems: Sequence[Problem]) -> str:
    lines = [f"- {problem.key}: {problem.reason}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"- and {len(problems) - SHOWN} more")
    return (
        f"{len(problems)} objects were not loaded, all others were:\n"
        + "\n".join(lines)
        + "\nAn object that cannot be read is not tried again until it has other content, or a run has "
        "`retry_unreadable`; the others are asked for again by the sensor."
    )


def _metadata(results: Sequence[BatchResult], problems: Sequence[Problem], seconds: float) -> dict[str, Any]:
    loaded = [entry for result in results for entry in result.loaded]
    skipped: Counter[str] = Counter()
    for entry in loaded:
        skipped.update(entry.skipped_rows)
    lines = sum(entry.lines for entry in loaded)
    rejected = sum(entry.rejected_rows for entry in loaded)
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
        "skipped_by_rule": dg.MetadataValue.md(_table(("rule", "lines"), skipped.most_common())),
        "objects": dg.MetadataValue.md(
            _table(
                ("object", "rows", "rejected", "skipped"),
                [
                    (entry.key, entry.rows, entry.rejected_rows, sum(entry.skipped_rows.values()))
                    for entry in sorted(loaded, key=lambda entry: -entry.rejected_rows)[:SHOWN]
                ],
            )
        ),
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


class RejectedConfig(dg.Config):
    """What the check of rejected lines allows."""

    maximum_rejected_percent: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="More rejected lines than this percentage of a team's lines are an error.",
    )
    hours: float = Field(default=24.0, gt=0, description="How far back to look, by the time of the load.")


@dg.asset_check(
    asset=events,
    description="Few of the lines that were loaded in the last day were rejected, for every team.",
    **check_owned_by(OWNER),
)
def few_events_are_rejected(
    context: dg.AssetCheckExecutionContext, config: RejectedConfig, cluster: dg.ResourceParam[ClickhouseCluster]
) -> dg.AssetCheckResult:
    """Compare rejected lines with lines, by team; objects that cannot be read at all are counted beside."""
    since = dt.datetime.now(dt.UTC) - dt.timedelta(hours=config.hours)
    tagged = cluster.tagged(query_tags(context.op_execution_context))
    entries = manifest.read_since(tagged, since).values()
    percents = rejected_percents([entry for entry in entries if entry.state is ObjectState.LOADED])
    above = {team: percent for team, percent in percents.items() if percent > config.maximum_rejected_percent}
    unreadable = [entry.key for entry in entries if entry.state is ObjectState.FAILED]
    return dg.AssetCheckResult(
        passed=not above,
        description=None
        if not above
        else f"More than {config.maximum_rejected_percent:g} percent of the lines were rejected for team "
        + ", ".join(f"{team} ({percent:.2f} percent)" for team, percent in sorted(above.items()))
        + ". Reasons and lines are in the table events_rejected.",
        metadata={
            "highest_rejected_percent": max(percents.values(), default=0.0),
            "rejected_rows": sum(entry.rejected_rows for entry in entries if entry.state is ObjectState.LOADED),
            "unreadable_objects": len(unreadable),
            "unreadable": ", ".join(sorted(unreadable)[:SHOWN]),
            "by_team": dg.MetadataValue.md(_table(("team", "rejected percent"), sorted(percents.items()))),
        },
    )


def rejected_percents(entries: Sequence[Entry]) -> dict[int, float]:
    """Rejected lines in percent of all lines, by team; a team without lines has none."""
    lines: Counter[int] = Counter()
    rejected: Counter[int] = Counter()
    for entry in entries:
        lines[entry.team_id] += entry.lines
        rejected[entry.team_id] += entry.rejected_rows
    return {team: 100 * rejected[team] / count for team, count in lines.items() if count}


load_events_job = dg.define_asset_job(
    "load_events_job",
    selection=dg.AssetSelection.assets(events) | dg.AssetSelection.checks(few_events_are_rejected),
    description="Loads objects, or all objects under a prefix, that are not loaded yet.",
    # A run whose process died is started again: loading converges.
    **owned_by(OWNER, **{MAX_RUNTIME_TAG: "14400", MAX_RETRIES_TAG: "3"}),
)
