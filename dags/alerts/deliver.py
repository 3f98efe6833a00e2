"""Sends the outbox to Slack: every row once, and at most twice when an answer of Slack was lost.

A row is committed as SENDING, with a lease, before the call, and with what `transitions.py` makes of the answer after
it. Each channel has one call in progress at a time, on a thread of its own, so that a channel that hangs delays no
other; only the caller's thread uses the database.
"""

import datetime as dt
import queue
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

import sqlalchemy as sa

from dags.alerts import outbox, slack, transitions
from dags.alerts.outbox import ALL_CHANNELS
from dags.alerts.slack import SlackAnswer, SlackOutcome
from dags.alerts.store import reading, transaction
from dags.alerts.transitions import DEFAULT_PACE, Change, Pace, Situation
from dags.alerts.values import Channel, DeliveryState, MessageForm, NoticeKind, Operation, OutboxRow, Policy

if TYPE_CHECKING:
    from slack_sdk import WebClient


class DeliveryError(Exception):
    """Slack accepts no messages until a person fixes something. The messages are kept."""


@dataclass(frozen=True)
class Delivered:
    """What one round of deliveries did.

    `problems` need a person: the tick should fail with them. `faults`, by channel, pass by themselves.
    """

    sent: int = 0
    waiting: int = 0
    faults: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()

    def raise_for_problems(self) -> None:
        """Raise DeliveryError when there are problems."""
        if self.problems:
            raise DeliveryError(" ".join(self.problems))


def deliver(
    engine: sa.Engine,
    client: "WebClient",
    policy: Policy,
    clock: Callable[[], dt.datetime],
    budget_seconds: float = 20.0,
    pace: Pace = DEFAULT_PACE,
) -> Delivered:
    """Send waiting messages for up to `budget_seconds`, plus the time of the calls that are then in progress.

    Never raises for what Slack says or does: see Delivered.
    """
    round_ = _Round(engine, client, policy, clock, pace)
    round_.run(budget_seconds)
    return round_.report()


class _Purpose(Enum):
    """What a call is for."""

    SEND = "send"
    # Slack must be reachable before the only repetition is used up.
    PROBE = "probe"
    SEARCH = "search"


@dataclass(frozen=True)
class _Call:
    """A call in progress."""

    row: OutboxRow
    purpose: _Purpose
    gives_up_at: float


_Prepared = tuple[_Call, Callable[[], SlackAnswer]]


class _Round:
    """One round of deliveries: when each channel is ready, and which calls are in progress. Times are monotonic."""

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
        self._default_channel = policy.default_channel
        self._clock = clock
        self._pace = pace
        self._answers: queue.SimpleQueue[tuple[_Call, SlackAnswer]] = queue.SimpleQueue()
        self._calls: dict[str, _Call] = {}
        # When a channel may be used next. A channel that is missing has nothing to send, or is skipped.
        self._ready_at: dict[str, float] = {}
        # Channels that Slack rejected in this round, and why.
        self._refused: dict[str, str] = {}
        self._sent = 0
        self._faults: dict[str, str] = {}
        self._problems: dict[str, None] = {}

    def run(self, budget_seconds: float) -> None:
        """Send until nothing is left that can be sent now, or the budget is used up."""
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
        """Return what was done, and how much still waits."""
        with reading(self._engine) as connection:
            waiting = sum(one.rows for one in outbox.waiting(connection))
        return Delivered(self._sent, waiting, dict(self._faults), tuple(self._problems))

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

    def _admit(self, channel: Channel, now: dt.datetime) -> None:
        wait = 0.0 if channel.wait_until is None else (channel.wait_until - now).total_seconds()
        if wait > self._pace.between_calls_seconds:
            self._skip(channel.name, channel.wait_reason or "waits")
        else:
            self._ready_at[channel.name] = time.monotonic() + max(wait, 0.0)

    def _skip(self, channel: str, fault: str) -> None:
        """Skip a channel for the rest of the round."""
        self._faults[channel] = fault
        self._ready_at.pop(channel, None)

    def _start_calls(self, now: float) -> None:
        for channel, ready_at in list(self._ready_at.items()):
            if ready_at <= now and channel not in self._calls:
                self._start_next(channel)

    def _start_next(self, channel: str) -> None:
        """Start the next call of a channel. Rows that need no call are handled at once."""
        while channel in self._ready_at:
            now = self._clock()
            with transaction(self._engine) as connection:
                row = outbox.next_row(connection, channel, now)
                prepared = None if row is None else self._prepare(connection, row, now)
            if row is None:
                del self._ready_at[channel]
            elif prepared is not None:
                self._start(*prepared)
                return

    def _prepare(self, connection: sa.Connection, row: OutboxRow, now: dt.datetime) -> _Prepared | None:
        """Write down what is about to be done for a row, and return the call; None when it needs none."""
        change = transitions.before_call(row, self._situation(now), self._refused)
        if change is not None:
            self._apply(connection, row, change)
            return None
        if row.state is DeliveryState.UNSURE:
            return self._call(row, _Purpose.PROBE, partial(slack.probe, self._client))
        return self._lease(connection, row, now)

    def _lease(self, connection: sa.Connection, row: OutboxRow, now: dt.datetime) -> _Prepared | None:
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
        return self._call(leased, _Purpose.SEND, self._sending(leased))

    def _call(self, row: OutboxRow, purpose: _Purpose, request: Callable[[], SlackAnswer]) -> _Prepared:
        return _Call(row, purpose, time.monotonic() + self._pace.call_seconds), request

    def _start(self, call: _Call, request: Callable[[], SlackAnswer]) -> None:
        self._calls[call.row.channel] = call
        # The answer is put into the queue on the thread of the call.
        slack.start(request, lambda answer: self._answers.put((call, answer)))

    def _sending(self, row: OutboxRow) -> Callable[[], SlackAnswer]:
        message = transitions.annotated(row)
        text = message.stub if row.form is MessageForm.STUB else message.text
        blocks = message.blocks if row.form is MessageForm.BLOCKS else ()
        if row.operation is Operation.EDIT and row.post_channel_id and row.post_ts:
            return partial(slack.edit, self._client, row.post_channel_id, row.post_ts, text, blocks, row.thread)
        thread_ts = _thread_ts(row)
        broadcast = thread_ts is not None and row.kind is NoticeKind.STILL_FAILING
        return partial(slack.post, self._client, row.channel, text, blocks, row.key, thread_ts, broadcast=broadcast)

    def _wakes_at(self, ends_at: float) -> float | None:
        """Return when there is something to do at the latest, None when the round has finished."""
        moments = [call.gives_up_at for call in self._calls.values()]
        moments += [at for channel, at in self._ready_at.items() if channel not in self._calls and at < ends_at]
        if not moments or (not self._calls and time.monotonic() >= ends_at):
            return None
        return min(moments)

    def _wait(self, wakes_at: float) -> None:
        """Wait for an answer and handle it. Calls that have used up their time count as unanswered."""
        try:
            call, answer = self._answers.get(timeout=max(wakes_at - time.monotonic(), 0))
            self._finish(call, answer)
        except queue.Empty:
            now = time.monotonic()
            unanswered = SlackAnswer(SlackOutcome.AMBIGUOUS, f"no answer within {self._pace.call_seconds:g} s")
            for call in [call for call in self._calls.values() if call.gives_up_at <= now]:
                self._finish(call, unanswered)

    def _finish(self, call: _Call, answer: SlackAnswer) -> None:
        channel = call.row.channel
        if self._calls.get(channel) is not call:
            # The answer is late: the call was already counted as unanswered.
            return
        del self._calls[channel]
        if channel in self._ready_at:
            self._ready_at[channel] = time.monotonic() + self._pace.between_calls_seconds
        now = self._clock()
        search = None
        with transaction(self._engine) as connection:
            change = self._change(call, answer, now)
            if change is None:
                search, change = self._search(connection, call.row, now)
            self._apply(connection, call.row, change)
            if change.is_sent and answer.channel_id is not None:
                outbox.set_channel(connection, channel, slack_id=answer.channel_id)
        self._sent += change.is_sent
        if search is not None:
            self._start(*search)

    def _change(self, call: _Call, answer: SlackAnswer, now: dt.datetime) -> Change | None:
        match call.purpose:
            case _Purpose.SEND:
                return transitions.after_send(call.row, answer, self._situation(now))
            case _Purpose.PROBE:
                return transitions.after_probe(answer, self._situation(now))
            case _Purpose.SEARCH:
                return transitions.after_search(call.row, answer, self._situation(now))

    def _search(self, connection: sa.Connection, row: OutboxRow, now: dt.datetime) -> tuple[_Prepared | None, Change]:
        """Return the search for a row's message; without Slack's id of the channel, what follows from having none."""
        # A channel may be configured by its id too.
        by_name = row.channel.startswith("#")
        channel_id = outbox.read_channel(connection, row.channel).slack_id if by_name else row.channel
        if channel_id is None:
            unreadable = SlackAnswer(SlackOutcome.UNREADABLE, "Slack's id of the channel is not known")
            return None, transitions.after_search(row, unreadable, self._situation(now))
        since = row.first_called_at or now
        request = partial(slack.find, self._client, channel_id, row.key, since, _thread_ts(row))
        return self._call(row, _Purpose.SEARCH, request), Change()

    def _situation(self, now: dt.datetime) -> Situation:
        return Situation(now, self._default_channel, self._pace)

    def _apply(self, connection: sa.Connection, row: OutboxRow, change: Change) -> None:
        """Write a change, and take note of what it means for the rest of the round."""
        if change.values:
            outbox.change(connection, row, **change.values)
        if change.channel_refusal is not None:
            self._refused[row.channel] = change.channel_refusal
        if change.reroute_reason is not None:
            self._reroute(connection, row, change.reroute_reason)
        if change.pause is not None:
            name = ALL_CHANNELS if change.pause.of_all_channels else row.channel
            outbox.set_channel(connection, name, wait_until=change.pause.until, wait_reason=change.pause.reason)
            if change.pause.of_all_channels:
                self._ready_at.clear()
        if change.fault is not None:
            self._skip(row.channel, change.fault)
        if change.problem is not None:
            self._problems[change.problem] = None

    def _reroute(self, connection: sa.Connection, row: OutboxRow, reason: str) -> None:
        default = self._default_channel
        alone = row.alone or row.operation is Operation.REPLY
        if not outbox.reroute(connection, row, default, reason, form=MessageForm.BLOCKS, alone=alone, note=reason):
            return
        if default not in self._ready_at and default not in self._faults:
            self._admit(outbox.read_channel(connection, default), self._clock())


def _thread_ts(row: OutboxRow) -> str | None:
    return row.post_ts if row.operation is Operation.REPLY and not row.alone else None
