"""Who hears of a failure, and in which channel. Pure.

Belongs here: the order of owners. Not here: the teams and their channels (`dags/slack_alerts.py`).
"""

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
    """The team that hears of a failed run: that of the failed step, else of the run's tag, else of its location.

    None is nobody: such a failure goes to the default channel.
    """
    return step_owner or run.tags.get(OWNER_TAG) or team_of_location(location_of(run) or "")


def location_of(run: "dg.DagsterRun") -> str | None:
    """The code location of a run, None for one that was started without any, as in a script."""
    origin = run.remote_job_origin
    return None if origin is None else origin.repository_origin.code_location_origin.location_name


def channel_of(owner: str | None, policy: Policy) -> str:
    """The owner's channel, and the default one for nobody and for an owner without a channel."""
    return policy.channel_of_owner.get(owner or "", policy.default_channel)


def is_muted(tags: Mapping[str, str]) -> bool:
    """Whether a run asks not to be told of. Any other value of the tag than `true` is no such wish."""
    return tags.get(MUTE_TAG, "").strip().lower() == "true"
