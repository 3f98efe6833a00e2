"""Parts of the conditions that select rows to rewrite."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

# With more, a statement could exceed the server's limit on its length.
MAX_TEAMS_BY_NAME = 100


def team_condition(team_ids: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Return a condition that skips the rows of other teams, with its parameters; an empty text for many teams."""
    if not 0 < len(team_ids) <= MAX_TEAMS_BY_NAME:
        return "", {}
    return "team_id IN %(team_ids)s AND ", {"team_ids": tuple(sorted(team_ids))}


def microseconds(time: dt.datetime) -> int:
    """Return the microseconds since 1970, as toUnixTimestamp64Micro does; exact, which a float would not be."""
    return (time - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
