"""The values that the modules of the alert router hand to each other.

All times are aware and in UTC. All text that came from a run or an error is redacted before it is put in here.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from dags.common.owners import team_of_location


@dataclass(frozen=True)
class Policy:
    """What a company edits: channels by owner, thresholds by job name, and the team of each code location."""

    channel_of_owner: Mapping[str, str]
    default_channel: str
    thresholds: Mapping[str, int] = field(default_factory=dict)
    team_of_location: Callable[[str], str | None] = team_of_location
    # Host of the Dagster UI in links, such as dagster.example.com. Without it messages have no buttons.
    domain: str | None = None


class AttemptStatus(StrEnum):
    """How a run or an asset check ended."""

    FAILED = "failed"
    SUCCEEDED = "succeeded"
    CANCELED = "canceled"


class AttemptState(StrEnum):
    """How far the router has handled an attempt."""

    NEW = "new"
    # It waits for a retry that Dagster promised.
    HELD = "held"
    # A success of a job without an open failure. A failure that arrives late may still need it.
    SKIPPED = "skipped"
    DONE = "done"


@dataclass(frozen=True)
class Attempt:
    """The end of a run, or of an asset check in it (`subject`), as the event log reports it."""

    run_id: str
    subject: str
    status: AttemptStatus
    event_id: int
    at: dt.datetime
    job_name: str
    state: AttemptState
    detail: str | None = None
    series: str | None = None
    execution: str | None = None
    backfill_id: str | None = None


@dataclass(frozen=True)
class Cause:
    """The error behind a failure: its class and its message, redacted."""

    error_class: str
    message: str


@dataclass(frozen=True)
class Failure:
    """One failed attempt as one owner sees it: only the steps and assets of that owner."""

    run_id: str
    ended_at: dt.datetime
    location: str | None
    job_name: str
    step_keys: Sequence[str] = ()
    asset_keys: Sequence[str] = ()
    partition: str | None = None
    backfill_id: str | None = None
    # Counted from 1. With automatic retries the last attempt is the one reported.
    attempt: int = 1
    cause: Cause | None = None
    # Why it counts as failed when the run itself does not say so, such as a promised retry that never started.
    reason: str | None = None


@dataclass(frozen=True)
class ExecutionOutcome:
    """How one execution of a series ended, as one owner sees it. A success counts for all owners, and has none.

    `incident` is the key of the incident that reports it; `muted_by` names the mute or the tag that suppresses it.
    """

    run_id: str
    execution: str
    series: str
    failed: bool
    at: dt.datetime
    event_id: int = 0
    owner: str | None = None
    failure: Failure | None = None
    muted_by: str | None = None
    incident: str | None = None

    @property
    def key(self) -> tuple[str, bool, str, str | None]:
        """The identity of the outcome: a run fails once in a series, and may succeed in it later."""
        return (self.run_id, self.failed, self.series, self.owner)

    @property
    def order(self) -> tuple[dt.datetime, int, str]:
        """The sort key of the order in which outcomes are decided."""
        return (self.at, self.event_id, self.run_id)


@dataclass(frozen=True)
class ClassifiedAttempt:
    """An attempt with its outcomes, or with the time until which it is held for a retry."""

    attempt: Attempt
    disposition: str | None = None
    held_until: dt.datetime | None = None
    outcomes: Sequence[ExecutionOutcome] = ()
    series: str | None = None
    execution: str | None = None
    backfill_id: str | None = None
    # The failed attempt that this one retried in time. Its end is this attempt's end.
    retried: Attempt | None = None


@dataclass(frozen=True)
class Streak:
    """Consecutive failures of a series, in order. `executions` counts the failed executions among them."""

    failures: Sequence[ExecutionOutcome]
    executions: int
    # When a success ended it.
    resolved_at: dt.datetime | None
    # The failure that reached the threshold.
    reached_by: ExecutionOutcome | None
    # The incident that reports it: that of a failure notified already, else that of `reached_by`.
    incident: str | None


class IncidentKind(StrEnum):
    """What an incident is about."""

    RUN = "run"
    BACKFILL = "backfill"
    STORM = "storm"
    FINDING = "finding"


@dataclass(frozen=True)
class Incident:
    """What one message in a channel and its thread are about, and how much of it has been notified.

    `failures` counts failed executions, `notified_failures` those notified so far; `batches` and `reminders` are the
    numbers of the last ones that were due. `storm` is the key of the storm that it is part of. Nothing follows once it
    is `finished`.
    """

    key: str
    kind: IncidentKind
    channel: str
    owner: str | None
    opened_at: dt.datetime
    threshold: int = 1
    storm: str | None = None
    resolved_at: dt.datetime | None = None
    failures: int = 0
    last_failed_at: dt.datetime | None = None
    posted: bool = False
    notified_failures: int = 0
    batches: int = 0
    reminders: int = 0
    edited_at: dt.datetime | None = None
    finished: bool = False


@dataclass(frozen=True)
class Finding:
    """Something that is broken now and produces no failed run. Its `key` stays the same while it lasts."""

    key: str
    owner: str | None
    title: str
    detail: str
    since: dt.datetime
    location: str | None = None
    job_name: str | None = None


class MuteKind(StrEnum):
    """The attribute that a mute matches."""

    OWNER = "owner"
    JOB = "job"
    LOCATION = "location"
    ASSET = "asset"
    # The key of a finding, as `status` shows it.
    FINDING = "finding"


@dataclass(frozen=True)
class Mute:
    """A mute: in force from `created_at` until just before `ends_at`."""

    id: int
    kind: MuteKind
    pattern: str
    reason: str
    created_at: dt.datetime
    ends_at: dt.datetime

    @property
    def match(self) -> str:
        """The kind and the pattern as people write them."""
        return f"{self.kind}:{self.pattern}"

    @property
    def name(self) -> str:
        """The name that suppressed outcomes carry."""
        return f"mute {self.id}"


@dataclass(frozen=True)
class MuteSubject:
    """The attributes of a failure or a finding that a mute may match."""

    owner: str | None = None
    job_name: str | None = None
    location: str | None = None
    asset_keys: Sequence[str] = ()
    finding: str | None = None


@dataclass(frozen=True)
class Suppressed:
    """What a mute suppressed of one owner's. `counts` are failed executions by job or asset."""

    owner: str | None
    counts: Mapping[str, int]
    first_at: dt.datetime
    last_at: dt.datetime
    samples: Sequence[Failure] = ()
    findings: Sequence[str] = ()

    @property
    def failures(self) -> int:
        """The number of failed executions."""
        return sum(self.counts.values())


class NoticeKind(StrEnum):
    """What a message is about."""

    FAILING = "failing"
    MORE_FAILURES = "more failures"
    STILL_FAILING = "still failing"
    RESOLVED = "resolved"
    FAILED_AND_RESOLVED = "failed and resolved"
    BACKFILL_FAILING = "backfill failing"
    BACKFILL_ENDED = "backfill ended"
    STORM = "storm"
    FINDING = "finding"
    FINDING_RESOLVED = "finding resolved"
    MUTE_ENDED = "mute ended"
    TEST = "test"


@dataclass(frozen=True)
class Notice:
    """The facts of one message. `message.py` words it; nothing in it decides where it goes.

    `owner` None is unowned. `failures` counts the failed executions of the incident so far, `consecutive_failures`
    those without a success between them. `samples` are a few failures, the newest first; `causes` are the most common
    ones with their counts. `title` and `detail` belong to findings, storms and mutes, which have no run. `lines` are
    further facts, one per line.
    """

    kind: NoticeKind
    owner: str | None
    location: str | None = None
    job_name: str | None = None
    asset_keys: Sequence[str] = ()
    backfill_id: str | None = None
    failures: int = 0
    consecutive_failures: int = 0
    threshold: int = 1
    first_failed_at: dt.datetime | None = None
    last_failed_at: dt.datetime | None = None
    last_success_at: dt.datetime | None = None
    resolved_at: dt.datetime | None = None
    samples: Sequence[Failure] = ()
    causes: Sequence[tuple[Cause, int]] = ()
    title: str = ""
    detail: str = ""
    lines: Sequence[str] = ()


class Operation(StrEnum):
    """A kind of call to Slack. An edit replaces the text of the message that opened the thread."""

    POST = "post"
    REPLY = "reply"
    EDIT = "edit"


@dataclass(frozen=True)
class Draft:
    """One call to Slack that is to be made.

    `key` is unique forever: enqueueing a key again does nothing, except that an EDIT that still waits is replaced by a
    newer one of the same thread. `thread` is the key of the POST that a REPLY or an EDIT belongs to; a POST has its own
    key there.
    """

    key: str
    thread: str
    operation: Operation
    channel: str
    notice: Notice


Block = dict[str, Any]


@dataclass(frozen=True)
class Message:
    """What is sent. `text` is complete without the blocks; `stub` is one line, for when Slack rejects the rest."""

    text: str
    blocks: Sequence[Block]
    stub: str


class DeliveryState(StrEnum):
    """The state of a row."""

    PENDING = "pending"
    # Handed to Slack under a lease. When the lease ends without an answer, the message may have been sent or not.
    SENDING = "sending"
    # It may have been sent: Slack is searched for it before anything else is done.
    UNSURE = "unsure"
    SENT = "sent"
    # An edit that a newer one replaced.
    SUPERSEDED = "superseded"
    # An edit of a message that does not exist or cannot be edited.
    DROPPED = "dropped"
    # Sent once or twice, never confirmed, and the history cannot be read.
    UNCERTAIN = "uncertain"


OPEN_STATES = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.UNSURE)


class MessageForm(StrEnum):
    """How much of a message is sent. The next smaller form is tried when Slack rejects one."""

    BLOCKS = "blocks"
    TEXT = "text"
    STUB = "stub"


@dataclass(frozen=True)
class OutboxRow:
    """A row of the outbox. `post_ts` and `post_channel_id` identify the message that opened its thread."""

    id: int
    key: str
    thread: str
    operation: Operation
    channel: str
    refused_channel: str | None
    refusal: str | None
    owner: str | None
    kind: NoticeKind
    message: Message
    state: DeliveryState
    version: int
    form: MessageForm
    alone: bool
    unsure_calls: int
    first_called_at: dt.datetime | None
    last_called_at: dt.datetime | None
    post_ts: str | None
    post_channel_id: str | None


@dataclass(frozen=True)
class Channel:
    """What is known about a channel."""

    name: str
    slack_id: str | None = None
    wait_until: dt.datetime | None = None
    wait_reason: str | None = None


@dataclass(frozen=True)
class Waiting:
    """The rows of one channel that have not been sent yet. The note is of the oldest."""

    channel: str
    rows: int
    oldest_at: dt.datetime
    note: str
