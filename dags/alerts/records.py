"""The values that the modules of the alert engine hand to each other. No logic, no I/O.

All times are aware and in UTC. All text that came from a run or an error has been redacted before it is put in here.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dags.common.owners import team_of_location


@dataclass(frozen=True)
class Policy:
    """Who hears of what: everything that a company edits. Channels are keyed by owner; thresholds by job name."""

    channel_of_owner: Mapping[str, str]
    default_channel: str
    thresholds: Mapping[str, int] = field(default_factory=dict)
    team_of_location: Callable[[str], str | None] = team_of_location
    # Host of the web interface in links, such as dagster.example.com; without it messages have no buttons.
    domain: str | None = None


@dataclass(frozen=True)
class Cause:
    """The error behind a failure: its class and what it says, redacted."""

    error_class: str
    message: str


@dataclass(frozen=True)
class Failure:
    """One failed attempt, as one owner is told of it: only the steps and assets that are theirs."""

    run_id: str
    ended_at: dt.datetime
    location: str | None
    job_name: str
    step_keys: Sequence[str] = ()
    asset_keys: Sequence[str] = ()
    partition: str | None = None
    backfill_id: str | None = None
    # Counted from 1; with automatic retries the last attempt is the one told.
    attempt: int = 1
    cause: Cause | None = None
    # Why it counts as failed when the run itself does not say so, such as a promised retry that never started.
    reason: str | None = None


class NoticeKind(StrEnum):
    """What a message is about."""

    FAILING = "failing"
    MORE_FAILURES = "more failures"
    STILL_FAILING = "still failing"
    RECOVERED = "recovered"
    FAILED_AND_RECOVERED = "failed and recovered"
    BACKFILL_FAILING = "backfill failing"
    BACKFILL_ENDED = "backfill ended"
    STORM = "storm"
    FINDING = "finding"
    FINDING_OVER = "finding over"
    MUTE_ENDED = "mute ended"
    TEST = "test"


@dataclass(frozen=True)
class Notice:
    """The facts of one message. `message.py` words it; nothing in it decides where it goes.

    `owner` None is unowned. `failures` counts failed executions of the incident so far, `streak` those in a row.
    `samples` are a few failures, the newest first; `causes` are the commonest, with how often each came. `title` and
    `detail` are of findings, storms and mutes, which have no run. `lines` are further facts, one a line.
    """

    kind: NoticeKind
    owner: str | None
    location: str | None = None
    job_name: str | None = None
    asset_keys: Sequence[str] = ()
    backfill_id: str | None = None
    failures: int = 0
    streak: int = 0
    threshold: int = 1
    first_failed_at: dt.datetime | None = None
    last_failed_at: dt.datetime | None = None
    last_success_at: dt.datetime | None = None
    recovered_at: dt.datetime | None = None
    samples: Sequence[Failure] = ()
    causes: Sequence[tuple[Cause, int]] = ()
    title: str = ""
    detail: str = ""
    lines: Sequence[str] = ()


class Operation(StrEnum):
    """What is done in Slack. An edit replaces the text of the message that opened the thread."""

    POST = "post"
    REPLY = "reply"
    EDIT = "edit"


@dataclass(frozen=True)
class Draft:
    """One thing to be done in Slack.

    `key` is unique for ever: enqueueing a key again does nothing, except that an EDIT that is still waiting is replaced
    by a newer one of the same thread. `thread` is the key of the POST that a REPLY or an EDIT
    belongs to; a POST has its own key there.
    """

    key: str
    thread: str
    operation: Operation
    channel: str
    notice: Notice


@dataclass(frozen=True)
class Finding:
    """Something that is broken now and that no run tells of. The same `key` while it lasts."""

    key: str
    owner: str | None
    title: str
    detail: str
    since: dt.datetime
    location: str | None = None
    job_name: str | None = None
