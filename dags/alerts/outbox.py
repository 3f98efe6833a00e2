"""Rows of the outbox: everything that is to be done in Slack, until it is done.

A row is inserted by the transaction that decided it. A change names the version of the row that it saw, and does
nothing when the row was changed since.
"""

import datetime as dt
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from dags.alerts import message as messages
from dags.alerts.tables import channels, outbox
from dags.alerts.values import (
    OPEN_STATES,
    Channel,
    DeliveryState,
    Draft,
    Message,
    MessageForm,
    Notice,
    NoticeKind,
    Operation,
    OutboxRow,
    Policy,
    Waiting,
)

logger = logging.getLogger(__name__)


# The name in `channels` of a pause that applies to all of them.
ALL_CHANNELS = "*"


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


def next_row(connection: sa.Connection, channel: str, now: dt.datetime) -> OutboxRow | None:
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


def change(connection: sa.Connection, row: OutboxRow, **values: Any) -> bool:
    """Change a row unless it was changed since it was read. Return whether it was."""
    result = connection.execute(
        sa.update(outbox)
        .where(outbox.c.id == row.id, outbox.c.version == row.version)
        .values(version=row.version + 1, **values)
    )
    return result.rowcount == 1


def reroute(connection: sa.Connection, row: OutboxRow, channel: str, refusal: str, **values: Any) -> bool:
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


def _row(found: Mapping[str, Any]) -> OutboxRow:
    message = Message(text=found["text"], blocks=found["blocks"], stub=found["stub"])
    names = OutboxRow.__dataclass_fields__.keys() - {"message", "operation", "kind", "state", "form"}
    return OutboxRow(
        message=message,
        operation=Operation(found["operation"]),
        kind=NoticeKind(found["kind"]),
        state=DeliveryState(found["state"]),
        form=MessageForm(found["form"]),
        **{name: found[name] for name in names},
    )
