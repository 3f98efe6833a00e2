"""Hands the outbox to Slack: every row once, twice at most when Slack's answer was lost.

Belongs here: what follows from an answer. Not here: what an answer means (`slack.py`), and the rows (`outbox.py`).

A row is committed as SENDING, with a lease, before the call, and as what became of it after. Who finds a lease that has
ended, or got no clear answer, looks the message up by its key before anything else. Each channel has one call under way
at a time, on a thread of its own, so that a channel that hangs holds up no other; the database is used by the caller's
thread alone.
"""

import datetime as dt
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from dags.alerts import outbox, slack
from dags.alerts.message import Message, code, with_line
from dags.alerts.outbox import ALL_CHANNELS, DeliveryState, MessageForm, Row
from dags.alerts.records import NoticeKind, Operation, Policy
from dags.alerts.slack import SlackAnswer, SlackOutcome
from dags.alerts.store import reading, transaction

if TYPE_CHECKING:
    from slack_sdk import WebClient

MOST_CALLS_WITHOUT_PROOF = 2


@dataclass(frozen=True)
class Pace:
    """How fast, and how patiently. All in seconds."""

    # Slack takes about one message a second in a channel.
    between_calls_seconds: float = 1.05
    # For a whole call, however it drips in.
    call_seconds: float = 8.0
    # Longer than any call, so that a lease ends only after its holder is done or dead.
    lease_seconds: float = 60.0
    after_auth_refusal_seconds: float = 60.0
    after_refusal_everywhere_seconds: float = 60.0
    # Before an edit that failed is tried again, and a history that could not be read is asked again.
    after_fault_seconds: float = 30.0
    # A history this long after a call would show what the call had posted.
    proof_seconds: float = 300.0


DEFAULT_PACE = Pace()


class DeliveryError(Exception):
    """Slack takes no messages until somebody mends something. They are kept."""


@dataclass(frozen=True)
class Delivered:
    """What one round has done.

    `problems` need somebody: the tick should fail with them. `faults` pass by themselves; they are keyed by channel.
    """

    sent: int = 0
    waiting: int = 0
    oldest_waiting_at: dt.datetime | None = None
    faults: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()

    def raise_for_problems(self) -> None:
        """Raises DeliveryError when something needs somebody."""
        if self.problems:
            raise DeliveryError(" ".join(self.problems))


class Step(Enum):
    """What a call is for."""

    SEND = "send"
    # Before the only repetition is spent, Slack must be there to take it.
    PROBE = "probe"
    SEARCH = "search"


class Next(Enum):
    """What follows from a search for a message whose fate is unknown."""

    SENT = "it was sent"
    REPEAT = "send it once more"
    LOOK_AGAIN = "look again later"
    GIVE_UP = "leave it"


def after_search(outcome: SlackOutcome, unsure_calls: int, seconds_since_call: float, proof_seconds: float) -> Next:
    """What follows, by what the search found and how many calls may each have posted a copy.

    After one such call the message is repeated unless it was found. After two it is not, unless Slack's own history,
    read long after the last of them, shows that neither was carried out.
    """
    if outcome is SlackOutcome.SENT:
        return Next.SENT
    if unsure_calls < MOST_CALLS_WITHOUT_PROOF:
        return Next.REPEAT
    if outcome is SlackOutcome.UNREADABLE:
        return Next.GIVE_UP
    return Next.REPEAT if outcome is SlackOutcome.ABSENT and seconds_since_call >= proof_seconds else Next.LOOK_AGAIN


def deliver(
    engine: sa.Engine,
    client: "WebClient",
    policy: Policy,
    clock: Callable[[], dt.datetime],
    budget_seconds: float = 20.0,
    pace: Pace = DEFAULT_PACE,
) -> Delivered:
    """Sends what waits, for up to `budget_seconds` and the time of the calls that are then under way.

    Never raises for what Slack says or does: see Delivered.
    """
    round_ = _Round(engine, client, policy, clock, pace)
    round_.run(budget_seconds)
    return round_.report()


@dataclass(frozen=True)
class _Call:
    """A call under way."""

    row: Row
    step: Step
    gives_up_at: float


class _Round:
    """One round of deliveries: which channels are ready when, and which calls are under way. Times are monotonic."""

    def __init__(
        self,
        engine: sa.Engine,
        client: "WebClient",
        policy: Policy,
        clock: Callable[[], dt.datetime],
        pace: Pace,
    ) -> None:
        self._engine = engine
        self._client = client
        self._policy = policy
        self._clock = clock
        self._pace = pace
        self._answers: queue.SimpleQueue[tuple[_Call, SlackAnswer]] = queue.SimpleQueue()
        self._calls: dict[str, _Call] = {}
        # When a channel may be used next; one that is not here has nothing to do, or is left alone.
        self._ready_at: dict[str, float] = {}
        # Channels that Slack has refused in this round, and why.
        self._refused: dict[str, str] = {}
        self._sent = 0
        self._faults: dict[str, str] = {}
        self._problems: dict[str, None] = {}

    def run(self, budget_seconds: float) -> None:
        """Sends until nothing is left that can be sent now, or the budget is used up."""
        ends_at = time.monotonic() + budget_seconds
        self._open()
        while True:
            now = time.monotonic()
            if now < ends_at:
                self._start_calls(now)
            wakes_at = self._wakes_at(ends_at)
            if wakes_at is None:
                return
            self._wait(wakes_at)

    def report(self) -> Delivered:
        """What was done, and what waits."""
        with reading(self._engine) as connection:
            waiting = outbox.waiting(connection)
        return Delivered(
            sent=self._sent,
            waiting=sum(one.rows for one in waiting),
            oldest_waiting_at=min((one.oldest_at for one in waiting), default=None),
            faults=dict(self._faults),
            problems=tuple(self._problems),
        )

    def _open(self) -> None:
        now = self._clock()
        with reading(self._engine) as connection:
            everything = outbox.read_channel(connection, ALL_CHANNELS)
            known = [outbox.read_channel(connection, name) for name in outbox.waiting_channels(connection)]
        if known and everything.wait_until is not None and everything.wait_until > now:
            self._problems[everything.wait_reason or ""] = None
            return
        for channel in known:
            self._admit(channel, now)

    def _admit(self, channel: outbox.Channel, now: dt.datetime) -> None:
        wait = 0.0 if channel.wait_until is None else (channel.wait_until - now).total_seconds()
        if wait > self._pace.between_calls_seconds:
            self._leave(channel.name, channel.wait_reason or "waits")
        else:
            self._ready_at[channel.name] = time.monotonic() + max(wait, 0.0)

    def _leave(self, channel: str, fault: str) -> None:
        """Skips a channel for the rest of the round."""
        self._faults[channel] = fault
        self._ready_at.pop(channel, None)

    def _start_calls(self, now: float) -> None:
        for channel, ready_at in list(self._ready_at.items()):
            if ready_at <= now and channel not in self._calls:
                self._start_next(channel)

    def _start_next(self, channel: str) -> None:
        """Starts what is next in a channel. What needs no call is done at once."""
        while channel in self._ready_at:
            now = self._clock()
            with transaction(self._engine) as connection:
                row = outbox.next_row(connection, channel, now)
                made = None if row is None else self._prepare(connection, row, now)
            if row is None:
                del self._ready_at[channel]
            elif made is not None:
                self._start(*made)
                return

    def _hear(self, call: _Call, answer: SlackAnswer) -> None:
        # On the thread of the call.
        self._answers.put((call, answer))

    def _prepare(
        self, connection: sa.Connection, row: Row, now: dt.datetime
    ) -> tuple[_Call, Callable[[], SlackAnswer]] | None:
        """Writes down what is about to be done for a row, and how it is done; None when it needs no call."""
        if row.state is DeliveryState.SENDING:
            # Its holder has ended, before or after Slack got it.
            self._set_unsure(connection, row, now, "the process that sent it ended before the answer")
            return None
        if row.state is DeliveryState.UNSURE:
            return self._call(row, Step.PROBE, partial(slack.probe, self._client))
        if row.operation is Operation.EDIT and not (row.post_ts and row.post_channel_id):
            outbox.change(
                connection, row, state=DeliveryState.DROPPED, note="the message to edit is not known", closed_at=now
            )
            return None
        if row.operation is not Operation.EDIT and row.channel in self._refused:
            self._redirect(connection, row, self._refused[row.channel])
            return None
        return self._lease(connection, row, now)

    def _lease(
        self, connection: sa.Connection, row: Row, now: dt.datetime
    ) -> tuple[_Call, Callable[[], SlackAnswer]] | None:
        leased = replace(row, state=DeliveryState.SENDING, version=row.version + 1)
        if not outbox.change(
            connection,
            row,
            state=DeliveryState.SENDING,
            lease_until=now + dt.timedelta(seconds=self._pace.lease_seconds),
            first_called_at=row.first_called_at or now,
            last_called_at=now,
        ):
            return None
        wait_until = now + dt.timedelta(seconds=self._pace.between_calls_seconds)
        outbox.set_channel(connection, row.channel, wait_until=wait_until, wait_reason=None)
        return self._call(leased, Step.SEND, self._sending(leased))

    def _call(
        self, row: Row, step: Step, request: Callable[[], SlackAnswer]
    ) -> tuple[_Call, Callable[[], SlackAnswer]]:
        return _Call(row, step, time.monotonic() + self._pace.call_seconds), request

    def _start(self, call: _Call, request: Callable[[], SlackAnswer]) -> None:
        self._calls[call.row.channel] = call
        slack.start(request, partial(self._hear, call))

    def _sending(self, row: Row) -> Callable[[], SlackAnswer]:
        message = _marked(row)
        text = message.stub if row.form is MessageForm.STUB else message.text
        blocks = message.blocks if row.form is MessageForm.BLOCKS else ()
        if row.operation is Operation.EDIT and row.post_channel_id and row.post_ts:
            return partial(slack.edit, self._client, row.post_channel_id, row.post_ts, text, blocks, row.thread)
        thread_ts = _thread_ts(row)
        broadcast = thread_ts is not None and row.kind is NoticeKind.STILL_FAILING
        return partial(slack.post, self._client, row.channel, text, blocks, row.key, thread_ts, broadcast=broadcast)

    def _search(self, row: Row, channel_id: str, now: dt.datetime) -> Callable[[], SlackAnswer]:
        return partial(slack.find, self._client, channel_id, row.key, row.first_called_at or now, _thread_ts(row))

    def _wakes_at(self, ends_at: float) -> float | None:
        """When there is something to do at the latest; None when the round is over."""
        moments = [call.gives_up_at for call in self._calls.values()]
        moments += [at for channel, at in self._ready_at.items() if channel not in self._calls and at < ends_at]
        if not moments or (not self._calls and time.monotonic() >= ends_at):
            return None
        return min(moments)

    def _wait(self, wakes_at: float) -> None:
        """Waits for an answer, and takes it in; calls that have had their time count as unanswered."""
        try:
            call, answer = self._answers.get(timeout=max(wakes_at - time.monotonic(), 0))
            self._finish(call, answer)
        except queue.Empty:
            now = time.monotonic()
            for call in [call for call in self._calls.values() if call.gives_up_at <= now]:
                self._finish(
                    call, SlackAnswer(SlackOutcome.AMBIGUOUS, f"no answer within {self._pace.call_seconds:g} s")
                )

    def _finish(self, call: _Call, answer: SlackAnswer) -> None:
        channel = call.row.channel
        if self._calls.get(channel) is not call:
            # Too late: what to do about it has been decided without it.
            return
        del self._calls[channel]
        if channel in self._ready_at:
            self._ready_at[channel] = time.monotonic() + self._pace.between_calls_seconds
        now = self._clock()
        following = None
        with transaction(self._engine) as connection:
            match call.step:
                case Step.SEND:
                    self._after_sending(connection, call.row, now, answer)
                case Step.PROBE:
                    following = self._after_probe(connection, call.row, now, answer)
                case Step.SEARCH:
                    self._after_search(connection, call.row, now, answer)
        if following is not None:
            self._start(*following)

    def _after_sending(self, connection: sa.Connection, row: Row, now: dt.datetime, answer: SlackAnswer) -> None:
        match answer.outcome:
            case SlackOutcome.SENT:
                self._set_sent(connection, row, now, answer)
            case SlackOutcome.AUTH_REFUSED:
                self._back(connection, row, answer.note)
                self._stop(connection, now, answer)
            case SlackOutcome.RATE_LIMITED:
                self._back(connection, row, answer.note)
                self._set_wait(connection, row, now, answer)
            case SlackOutcome.NOT_SENT:
                self._back(connection, row, answer.note)
                self._leave(row.channel, answer.note)
            case SlackOutcome.CHANNEL_REFUSED | SlackOutcome.THREAD_REFUSED if row.operation is Operation.EDIT:
                outbox.change(connection, row, state=DeliveryState.DROPPED, note=answer.note, closed_at=now)
            case SlackOutcome.THREAD_REFUSED if not row.alone and row.operation is Operation.REPLY:
                self._back(connection, row, answer.note, alone=True)
            case SlackOutcome.CHANNEL_REFUSED:
                self._after_channel_refused(connection, row, now, answer)
            case SlackOutcome.CONTENT_REFUSED | SlackOutcome.THREAD_REFUSED:
                self._after_content_refused(connection, row, now, answer)
            case _:
                self._set_unsure(connection, row, now, answer.note)
                self._leave(row.channel, answer.note)

    def _after_probe(
        self, connection: sa.Connection, row: Row, now: dt.datetime, answer: SlackAnswer
    ) -> tuple[_Call, Callable[[], SlackAnswer]] | None:
        match answer.outcome:
            case SlackOutcome.SENT:
                channel_id = _channel_id(connection, row)
                if channel_id is not None:
                    return self._call(row, Step.SEARCH, self._search(row, channel_id, now))
                self._after_search(
                    connection, row, now, SlackAnswer(SlackOutcome.UNREADABLE, "Slack's id of it is not known")
                )
            case SlackOutcome.AUTH_REFUSED:
                self._stop(connection, now, answer)
            case SlackOutcome.RATE_LIMITED:
                self._set_wait(connection, row, now, answer)
            case _:
                self._later(connection, row, now, 0, state=DeliveryState.UNSURE, note=answer.note)
                self._leave(row.channel, answer.note)
        return None

    def _after_search(self, connection: sa.Connection, row: Row, now: dt.datetime, answer: SlackAnswer) -> None:
        if answer.outcome is SlackOutcome.RATE_LIMITED:
            self._set_wait(connection, row, now, answer)
            return
        if answer.outcome in (SlackOutcome.AMBIGUOUS, SlackOutcome.NOT_SENT):
            self._leave(row.channel, answer.note)
        last_called_at = row.last_called_at or now
        since_call = (now - last_called_at).total_seconds()
        match after_search(answer.outcome, row.unsure_calls, since_call, self._pace.proof_seconds):
            case Next.SENT:
                self._set_sent(connection, row, now, answer)
            case Next.REPEAT:
                self._back(connection, row, answer.note)
            case Next.LOOK_AGAIN:
                wait = self._pace.after_fault_seconds
                if answer.outcome is SlackOutcome.ABSENT:
                    wait = self._pace.proof_seconds - since_call
                self._later(connection, row, now, wait, state=DeliveryState.UNSURE, note=answer.note)
            case Next.GIVE_UP:
                outbox.change(connection, row, state=DeliveryState.UNCERTAIN, note=answer.note, closed_at=now)
                self._problems[
                    f"Slack did not confirm message '{row.key}' to {row.channel}, sent {row.unsure_calls} times, and "
                    f"its history cannot be read ({answer.note}): look there, and let the bot read that history."
                ] = None

    def _after_channel_refused(
        self, connection: sa.Connection, row: Row, now: dt.datetime, answer: SlackAnswer
    ) -> None:
        if row.channel != self._policy.default_channel:
            self._refused[row.channel] = answer.note
            self._redirect(connection, row, answer.note)
            return
        self._later(
            connection,
            row,
            now,
            self._pace.after_refusal_everywhere_seconds,
            state=DeliveryState.PENDING,
            note=answer.note,
        )
        self._leave(row.channel, answer.note)
        self._problems[
            f"Slack refuses the default channel {row.channel} ({answer.note}): invite the bot to it, or name another. "
            "Its messages are kept."
        ] = None

    def _after_content_refused(
        self, connection: sa.Connection, row: Row, now: dt.datetime, answer: SlackAnswer
    ) -> None:
        smaller = {MessageForm.BLOCKS: MessageForm.TEXT, MessageForm.TEXT: MessageForm.STUB}.get(row.form)
        if smaller is not None:
            self._back(connection, row, answer.note, form=smaller)
        elif row.operation is Operation.EDIT:
            outbox.change(connection, row, state=DeliveryState.DROPPED, note=answer.note, closed_at=now)
        elif row.channel != self._policy.default_channel:
            # Not the channel's fault as far as anybody knows: only this message goes elsewhere.
            self._redirect(connection, row, answer.note)
        else:
            self._later(
                connection,
                row,
                now,
                self._pace.after_refusal_everywhere_seconds,
                state=DeliveryState.PENDING,
                note=answer.note,
            )
            self._problems[
                f"Slack refuses message '{row.key}' even as one line ({answer.note}): look at the code in Slack's "
                "documentation of chat.postMessage. It is kept."
            ] = None

    def _set_sent(self, connection: sa.Connection, row: Row, now: dt.datetime, answer: SlackAnswer) -> None:
        values: dict[str, Any] = {} if row.operation is Operation.EDIT else {"slack_channel_id": answer.channel_id}
        outbox.change(
            connection,
            row,
            state=DeliveryState.SENT,
            ts=answer.ts,
            note=answer.note,
            lease_until=None,
            closed_at=now,
            **values,
        )
        if answer.channel_id is not None:
            outbox.set_channel(connection, row.channel, slack_id=answer.channel_id)
        self._sent += 1

    def _set_unsure(self, connection: sa.Connection, row: Row, now: dt.datetime, note: str) -> None:
        if row.operation is Operation.EDIT:
            # Done twice it is as done once.
            self._later(connection, row, now, self._pace.after_fault_seconds, state=DeliveryState.PENDING, note=note)
            return
        outbox.change(
            connection, row, state=DeliveryState.UNSURE, unsure_calls=row.unsure_calls + 1, lease_until=None, note=note
        )

    def _back(self, connection: sa.Connection, row: Row, note: str, **values: Any) -> None:
        outbox.change(
            connection, row, state=DeliveryState.PENDING, lease_until=None, not_before=None, note=note, **values
        )

    def _later(self, connection: sa.Connection, row: Row, now: dt.datetime, seconds: float, **values: Any) -> None:
        not_before = now + dt.timedelta(seconds=seconds)
        outbox.change(connection, row, lease_until=None, not_before=not_before, **values)

    def _redirect(self, connection: sa.Connection, row: Row, refusal: str) -> None:
        default = self._policy.default_channel
        alone = row.alone or row.operation is Operation.REPLY
        if not outbox.redirect(connection, row, default, refusal, form=MessageForm.BLOCKS, alone=alone, note=refusal):
            return
        if default not in self._ready_at and default not in self._faults:
            self._admit(outbox.read_channel(connection, default), self._clock())

    def _set_wait(self, connection: sa.Connection, row: Row, now: dt.datetime, answer: SlackAnswer) -> None:
        until = now + dt.timedelta(seconds=answer.retry_after_seconds)
        reason = f"Slack asked for a pause until {until:%H:%M:%S} UTC ({answer.note or 'status 429'})"
        outbox.set_channel(connection, row.channel, wait_until=until, wait_reason=reason)
        self._leave(row.channel, reason)

    def _stop(self, connection: sa.Connection, now: dt.datetime, answer: SlackAnswer) -> None:
        reason = (
            f"Slack refuses the token ({answer.note}): check SLACK_TOKEN and the app's scopes. "
            "All messages are kept; a try is made each minute."
        )
        until = now + dt.timedelta(seconds=self._pace.after_auth_refusal_seconds)
        outbox.set_channel(connection, ALL_CHANNELS, wait_until=until, wait_reason=reason)
        self._problems[reason] = None
        self._ready_at.clear()


def _marked(row: Row) -> Message:
    """The message with what must be said above it."""
    message = row.message
    if row.refused_channel is not None:
        owner = code(row.owner) if row.owner else "the messages without an owner"
        message = with_line(
            message,
            f"↪️ Meant for {code(row.refused_channel)}, which Slack refuses ({code(row.refusal or '')}): mend the "
            f"channel of {owner} in `notification_channel_per_team`.",
        )
    if row.unsure_calls and row.operation is not Operation.EDIT:
        message = with_line(message, "♻️ Possibly repeated: Slack's answer to an earlier attempt was lost.")
    return message


def _thread_ts(row: Row) -> str | None:
    return row.post_ts if row.operation is Operation.REPLY and not row.alone else None


def _channel_id(connection: sa.Connection, row: Row) -> str | None:
    """Slack's id of a row's channel; a channel may be configured by its id too."""
    if row.channel.startswith("#"):
        return outbox.read_channel(connection, row.channel).slack_id
    return row.channel
