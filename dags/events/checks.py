"""The asset check on `events`: the share of rejected lines by team."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable

import dagster as dg
from pydantic import Field

from dags.common.markdown import markdown_table
from dags.common.owners import owner_tags
from dags.common.resources import ClickhouseResource
from dags.events import manifest
from dags.events.assets import MAX_LISTED_OBJECTS, OWNER, events
from dags.events.manifest import Entry, ObjectState


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


def rejected_percents(entries: Iterable[Entry]) -> dict[int, float]:
    """Return the percentage of rejected lines by team, for the teams that have lines."""
    lines: Counter[int] = Counter()
    rejected: Counter[int] = Counter()
    for entry in entries:
        lines[entry.team_id] += entry.lines
        rejected[entry.team_id] += entry.rejected_rows
    return {team: 100 * rejected[team] / count for team, count in lines.items() if count}
