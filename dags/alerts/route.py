"""The owner of a failure and the owner's channel. Pure functions."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dags.alerts.values import Policy
from dags.common.owners import OWNER_TAG, team_of_location

if TYPE_CHECKING:
    import dagster as dg

MUTE_TAG = "disable_slack_notifications"


def get_job_owner_for_alert(
    run: "dg.DagsterRun",
    step_owner: str | None = None,
    team_of_location: Callable[[str], str | None] = team_of_location,
) -> str | None:
    """Return the team to notify of a failed run: the owner of the failed step, else of the run, else of its location.

    None means unowned: such a failure goes to the default channel.
    """
    return step_owner or run.tags.get(OWNER_TAG) or team_of_location(location_of(run) or "")


def location_of(run: "dg.DagsterRun") -> str | None:
    """Return the code location of a run, None for one that was started without any, as in a script."""
    origin = run.remote_job_origin
    return None if origin is None else origin.repository_origin.code_location_origin.location_name


def channel_of(owner: str | None, policy: Policy) -> str:
    """Return the owner's channel, or the default channel for unowned failures and owners without a channel."""
    return policy.channel_of_owner.get(owner or "", policy.default_channel)


def is_muted(tags: Mapping[str, str]) -> bool:
    """Return whether the tag of a run mutes it. Only the value `true` does."""
    return tags.get(MUTE_TAG, "").strip().lower() == "true"
