"""The asset checks on `events`: the share of rejected lines by team, and the objects without events."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable

import dagster as dg
from pydantic import Field

from dags.common.markdown import markdown_table
from dags.common.owners import owner_tags
from dags.common.resources import ClickhouseResource, S3Resource
from dags.events import manifest
from dags.events.assets import MAX_LISTED_OBJECTS, OWNER, events
from dags.events.manifest import Entry, ObjectState
from dags.events.objects import EVENTS_PREFIX, list_all
from dags.events.resource import EventSourceResource
from dags.events.unloaded import FAULTS, Cause, UnloadedObject, find_unloaded


class RejectedConfig(dg.Config):
    """Limits of the check on rejected lines."""

    maximum_rejected_percent: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="The check fails when more than this percentage of a team's lines are rejected.",
    )
    hours: float | None = Field(
        default=None,
        description="Check the loads of the last so many hours. By default only the objects that this run has loaded.",
    )


@dg.asset_check(
    asset=events,
    description="Few lines of each team were rejected by the loads of the run.",
    op_tags=owner_tags(OWNER),
)
def few_events_are_rejected(
    context: dg.AssetCheckExecutionContext, config: RejectedConfig, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Compare the rejected lines of each team with all of its lines, and count the unreadable objects."""
    cluster = clickhouse.cluster(context)
    if config.hours is None:
        entries = manifest.read_run(cluster, context.run.run_id).values()
    else:
        since = dt.datetime.now(dt.UTC) - dt.timedelta(hours=config.hours)
        entries = manifest.read_since(cluster, since).values()
    loaded = [entry for entry in entries if entry.state is ObjectState.LOADED]
    unreadable = sorted(entry.key for entry in entries if entry.state is ObjectState.FAILED)
    percents = rejected_percents(loaded)
    above = {team: percent for team, percent in percents.items() if percent > config.maximum_rejected_percent}
    by_team = [(team, f"{percent:.2f}") for team, percent in sorted(percents.items())]
    return dg.AssetCheckResult(
        passed=not above,
        description=None
        if not above
        else f"More than {config.maximum_rejected_percent:g} percent of the lines were rejected for team "
        + ", ".join(f"{team} ({percent:.2f} percent)" for team, percent in sorted(above.items()))
        + ". The table events_rejected has the lines and reasons.",
        metadata={
            "highest_rejected_percent": max(percents.values(), default=0.0),
            "rejected_rows": sum(entry.rejected_rows for entry in loaded),
            "unreadable_objects": len(unreadable),
            "unreadable": ", ".join(unreadable[:MAX_LISTED_OBJECTS]),
            "by_team": dg.MetadataValue.md(markdown_table(("team", "rejected percent"), "rr", by_team)),
        },
    )


@dg.asset_check(
    asset=events,
    description="Every object under the watched prefix can be loaded. The metadata also names what waits or is empty.",
    op_tags=owner_tags(OWNER),
)
def every_object_can_be_loaded(
    context: dg.AssetCheckExecutionContext,
    clickhouse: ClickhouseResource,
    s3: S3Resource,
    event_source: EventSourceResource,
) -> dg.AssetCheckResult:
    """Compare the objects of the bucket with the manifest."""
    versions = list_all(s3.client(), event_source.source().storage.bucket, EVENTS_PREFIX)
    counts: Counter[Cause] = Counter()
    examples: dict[Cause, list[UnloadedObject]] = {cause: [] for cause in Cause}
    for unloaded in find_unloaded(clickhouse.cluster(context), versions):
        counts[unloaded.cause] += 1
        if len(examples[unloaded.cause]) < MAX_LISTED_OBJECTS:
            examples[unloaded.cause].append(unloaded)
    faults = sum(counts[cause] for cause in FAULTS)
    rows = [(one.cause.value, one.key, one.reason) for cause in Cause for one in examples[cause]]
    first = next((one for cause in FAULTS for one in examples[cause]), None)
    return dg.AssetCheckResult(
        passed=first is None,
        description=None
        if first is None
        else f"{faults} objects under {EVENTS_PREFIX} cannot be loaded, such as {first.key}: {first.reason}. Rename or "
        "replace them, or move them out of the prefix; the metadata lists them.",
        metadata={
            **{f"objects: {cause.value}": counts[cause] for cause in Cause},
            "objects": dg.MetadataValue.md(markdown_table(("cause", "object", "reason"), "lll", rows)),
        },
    )


def rejected_percents(entries: Iterable[Entry]) -> dict[int, float]:
    """Return the percentage of rejected lines by team, for the teams that have lines."""
    lines: Counter[int] = Counter()
    rejected: Counter[int] = Counter()
    for entry in entries:
        lines[entry.team_id] += entry.lines
        rejected[entry.team_id] += entry.rejected_rows
    return {team: 100 * rejected[team] / count for team, count in lines.items() if count}
