"""The teams, and how a definition names the one that owns it.

A location names its owner once, `build_definitions(owner=…)`, for all its assets and asset checks. Definitions that
Dagster cannot change afterwards name their owner themselves:

| definition | argument |
|---|---|
| job, schedule, sensor, an asset of another team | `**owned_by(OWNER)` |
| asset, multi_asset, asset_check: their step, for alerts | `op_tags=owner_tags(OWNER)` |
| op, graph, and sensors without `owners=` | `tags=owner_tags(OWNER)` |

`python -m tools.ownership` prints who owns what. Channels and thresholds of a team are in `dags/slack_alerts.py`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypedDict

OWNER_TAG = "owner"


class JobOwners(StrEnum):
    """The teams. The value is the team's name in tags, in `owners=` and in alerts."""

    TEAM_ANALYTICS_PLATFORM = "team-analytics-platform"
    TEAM_CLICKHOUSE = "team-clickhouse"
    TEAM_DATA_PLATFORM = "team-data-platform"
    TEAM_INGESTION = "team-ingestion"
    TEAM_REVENUE_ANALYTICS = "team-revenue-analytics"
    TEAM_WEB_ANALYTICS = "team-web-analytics"


# A location named like its team, such as `web_analytics` of `team-web-analytics`, needs no entry.
TEAM_OF_OTHER_LOCATIONS: Mapping[str, JobOwners] = {"shared": JobOwners.TEAM_DATA_PLATFORM}


class Ownership(TypedDict):
    """The arguments that name the owner of a definition with `owners=` and `tags=`."""

    owners: list[str]
    tags: dict[str, str]


def team_of_location(location: str) -> str | None:
    """Return the team that owns a code location, by the location's name; None when no team is named like it."""
    team = TEAM_OF_OTHER_LOCATIONS.get(location, f"team-{location.replace('_', '-')}")
    return team if team in set(JobOwners) else None


def owner_tags(owner: JobOwners, /, **more_tags: str) -> dict[str, str]:
    """Return the owner tag together with the given tags.

    Raises ValueError when `more_tags` names another owner. A tag whose key is not a Python name is passed as
    `**{"dagster/priority": "1"}`.
    """
    if OWNER_TAG in more_tags:
        raise ValueError(f"Tag '{OWNER_TAG}' is set by the first argument ({owner.value}): remove it from the tags.")
    return {OWNER_TAG: owner.value, **more_tags}


def owned_by(owner: JobOwners, /, **more_tags: str) -> Ownership:
    """Return `owners=` and `tags=` of a definition: `@dg.job(**owned_by(JobOwners.TEAM_CLICKHOUSE))`."""
    return {"owners": [f"team:{owner.value}"], "tags": owner_tags(owner, **more_tags)}
