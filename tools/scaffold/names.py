"""What may be the name of a team, of a dag and of a channel; each refusal says the rule. No file is looked at here."""

import builtins
import keyword
import re
import sys
from dataclasses import dataclass

LONGEST_NAME = 40
LONGEST_CHANNEL = 80

# What a name would be mistaken for, in tags, in file names or in what people say.
RESERVED = frozenset({"dag", "default", "example", "job", "nobody", "none", "owner", "team", "test", "unknown"})
# What definitions of a dag are named after it with.
ENDINGS = ("_asset", "_daily", "_job", "_schedule", "_sensor")

_NAME = re.compile(r"[a-z][a-z0-9]*(?:[_-][a-z0-9]+)*")
_CHANNEL = re.compile(r"[a-z0-9_-]+")


class NameRefusedError(ValueError):
    """A name breaks a rule. The message says which, and gives a name that would do."""


@dataclass(frozen=True)
class Team:
    """A team under each of its names, all made of the one of its location: `user_growth`."""

    location: str

    @property
    def name(self) -> str:
        """In tags and in `owners=`: `team-user-growth`."""
        return f"team-{self.location.replace('_', '-')}"

    @property
    def member(self) -> str:
        """In the enum: `TEAM_USER_GROWTH`."""
        return f"TEAM_{self.location.upper()}"


def team_from(text: str) -> Team:
    """The team of that name, written `user-growth` or `user_growth`. Raises NameRefusedError."""
    if text.startswith(("team-", "team_")):
        raise NameRefusedError(f"Team '{text}': leave out '{text[:5]}', as in TEAM={text[5:] or 'growth'}.")
    return Team(_module_name("Team", text, "TEAM=growth"))


def dag_from(text: str) -> str:
    """The module's name of a dag. Raises NameRefusedError."""
    name = _module_name("Dag", text, "NAME=signups")
    for ending in ENDINGS:
        if name.endswith(ending):
            raise NameRefusedError(
                f"Dag '{text}': leave out '{ending}', as in NAME={name.removesuffix(ending)}. The asset, job and "
                "schedule get their endings themselves."
            )
    if name.startswith("test_"):
        raise NameRefusedError(f"Dag '{text}': it would be taken for a test. Leave out 'test_'.")
    return name


def channel_from(text: str) -> str:
    """The channel with its `#`, which may be left out. Raises NameRefusedError."""
    name = text.removeprefix("#")
    if not name:
        raise NameRefusedError("No channel is given: give one, as in CHANNEL=#alerts-growth.")
    if not _CHANNEL.fullmatch(name) or len(name) > LONGEST_CHANNEL:
        raise NameRefusedError(
            f"Channel '{text}': use lower-case letters, digits, hyphens and underscores, {LONGEST_CHANNEL} at the "
            "most, as Slack does: CHANNEL=#alerts-growth."
        )
    return f"#{name}"


def _module_name(what: str, text: str, example: str) -> str:
    if not text:
        raise NameRefusedError(f"No {what.lower()} is given: give one, as in {example}.")
    if not _NAME.fullmatch(text):
        raise NameRefusedError(
            f"{what} '{text}': use words of lower-case letters and digits, which begin with a letter and are joined by "
            f"'-' or '_', as in {example}."
        )
    if len(text) > LONGEST_NAME:
        raise NameRefusedError(f"{what} '{text}' has {len(text)} characters: {LONGEST_NAME} at the most.")
    name = text.replace("-", "_")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name) or hasattr(builtins, name):
        raise NameRefusedError(f"{what} '{text}' is a word of Python: choose another, as in {example}.")
    if name in sys.stdlib_module_names:
        raise NameRefusedError(f"{what} '{text}' is a module of Python's own library: choose another, as in {example}.")
    if name in RESERVED:
        raise NameRefusedError(f"{what} '{text}' is a word that means something else here: choose another.")
    return name
