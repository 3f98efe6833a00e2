"""What becomes of an outbox row after an answer from Slack: functions of values, without I/O.

What an answer means is in `slack.py`; `deliver.py` makes the calls and writes the changes.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from dags.alerts.message import code, with_line
from dags.alerts.slack import SlackAnswer, SlackOutcome
from dags.alerts.values import DeliveryState, Message, MessageForm, Operation, OutboxRow

MAX_UNCONFIRMED_CALLS = 2


@dataclass(frozen=True)
class Pace:
    """Times between calls and time limits, in seconds."""

    # Slack accepts about one message a second in a channel.
    between_calls_seconds: float = 1.05
    # For a whole call, however slowly its answer arrives.
    call_seconds: float = 8.0
    # Longer than any call, so that a lease expires only after its holder has finished or died.
    lease_seconds: float = 60.0
    after_auth_refusal_seconds: float = 60.0
    after_refusal_everywhere_seconds: float = 60.0
    # Before a failed edit or an unreadable history is tried again.
    after_fault_seconds: float = 30.0
    # A history read this long after a call shows whatever the call posted.
    proof_seconds: float = 300.0


DEFAULT_PACE = Pace()


@dataclass(frozen=True)
class Situation:
    """What a transition depends on besides the row and the answer."""

    now: dt.datetime
    default_channel: str
    pace: Pace = DEFAULT_PACE

    def after(self, seconds: float) -> dt.datetime:
        """Return the time so many seconds from now."""
        return self.now + dt.timedelta(seconds=seconds)


@dataclass(frozen=True)
class Pause:
    """A time until which no call is made to a channel, or to any."""

    until: dt.datetime
    reason: str
    of_all_channels: bool = False


@dataclass(frozen=True)
class Change:
    """What follows from an answer. An empty change leaves the row as it is.

    `values` are new values of the row's columns. `reroute_reason` says why the row goes to the default channel, and
    `channel_refusal` why all new messages of its channel do, for the rest of the round. `fault` says why its channel is
    skipped for the rest of the round. A `problem` needs a person.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    reroute_reason: str | None = None
    channel_refusal: str | None = None
    pause: Pause | None = None
    fault: str | None = None
    problem: str | None = None

    @property
    def is_sent(self) -> bool:
        """Whether Slack has the message."""
        return self.values.get("state") is DeliveryState.SENT


class SearchResult(Enum):
    """What follows from a search for a message that may have been sent."""

    SENT = "it was sent"
    REPEAT = "send it once more"
    SEARCH_AGAIN = "search again later"
    GIVE_UP = "leave it unconfirmed"


def before_call(row: OutboxRow, situation: Situation, refused: Mapping[str, str]) -> Change | None:
    """Return what to do with a row that needs no call, None when it needs one.

    `refused` are the channels that Slack rejected in this round, with the reasons.
    """
    if row.state is DeliveryState.SENDING:
        return _unconfirmed(row, situation, "the process that sent it ended before the answer")
    if row.state is DeliveryState.UNSURE:
        return None
    if row.operation is Operation.EDIT:
        if row.post_ts and row.post_channel_id:
            return None
        return _dropped(situation, "the message to edit is not known")
    refusal = refused.get(row.channel)
    return None if refusal is None else Change(reroute_reason=refusal)


def after_send(row: OutboxRow, answer: SlackAnswer, situation: Situation) -> Change:
    """Return what follows from the answer to a post or an edit."""
    is_edit = row.operation is Operation.EDIT
    match answer.outcome:
        case SlackOutcome.SENT:
            change = _sent(row, answer, situation)
        case SlackOutcome.AUTH_REFUSED:
            change = replace(_token_refused(answer, situation), values=_pending(answer.note))
        case SlackOutcome.RATE_LIMITED:
            change = replace(_rate_limited(answer, situation), values=_pending(answer.note))
        case SlackOutcome.NOT_SENT:
            change = Change(_pending(answer.note), fault=answer.note)
        case SlackOutcome.CHANNEL_REFUSED | SlackOutcome.THREAD_REFUSED if is_edit:
            change = _dropped(situation, answer.note)
        case SlackOutcome.THREAD_REFUSED if not row.alone and row.operation is Operation.REPLY:
            change = Change({**_pending(answer.note), "alone": True})
        case SlackOutcome.CHANNEL_REFUSED:
            change = _channel_refused(row, answer, situation)
        case SlackOutcome.CONTENT_REFUSED | SlackOutcome.THREAD_REFUSED:
            change = _content_refused(row, answer, situation)
        case _:
            change = replace(_unconfirmed(row, situation, answer.note), fault=answer.note)
    return change


def after_probe(answer: SlackAnswer, situation: Situation) -> Change | None:
    """Return what follows when Slack does not answer a probe, None when it does and the message can be searched for."""
    match answer.outcome:
        case SlackOutcome.SENT:
            return None
        case SlackOutcome.AUTH_REFUSED:
            return _token_refused(answer, situation)
        case SlackOutcome.RATE_LIMITED:
            return _rate_limited(answer, situation)
        case _:
            return Change(_retry(DeliveryState.UNSURE, situation.now, answer.note), fault=answer.note)


def after_search(row: OutboxRow, answer: SlackAnswer, situation: Situation) -> Change:
    """Return what follows from a search for a message that may have been sent."""
    if answer.outcome is SlackOutcome.RATE_LIMITED:
        return _rate_limited(answer, situation)
    fault = answer.note if answer.outcome in (SlackOutcome.AMBIGUOUS, SlackOutcome.NOT_SENT) else None
    since_call = (situation.now - (row.last_called_at or situation.now)).total_seconds()
    proof_seconds = situation.pace.proof_seconds
    match search_result(answer.outcome, row.unsure_calls, since_call, proof_seconds):
        case SearchResult.SENT:
            return _sent(row, answer, situation)
        case SearchResult.REPEAT:
            return Change(_pending(answer.note), fault=fault)
        case SearchResult.SEARCH_AGAIN:
            is_absent = answer.outcome is SlackOutcome.ABSENT
            wait = proof_seconds - since_call if is_absent else situation.pace.after_fault_seconds
            return Change(_retry(DeliveryState.UNSURE, situation.after(wait), answer.note), fault=fault)
        case SearchResult.GIVE_UP:
            return Change(
                {"state": DeliveryState.UNCERTAIN, "note": answer.note, "closed_at": situation.now},
                problem=f"Slack did not confirm message '{row.key}' to {row.channel}, sent {row.unsure_calls} times, "
                f"and the bot cannot read the channel's history ({answer.note}). Check the channel, and give the bot "
                "the scope channels:history or groups:history.",
            )


def search_result(
    outcome: SlackOutcome, unsure_calls: int, seconds_since_call: float, proof_seconds: float
) -> SearchResult:
    """Decide what follows, from what the search found and how many calls may each have posted a copy.

    After one such call the message is repeated unless it was found. After two it is not, unless Slack's own history,
    read long after the second, shows that neither was carried out.
    """
    if outcome is SlackOutcome.SENT:
        return SearchResult.SENT
    if unsure_calls < MAX_UNCONFIRMED_CALLS:
        return SearchResult.REPEAT
    if outcome is SlackOutcome.UNREADABLE:
        return SearchResult.GIVE_UP
    is_proved_absent = outcome is SlackOutcome.ABSENT and seconds_since_call >= proof_seconds
    return SearchResult.REPEAT if is_proved_absent else SearchResult.SEARCH_AGAIN


def annotated(row: OutboxRow) -> Message:
    """Return the row's message with what must be said above it: that it was rerouted, or may be a repetition."""
    message = row.message
    if row.refused_channel is not None:
        owner = code(row.owner) if row.owner else "messages without an owner"
        message = with_line(
            message,
            f"↪️ Rerouted from {code(row.refused_channel)}, which Slack rejected ({code(row.refusal or '')}). Invite "
            f"the bot, or change the channel of {owner} in `notification_channel_per_team`.",
        )
    if row.unsure_calls and row.operation is not Operation.EDIT:
        message = with_line(message, "♻️ Possibly repeated: Slack's answer to an earlier attempt was lost.")
    return message


def _channel_refused(row: OutboxRow, answer: SlackAnswer, situation: Situation) -> Change:
    if row.channel != situation.default_channel:
        return Change(reroute_reason=answer.note, channel_refusal=answer.note)
    return replace(
        _retry_after_refusal(answer, situation),
        fault=answer.note,
        problem=f"Slack rejected the default channel {row.channel} ({answer.note}). Invite the bot, or set "
        "DAGSTER_DEFAULT_SLACK_ALERTS_CHANNEL to another channel. The messages are kept.",
    )


def _content_refused(row: OutboxRow, answer: SlackAnswer, situation: Situation) -> Change:
    smaller = {MessageForm.BLOCKS: MessageForm.TEXT, MessageForm.TEXT: MessageForm.STUB}.get(row.form)
    if smaller is not None:
        return Change({**_pending(answer.note), "form": smaller})
    if row.operation is Operation.EDIT:
        return _dropped(situation, answer.note)
    if row.channel != situation.default_channel:
        # The channel itself may be fine: only this message is rerouted.
        return Change(reroute_reason=answer.note)
    return replace(
        _retry_after_refusal(answer, situation),
        problem=f"Slack rejected message '{row.key}' even as one line ({answer.note}). See the error codes in Slack's "
        "documentation of chat.postMessage. The message is kept.",
    )


def _sent(row: OutboxRow, answer: SlackAnswer, situation: Situation) -> Change:
    values: dict[str, Any] = {
        "state": DeliveryState.SENT,
        "ts": answer.ts,
        "note": answer.note,
        "lease_until": None,
        "closed_at": situation.now,
    }
    if row.operation is not Operation.EDIT:
        values["slack_channel_id"] = answer.channel_id
    return Change(values)


def _unconfirmed(row: OutboxRow, situation: Situation, note: str) -> Change:
    if row.operation is Operation.EDIT:
        # A second edit changes nothing: no search is needed.
        return Change(_retry(DeliveryState.PENDING, situation.after(situation.pace.after_fault_seconds), note))
    return Change(
        {"state": DeliveryState.UNSURE, "unsure_calls": row.unsure_calls + 1, "lease_until": None, "note": note}
    )


def _rate_limited(answer: SlackAnswer, situation: Situation) -> Change:
    until = situation.after(answer.retry_after_seconds)
    reason = f"Slack asked for a pause until {until:%H:%M:%S} UTC ({answer.note or 'status 429'})"
    return Change(pause=Pause(until, reason), fault=reason)


def _token_refused(answer: SlackAnswer, situation: Situation) -> Change:
    reason = (
        f"Slack rejected the token ({answer.note}). Check SLACK_TOKEN and the scopes of the app. All messages are "
        "kept, and delivery is tried again every minute."
    )
    until = situation.after(situation.pace.after_auth_refusal_seconds)
    return Change(pause=Pause(until, reason, of_all_channels=True), problem=reason)


def _dropped(situation: Situation, note: str) -> Change:
    return Change({"state": DeliveryState.DROPPED, "note": note, "closed_at": situation.now})


def _pending(note: str) -> dict[str, Any]:
    return {"state": DeliveryState.PENDING, "lease_until": None, "not_before": None, "note": note}


def _retry(state: DeliveryState, not_before: dt.datetime, note: str) -> dict[str, Any]:
    return {"state": state, "lease_until": None, "not_before": not_before, "note": note}


def _retry_after_refusal(answer: SlackAnswer, situation: Situation) -> Change:
    not_before = situation.after(situation.pace.after_refusal_everywhere_seconds)
    return Change(_retry(DeliveryState.PENDING, not_before, answer.note))
