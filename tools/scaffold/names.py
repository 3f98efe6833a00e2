"""The rules for the name of a team, a dag and a channel. A refusal says which rule is broken."""

import builtins
import keyword
import re
import sys
from dataclasses import dataclass

import click

MAX_NAME_CHARACTERS = 40
MAX_CHANNEL_CHARACTERS = 80

# Words that mean something else in tags, in file names or in conversation.
RESERVED = frozenset({"dag", "default", "example", "job", "nobody", "none", "owner", "team", "test", "unknown"})
# The definitions of a dag get these endings.
ENDINGS = ("_asset", "_daily", "_job", "_schedule", "_sensor")

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*")
_CHANNEL = re.compile(rf"[a-z0-9_-]{{1,{MAX_CHANNEL_CHARACTERS}}}")


class RefusedError(click.ClickException):
    """A request that breaks a rule. The message says which, and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message} Nothing was written.")


@dataclass(frozen=True)
class Team:
    """The names of a team, all derived from the name of its location: `user_growth`."""

    location: str

    @property
    def name(self) -> str:
        """In tags and in `owners=`: `team-user-growth`."""
        return f"team-{self.location.replace('_', '-')}"

    @property
    def member(self) -> str:
        """In the enum JobOwners: `TEAM_USER_GROWTH`."""
        return f"TEAM_{self.location.upper()}"


def team_from(text: str) -> Team:
    """Return the team named `user-growth` or `user_growth`. Raises RefusedError."""
    if text.startswith(("team-", "team_")):
        raise RefusedError(f"Team '{text}': leave out '{text[:5]}', as in TEAM={text[5:] or 'growth'}.")
    return Team(_module_name("Team", text, "TEAM=growth"))


def dag_from(text: str) -> str:
    """Return the module name of a dag. Raises RefusedError."""
    name = _module_name("Dag", text, "NAME=signups")
    for ending in ENDINGS:
        if name.endswith(ending):
            raise RefusedError(
                f"Dag '{text}': leave out '{ending}', as in NAME={name.removesuffix(ending)}. The asset, the job and "
                "the schedule get their endings from the template."
            )
    if name.startswith("test_"):
        raise RefusedError(f"Dag '{text}': pytest would collect it as a test. Leave out 'test_'.")
    return name


def channel_from(text: str) -> str:
    """Return the channel with its `#`, which may be omitted. Raises RefusedError."""
    name = text.removeprefix("#")
    if not name:
        raise RefusedError("CHANNEL is empty: give one, as in CHANNEL=#alerts-growth.")
    if not _CHANNEL.fullmatch(name):
        raise RefusedError(
            f"Channel '{text}': Slack allows lower-case letters, digits, hyphens and underscores, "
            f"{MAX_CHANNEL_CHARACTERS} at most, as in CHANNEL=#alerts-growth."
        )
    return f"#{name}"


def _module_name(kind: str, text: str, example: str) -> str:
    name = text.replace("-", "_")
    is_python = keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name)
    rules = (
        (not text, "is empty: give one"),
        (not _NAME.fullmatch(text), "must be words of a-z and 0-9 that begin with a letter, joined by '-' or '_'"),
        (len(text) > MAX_NAME_CHARACTERS, f"has {len(text)} characters: {MAX_NAME_CHARACTERS} at most"),
        (is_python, "is a word of Python: choose another"),
        (name in sys.stdlib_module_names, "is a module of Python's own library: choose another"),
        (name in RESERVED, "means something else here: choose another"),
    )
    for broken, rule in rules:
        if broken:
            raise RefusedError(f"{kind} '{text}' {rule}, as in {example}.")
    return name
