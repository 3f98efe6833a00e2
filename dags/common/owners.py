"""The teams, and the one way to say that a definition belongs to one of them.

`python -m tools.ownership` prints who owns what.

Channels and thresholds of a team are alert policy and live in `dags/slack_alerts.py`.
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
    """Arguments of a definition that takes both `owners` and `tags`."""

    owners: list[str]
    tags: dict[str, str]


class AssetOwnership(Ownership):
    """Arguments of an asset with a function of its own."""

    op_tags: dict[str, str]


class StepOwnership(TypedDict):
    """Arguments of what makes several assets in one step."""

    op_tags: dict[str, str]


class TagOwnership(TypedDict):
    """Arguments of a definition that takes `tags` alone."""

    tags: dict[str, str]


class CheckOwnership(TypedDict):
    """Arguments of an asset check, which takes neither `owners` nor `tags`."""

    op_tags: dict[str, str]
    metadata: dict[str, str]


def team_of_location(location: str) -> str | None:
    """Return the team that owns a code location; None when no team is known to."""
    named_like_it = f"team-{location.replace('_', '-')}"
    team = TEAM_OF_OTHER_LOCATIONS.get(location, named_like_it)
    return team if team in set(JobOwners) else None


def owner_tags(owner: JobOwners, /, **more_tags: str) -> dict[str, str]:
    """The owner tag and the given tags as one dict, for `op_tags=`, `run_tags=` and the like.

    Raises ValueError when `more_tags` sets another owner. A tag whose name is no Python word goes in as
    `**{"dagster/priority": "1"}`.
    """
    if OWNER_TAG in more_tags:
        raise ValueError(f"Tag '{OWNER_TAG}' is set by the first argument ({owner.value}): remove it from the tags.")
    return {OWNER_TAG: owner.value, **more_tags}


def owned_by(owner: JobOwners, /, **more_tags: str) -> Ownership:
    """Owner as `owners=` and as tag, to be splatted: `@job(**owned_by(JobOwners.TEAM_CLICKHOUSE))`.

    For `graph_asset`, `AssetSpec`, `job`, `define_asset_job`, `schedule`, `ScheduleDefinition`,
    `build_schedule_from_partitioned_job`, `sensor` and `SensorDefinition`. For a `multi_asset`, on each `AssetSpec`,
    and `step_owned_by` on itself.
    """
    return {"owners": [f"team:{owner.value}"], "tags": owner_tags(owner, **more_tags)}


def asset_owned_by(owner: JobOwners, /, **more_tags: str) -> AssetOwnership:
    """Owner of an `asset`: as `owned_by` gives it, and as a tag of its op.

    Of the three only the op's tag is stored with a run, and tells an alert whose step has failed.
    """
    return {**owned_by(owner, **more_tags), "op_tags": owner_tags(owner)}


def step_owned_by(owner: JobOwners, /) -> StepOwnership:
    """Owner of the step of a `multi_asset`: who hears when it fails, whosever its assets are."""
    return {"op_tags": owner_tags(owner)}


def tagged_as_owned_by(owner: JobOwners, /, **more_tags: str) -> TagOwnership:
    """Owner as tag alone, for what has no `owners=` in Dagster.

    For `op`, `graph`, `observable_source_asset`, `asset_sensor`, `multi_asset_sensor`, `run_status_sensor`,
    `run_failure_sensor` and `AutomationConditionSensorDefinition`.
    """
    return {"tags": owner_tags(owner, **more_tags)}


def check_owned_by(owner: JobOwners, /, **more_metadata: str) -> CheckOwnership:
    """Owner of an `asset_check`: a tag on its op, and metadata on its spec, the only places Dagster has for it.

    `more_metadata` is added to the metadata. Raises ValueError when it sets another owner.
    """
    return {"op_tags": owner_tags(owner), "metadata": owner_tags(owner, **more_metadata)}
