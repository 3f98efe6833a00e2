"""What is to be done in Slack, until it is done: the tables, and every way in which a row changes.

Belongs here: rows and their queries. Not here: the calls, and what follows from an answer (`deliver.py`).

A row is put in by the transaction that decided it, and changed by one caller at a time: each change names the version
of the row that it saw, and does nothing when another was first.
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
    """Where a row stands."""

    PENDING = "pending"
    # Handed to Slack under a lease. When the lease ends without an answer, nobody knows what became of it.
    SENDING = "sending"
    # It may have been sent: it is looked for before anything else is done about it.
    UNSURE = "unsure"
    SENT = "sent"
    # An edit that a newer one made needless.
    SUPERSEDED = "superseded"
    # An edit of a message that is not there or cannot be edited.
    DROPPED = "dropped"
    # Sent twice at most, never confirmed, and the history may not be read.
    UNCERTAIN = "uncertain"


OPEN_STATES = (DeliveryState.PENDING, DeliveryState.SENDING, DeliveryState.UNSURE)


class MessageForm(StrEnum):
    """How much of a message is sent; the next is tried when Slack refuses one."""

    BLOCKS = "blocks"
    TEXT = "text"
    STUB = "stub"


# The name in `channels` of a wait that holds for all of them.
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
    """A row of the outbox. `post_ts` and `post_channel_id` are of the message that opened its thread."""

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
    """What is known of a channel."""

    name: str
    slack_id: str | None = None
    wait_until: dt.datetime | None = None
    wait_reason: str | None = None


@dataclass(frozen=True)
class Waiting:
    """What has not been done yet in one channel."""

    channel: str
    rows: int
    oldest_at: dt.datetime
    note: str


def enqueue(
    connection: sa.Connection, drafts: Sequence[Draft], policy: Policy, now: dt.datetime, secrets: Collection[str] = ()
) -> int:
    """Words the drafts and puts them in, in their order; how many were new. A key that is there is left alone.

    A waiting edit is superseded by a newer one of its thread, which takes its place behind the thread's other rows.
    """
    added = 0
    for draft in drafts:
        if _has(connection, draft.key):
            continue
        if draft.operation is Operation.EDIT:
            _supersede_edits(connection, draft.thread, now)
        message = _worded(draft.notice, policy, secrets)
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
    """Channels that have something to be done, the longest waiting first."""
    query = (
        sa.select(outbox.c.channel)
        .where(outbox.c.state.in_(OPEN_STATES))
        .group_by(outbox.c.channel)
        .order_by(sa.func.min(outbox.c.id))
    )
    return list(connection.execute(query).scalars())


def next_row(connection: sa.Connection, channel: str, now: dt.datetime) -> Row | None:
    """What is to be done next in a channel: posts first, and in a thread one after another.

    A row whose lease has ended is one of them; what waits for an answer, and all that follows it in its thread, is not.
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
    """Changes a row unless somebody has changed it since it was read; whether it did."""
    result = connection.execute(
        sa.update(outbox)
        .where(outbox.c.id == row.id, outbox.c.version == row.version)
        .values(version=row.version + 1, **values)
    )
    return result.rowcount == 1


def redirect(connection: sa.Connection, row: Row, channel: str, refusal: str, **values: Any) -> bool:
    """Sends a row to another channel because Slack refuses its own; a post takes what follows in its thread along."""
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
    """What is known of a channel, which may be nothing."""
    found = connection.execute(sa.select(channels).where(channels.c.name == name)).mappings().one_or_none()
    return Channel(name) if found is None else Channel(**found)


def set_channel(connection: sa.Connection, name: str, **values: Any) -> None:
    """Writes down something about a channel: `slack_id`, or `wait_until` with `wait_reason`."""
    if not connection.execute(sa.update(channels).where(channels.c.name == name).values(**values)).rowcount:
        connection.execute(sa.insert(channels).values(name=name, **values))


def waiting(connection: sa.Connection) -> list[Waiting]:
    """What has not been done yet, for each channel, the longest waiting first. The note is of the oldest row."""
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
    """Where a draft goes: what belongs to a thread goes where the thread is."""
    columns = (outbox.c.channel, outbox.c.refused_channel, outbox.c.refusal)
    opener = None
    if draft.operation is not Operation.POST:
        opener = connection.execute(sa.select(*columns).where(outbox.c.key == draft.thread)).mappings().one_or_none()
    return {"channel": draft.channel} if opener is None else dict(opener)


def _worded(notice: Notice, policy: Policy, secrets: Collection[str]) -> Message:
    try:
        return messages.compose(notice, policy, secrets)
    except Exception:
        # An alert that reads badly is better than none, and one notice must not hold up the others.
        logger.exception("A notice of kind '%s' could not be worded. A plain message is sent instead.", notice.kind)
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
