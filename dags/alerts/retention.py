"""The deletion of rows that are resolved and old."""

import datetime as dt

import sqlalchemy as sa

from dags.alerts.queries import mutes
from dags.alerts.store import transaction
from dags.alerts.tables import attempts, incident_series, incidents, outbox, outcomes
from dags.alerts.values import OPEN_STATES, AttemptState, AttemptStatus

RETENTION = dt.timedelta(days=90)
# A success matters only to a failure that arrives late.
RETENTION_OF_SUCCESSES = dt.timedelta(days=3)


def delete_old_rows(store: sa.Engine, now: dt.datetime) -> None:
    """Delete what is resolved and old. What is open stays, however old it is."""
    limit = now - RETENTION
    old_incidents = sa.select(incidents.c.key).where(incidents.c.finished, incidents.c.resolved_at < limit)
    with transaction(store) as connection:
        mutes.delete_summarized(connection, limit)
        connection.execute(sa.delete(incident_series).where(incident_series.c.incident.in_(old_incidents)))
        connection.execute(
            sa.delete(outcomes).where(
                sa.not_(outcomes.c.is_open),
                outcomes.c.at < limit,
                sa.or_(outcomes.c.incident.is_(None), outcomes.c.incident.in_(old_incidents)),
            )
        )
        connection.execute(sa.delete(incidents).where(incidents.c.key.in_(old_incidents)))
        connection.execute(
            sa.delete(outbox).where(
                outbox.c.state.not_in(OPEN_STATES),
                outbox.c.closed_at < limit,
                outbox.c.thread.not_in(sa.select(incidents.c.key)),
            )
        )
        connection.execute(
            sa.delete(attempts).where(
                attempts.c.state.in_([AttemptState.DONE, AttemptState.SKIPPED]),
                sa.or_(
                    attempts.c.at < limit,
                    sa.and_(attempts.c.status != AttemptStatus.FAILED, attempts.c.at < now - RETENTION_OF_SUCCESSES),
                ),
            )
        )
