"""Rows of the outbox: everything that is to be done in Slack, until it is done.

A row is inserted by the transaction that decided it. A change names the version of the row that it saw, and does
nothing when the row was changed since.
"""

import datetime as dt
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from dags.alerts import message as messages
from dags.alerts.message import Message
from dags.alerts.records import Draft, Notice, NoticeKind, Operation, Policy
from dags.alerts.store import Timestamp, metadata

logger = logging.getLogger(__name__)


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


# The name in `channels` of a pause that applies to all of them.
ALL_CHANNELS = "*"

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    # Key of the post that a reply or an edit belongs to; a post's own key.
    sa.Column("thread", sa.Text, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
    # Where it goes; where it was meant to go when Slack refused that, and why.
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("refused_channel", sa.Text),
    sa.Column("refusal", sa.Text),
    sa.Column("owner", sa.Text),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("blocks", sa.JSON, nullable=False),
    sa.Column("stub", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("form", sa.Text, nullable=False),
    # A reply that goes into the channel, because its thread is not there.
    sa.Column("alone", sa.Boolean, nullable=False),
    # Calls whose outcome was not known.
    sa.Column("unsure_calls", sa.Integer, nullable=False),
    sa.Column("lease_until", Timestamp),
    sa.Column("not_before", Timestamp),
    sa.Column("first_called_at", Timestamp),
    sa.Column("last_called_at", Timestamp),
    # What Slack said last.
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("slack_channel_id", sa.Text),
    sa.Column("ts", sa.Text),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("closed_at", Timestamp),
    sa.Index("outbox_by_thread", "thread", "id"),
    sa.Index("outbox_by_state", "state", "channel"),
)

channels = sa.Table(
    "channels",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # Slack's own id, learnt from its answers: history and edits know no names.
    sa.Column("slack_id", sa.Text),
    sa.Column("wait_until", Timestamp),
    sa.Column("wait_reason", sa.Text),
)


@dataclass(frozen=True)
class Row:
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
    lease_until: dt.datetime | None
    first_called_at: dt.datetime | None
    last_called_at: dt.datetime | None
    note: str
    slack_channel_id: str | None
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


def enqueue(
    connection: sa.Connection, drafts: Sequence[Draft], policy: Policy, now: dt.datetime, secrets: Collection[str] = ()
) -> int:
    """Format the drafts and insert them in order. Return how many were new: a key is inserted once.

    A newer edit of a thread supersedes one that is still waiting, and comes after the thread's other rows.
    """
    added = 0
    for draft in drafts:
        if _has(connection, draft.key):
            continue
        if draft.operation is Operation.EDIT:
            _supersede_edits(connection, draft.thread, now)
        message = _formatted(draft.notice, policy, secrets)
        connection.execute(
            sa.insert(outbox).values(
                key=draft.key,
                thread=draft.thread,
                operation=draft.operation,
                **_place(connection, draft),
                owner=draft.notice.owner,
                kind=draft.notice.kind,
                text=message.text,
                blocks=list(message.blocks),
                stub=message.stub,
                state=DeliveryState.PENDING,
                version=1,
                form=MessageForm.BLOCKS,
                alone=False,
                unsure_calls=0,
                note="",
                created_at=now,
            )
        )
        added += 1
    return added


def waiting_channels(connection: sa.Connection) -> list[str]:
    """Return the channels with open rows, the longest waiting first."""
    query = (
        sa.select(outbox.c.channel)
        .where(outbox.c.state.in_(OPEN_STATES))
        .group_by(outbox.c.channel)
        .order_by(sa.func.min(outbox.c.id))
    )
    return list(connection.execute(query).scalars())


def next_row(connection: sa.Connection, channel: str, now: dt.datetime) -> Row | None:
    """Return the next row of a channel: posts first, and the rows of a thread in order.

    A row whose lease has ended qualifies. A row that waits for an answer does not, nor do later rows of its thread.
    """
    earlier, opener = outbox.alias("earlier"), outbox.alias("opener")
    blocked = sa.exists().where(
        earlier.c.thread == outbox.c.thread, earlier.c.id < outbox.c.id, earlier.c.state.in_(OPEN_STATES)
    )
    due = sa.or_(
        sa.and_(
            outbox.c.state.in_((DeliveryState.PENDING, DeliveryState.UNSURE)),
            sa.or_(outbox.c.not_before.is_(None), outbox.c.not_before <= now),
        ),
        sa.and_(outbox.c.state == DeliveryState.SENDING, outbox.c.lease_until <= now),
    )
    query = (
        sa.select(outbox, opener.c.ts.label("post_ts"), opener.c.slack_channel_id.label("post_channel_id"))
        .outerjoin(opener, sa.and_(opener.c.key == outbox.c.thread, outbox.c.operation != Operation.POST))
        .where(outbox.c.channel == channel, due, ~blocked)
        .order_by(sa.case((outbox.c.operation == Operation.POST, 0), else_=1), outbox.c.id)
        .limit(1)
    )
    found = connection.execute(query).mappings().one_or_none()
    return None if found is None else _row(dict(found))


def change(connection: sa.Connection, row: Row, **values: Any) -> bool:
    """Change a row unless it was changed since it was read. Return whether it was."""
    result = connection.execute(
        sa.update(outbox)
        .where(outbox.c.id == row.id, outbox.c.version == row.version)
        .values(version=row.version + 1, **values)
    )
    return result.rowcount == 1


def reroute(connection: sa.Connection, row: Row, channel: str, refusal: str, **values: Any) -> bool:
    """Move a row to another channel because Slack rejected its own. A post takes its waiting thread along."""
    place = {"channel": channel, "refused_channel": row.refused_channel or row.channel, "refusal": refusal}
    if not change(connection, row, state=DeliveryState.PENDING, lease_until=None, **place, **values):
        return False
    if row.operation is Operation.POST:
        connection.execute(
            sa.update(outbox)
            .where(outbox.c.thread == row.thread, outbox.c.id > row.id, outbox.c.state == DeliveryState.PENDING)
            .values(version=outbox.c.version + 1, **place)
        )
    return True


def read_channel(connection: sa.Connection, name: str) -> Channel:
    """Return what is known about a channel, which may be nothing."""
    found = connection.execute(sa.select(channels).where(channels.c.name == name)).mappings().one_or_none()
    return Channel(name) if found is None else Channel(**found)


def set_channel(connection: sa.Connection, name: str, **values: Any) -> None:
    """Set columns of a channel: `slack_id`, or `wait_until` with `wait_reason`."""
    if not connection.execute(sa.update(channels).where(channels.c.name == name).values(**values)).rowcount:
        connection.execute(sa.insert(channels).values(name=name, **values))


def waiting(connection: sa.Connection) -> list[Waiting]:
    """Return the open rows by channel, the longest waiting first."""
    query = (
        sa.select(outbox.c.channel, outbox.c.created_at, outbox.c.note)
        .where(outbox.c.state.in_(OPEN_STATES))
        .order_by(outbox.c.id)
    )
    found: dict[str, Waiting] = {}
    for channel, created_at, note in connection.execute(query):
        before = found.get(channel)
        if before is None:
            found[channel] = Waiting(channel, 1, created_at, note)
        else:
            found[channel] = Waiting(channel, before.rows + 1, before.oldest_at, before.note)
    return list(found.values())


def _has(connection: sa.Connection, key: str) -> bool:
    return connection.execute(sa.select(outbox.c.id).where(outbox.c.key == key)).first() is not None


def _supersede_edits(connection: sa.Connection, thread: str, now: dt.datetime) -> None:
    connection.execute(
        sa.update(outbox)
        .where(outbox.c.thread == thread, outbox.c.operation == Operation.EDIT, outbox.c.state == DeliveryState.PENDING)
        .values(state=DeliveryState.SUPERSEDED, closed_at=now, version=outbox.c.version + 1)
    )


def _place(connection: sa.Connection, draft: Draft) -> dict[str, Any]:
    """Return where a draft goes: replies and edits go where their thread is."""
    columns = (outbox.c.channel, outbox.c.refused_channel, outbox.c.refusal)
    opener = None
    if draft.operation is not Operation.POST:
        opener = connection.execute(sa.select(*columns).where(outbox.c.key == draft.thread)).mappings().one_or_none()
    return {"channel": draft.channel} if opener is None else dict(opener)


def _formatted(notice: Notice, policy: Policy, secrets: Collection[str]) -> Message:
    try:
        return messages.compose(notice, policy, secrets)
    except Exception:
        # A plain alert is better than none, and one notice must not delay the others.
        logger.exception("A notice of kind '%s' could not be formatted. A plain message is sent instead.", notice.kind)
        return messages.plain(notice)


def _row(found: Mapping[str, Any]) -> Row:
    message = Message(text=found["text"], blocks=found["blocks"], stub=found["stub"])
    names = Row.__dataclass_fields__.keys() - {"message", "operation", "kind", "state", "form"}
    return Row(
        message=message,
        operation=Operation(found["operation"]),
        kind=NoticeKind(found["kind"]),
        state=DeliveryState(found["state"]),
        form=MessageForm(found["form"]),
        **{name: found[name] for name in names},
    )
