"""The state of the alert router: figures from its store and from Dagster, and the problems that they show.

Nothing is written: a probe must neither change the store nor create one.
"""

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import sqlalchemy as sa

from dags.alerts import mutes, outbox, store, tables, tick, watch
from dags.alerts.outbox import ALL_CHANNELS
from dags.alerts.queries.mutes import without_summary
from dags.alerts.queries.stored_values import get_value
from dags.alerts.transitions import DEFAULT_PACE
from dags.alerts.values import AttemptState, DeliveryState, Mute, Waiting
from dags.common.event_log.private import event_heads

MAX_AGE = dt.timedelta(minutes=5)
SENSOR_DAEMON = "SENSOR"
MAX_UNREAD_EVENTS = 1000
DAY = dt.timedelta(days=1)


class UnknownHealthError(Exception):
    """The figures cannot be read. The message says why and what to do."""


@dataclass(frozen=True)
class OpenIncident:
    """An incident that was notified and is not resolved."""

    key: str
    kind: str
    channel: str
    owner: str | None
    title: str
    opened_at: dt.datetime
    failures: int


@dataclass(frozen=True)
class RouterFigures:
    """Everything that `status` shows. Times are None when there is none.

    `unread` failures are in the event log and not in the store yet, the oldest since `unread_since`; `undecided` are in
    the store and not decided yet; `held` wait for a retry that Dagster promised.
    """

    ticked_at: dt.datetime | None
    sensor_daemon_at: dt.datetime | None
    unread: int = 0
    unread_since: dt.datetime | None = None
    undecided: int = 0
    held: int = 0
    waiting: Sequence[Waiting] = ()
    # Sent, and never confirmed.
    uncertain: int = 0
    auth_refusal: str | None = None
    incidents: Sequence[OpenIncident] = ()
    mutes: Sequence[tuple[Mute, int]] = ()
    rescued: int = 0
    rescued_in_a_day: int = 0
    watched_at: dt.datetime | None = None
    # Watch rules that fail, and what the others find.
    rule_faults: Sequence[str] = ()
    findings: Sequence[str] = ()


@contextlib.contextmanager
def existing_store(instance: dg.DagsterInstance) -> Iterator[sa.Engine | None]:
    """Open the store of an instance, None when it has none yet.

    Raises UnknownHealthError when the store belongs to another release.
    """
    address = store.address_of(instance)
    if isinstance(address, Path) and not address.exists():
        yield None
        return
    opened = store.connect(address)
    try:
        with store.reading(opened) as connection:
            version = store.version_of(connection)
        if version is not None and version != tables.LATEST_VERSION:
            raise UnknownHealthError(
                f"The alert store is at version {version}, and this code needs version {tables.LATEST_VERSION}. Run "
                "the command from the release that the router runs."
            )
        yield None if version is None else opened
    finally:
        opened.dispose()


def read(instance: dg.DagsterInstance, opened: sa.Engine | None, now: dt.datetime) -> RouterFigures:
    """Return the figures now. Raises what the databases raise."""
    heartbeat = instance.get_daemon_heartbeats().get(SENSOR_DAEMON)
    beat_at = None if heartbeat is None else dt.datetime.fromtimestamp(heartbeat.timestamp, dt.UTC)
    if opened is None:
        return RouterFigures(None, beat_at)
    faults, findings = _watched(watch.last_observations(opened), now)
    with store.reading(opened) as connection:
        position = connection.execute(sa.select(sa.func.max(tables.positions.c.event_id))).scalar()
        waiting = outbox.waiting(connection)
        figures = RouterFigures(
            ticked_at=_time(connection, tick.TICKED_AT),
            sensor_daemon_at=beat_at,
            undecided=_count(connection, tables.attempts.c.state == AttemptState.NEW),
            held=_count(connection, tables.attempts.c.state == AttemptState.HELD),
            waiting=waiting,
            uncertain=_count(connection, tables.outbox.c.state == DeliveryState.UNCERTAIN),
            auth_refusal=_auth_refusal(connection) if waiting else None,
            incidents=_open_incidents(connection),
            mutes=[(mute, mutes.count(connection, mute)) for mute in without_summary(connection)],
            rescued=_count(connection, tables.attempts.c.rescued),
            rescued_in_a_day=_count(connection, tables.attempts.c.rescued, tables.attempts.c.seen_at > now - DAY),
            watched_at=_time(connection, tick.WATCHED_AT),
            rule_faults=faults,
            findings=findings,
        )
    if position is None:
        return figures
    unread = event_heads(instance, [dg.DagsterEventType.RUN_FAILURE], position, MAX_UNREAD_EVENTS)
    return replace(figures, unread=len(unread), unread_since=min((head.at for head in unread), default=None))


def problems(figures: RouterFigures, now: dt.datetime) -> Sequence[str]:
    """Return the problems, each with where to look. None: the router works."""
    found = []
    if figures.ticked_at is None:
        found.append(
            "The router has never ticked on this instance. Check that the location `shared` loads and that the sensor "
            "notify_slack_on_failure is on."
        )
    elif now - figures.ticked_at > MAX_AGE:
        found.append(
            f"The router's last tick ended {ago(now, figures.ticked_at)}. Check the ticks of notify_slack_on_failure "
            "and the log of dagster-daemon."
        )
    if figures.sensor_daemon_at is None:
        found.append("The sensor daemon has never run on this instance. Start dagster-daemon.")
    elif now - figures.sensor_daemon_at > MAX_AGE:
        found.append(
            f"The last heartbeat of the sensor daemon came {ago(now, figures.sensor_daemon_at)}. Check the log of "
            "dagster-daemon and restart it."
        )
    if figures.auth_refusal is not None:
        found.append(figures.auth_refusal)
    late = [one for one in figures.waiting if now - one.oldest_at > MAX_AGE]
    found += [
        f"{one.rows} messages to {one.channel} have been waiting, the oldest for {ago(now, one.oldest_at, '')}: "
        f"{one.note or 'Slack has not been called for it yet'}."
        for one in late
    ]
    return found


def ago(now: dt.datetime, time: dt.datetime, after: str = " ago") -> str:
    """Return how long ago a time was, in words."""
    seconds = max((now - time).total_seconds(), 0)
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}{after}"
    return f"{seconds:.0f} seconds{after}"


def _time(connection: sa.Connection, name: str) -> dt.datetime | None:
    value = get_value(connection, name)
    return None if value is None else dt.datetime.fromisoformat(value)


def _count(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> int:
    return connection.execute(sa.select(sa.func.count()).where(*conditions)).scalar_one()


def _auth_refusal(connection: sa.Connection) -> str | None:
    """Return why Slack rejects the token, None when it has accepted a message since."""
    everything = outbox.read_channel(connection, ALL_CHANNELS)
    if everything.wait_until is None:
        return None
    refused_at = everything.wait_until - dt.timedelta(seconds=DEFAULT_PACE.after_auth_refusal_seconds)
    is_sent_since = sa.and_(tables.outbox.c.state == DeliveryState.SENT, tables.outbox.c.closed_at > refused_at)
    return None if _count(connection, is_sent_since) else everything.wait_reason


def _open_incidents(connection: sa.Connection) -> Sequence[OpenIncident]:
    table = tables.incidents
    query = (
        sa.select(table)
        .where(sa.not_(table.c.finished), table.c.resolved_at.is_(None), table.c.posted)
        .order_by(table.c.opened_at, table.c.key)
    )
    return [
        OpenIncident(row.key, row.kind, row.channel, row.owner, row.title, row.opened_at, row.failures)
        for row in connection.execute(query)
    ]


def _watched(observations: Mapping[str, watch.Observed], now: dt.datetime) -> tuple[Sequence[str], Sequence[str]]:
    """Return the rules that fail, and the keys of what the others find, reported or not yet."""
    faults = [one.finding.detail.partition("\n")[0] for _, one in observations.get(watch.FAULTS, {}).values()]
    keys = [
        f"{key}, observed first {ago(now, first_observed_at)}"
        for rule, by_key in observations.items()
        if rule != watch.FAULTS
        for key, (first_observed_at, _) in by_key.items()
    ]
    return faults, sorted(keys)
