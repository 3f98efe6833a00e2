"""The queries on incidents and on the series that they report."""

import dataclasses
import datetime as dt
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from dags.alerts.queries.statements import chunks, insert_new
from dags.alerts.tables import incident_series, incidents
from dags.alerts.values import Finding, Incident, IncidentKind

FIELDS = tuple(field.name for field in dataclasses.fields(Incident))

IS_UNFINISHED = sa.not_(incidents.c.finished)
IS_OPEN = sa.and_(IS_UNFINISHED, incidents.c.resolved_at.is_(None))


def get(connection: sa.Connection, key: str) -> Incident | None:
    """Return an incident by its key."""
    row = connection.execute(sa.select(incidents).where(incidents.c.key == key)).one_or_none()
    return None if row is None else _incident(row)


def find(connection: sa.Connection, *conditions: sa.ColumnElement[bool]) -> Sequence[Incident]:
    """Return the incidents that meet the conditions, the oldest first."""
    query = sa.select(incidents).where(*conditions).order_by(incidents.c.opened_at, incidents.c.key)
    return [_incident(row) for row in connection.execute(query)]


def unfinished(connection: sa.Connection) -> Sequence[Incident]:
    """Return the incidents that may still need a message."""
    return find(connection, IS_UNFINISHED)


def open_of_kind(connection: sa.Connection, kind: IncidentKind) -> Sequence[Incident]:
    """Return the open incidents of a kind."""
    return find(connection, IS_OPEN, incidents.c.kind == kind.value)


def members_of(connection: sa.Connection, storm: str) -> Sequence[Incident]:
    """Return the incidents of a storm."""
    return find(connection, incidents.c.storm == storm)


def titles_of(connection: sa.Connection, storm: str) -> Mapping[str, str]:
    """Return the titles of the incidents of a storm, by key."""
    query = sa.select(incidents.c.key, incidents.c.title).where(incidents.c.storm == storm)
    return {row.key: row.title for row in connection.execute(query)}


def subjects_of_open(connection: sa.Connection, kind: IncidentKind) -> Mapping[str, str]:
    """Return the subjects of the open incidents of a kind, by the incident's key."""
    query = sa.select(incidents.c.key, incidents.c.subject).where(IS_OPEN, incidents.c.kind == kind.value)
    return {row.key: row.subject for row in connection.execute(query)}


def add(
    connection: sa.Connection, incident: Incident, title: str = "", subject: str = "", finding: Finding | None = None
) -> None:
    """Store a new incident. `subject` is the id of its backfill or the key of its finding."""
    facts = None if finding is None else json.dumps(vars(finding) | {"since": finding.since.isoformat()})
    connection.execute(sa.insert(incidents).values(**_values(incident), title=title, subject=subject, facts=facts))


def update(connection: sa.Connection, incident: Incident) -> None:
    """Store the present form of an incident."""
    connection.execute(sa.update(incidents).where(incidents.c.key == incident.key).values(**_values(incident)))


def resolve(connection: sa.Connection, keys: Collection[str], resolved_at: dt.datetime) -> None:
    """Mark incidents as resolved at a time."""
    for chunk in chunks(sorted(keys)):
        connection.execute(sa.update(incidents).where(incidents.c.key.in_(list(chunk))).values(resolved_at=resolved_at))


def finding_of(connection: sa.Connection, key: str) -> Finding:
    """Return the finding that an incident of that kind reports."""
    facts = json.loads(connection.execute(sa.select(incidents.c.facts).where(incidents.c.key == key)).scalar_one())
    return Finding(**facts | {"since": dt.datetime.fromisoformat(facts["since"])})


def record_series(connection: sa.Connection, incident: str, series: str, resolved_at: dt.datetime | None) -> None:
    """Store that an incident reports a series, and when a success of that series resolved it."""
    insert_new(connection, incident_series, [{"incident": incident, "series": series, "resolved_at": resolved_at}])
    connection.execute(
        sa.update(incident_series)
        .where(incident_series.c.incident == incident, incident_series.c.series == series)
        .values(resolved_at=resolved_at)
    )


def series_resolved_at(connection: sa.Connection, incident: str) -> dt.datetime | None:
    """Return when the last series of an incident was resolved, None while one is not."""
    query = sa.select(incident_series.c.resolved_at).where(incident_series.c.incident == incident)
    times = list(connection.execute(query).scalars())
    return None if not times or None in times else max(time for time in times if time is not None)


def _incident(row: Any) -> Incident:
    values = {name: getattr(row, name) for name in FIELDS}
    return Incident(**values | {"kind": IncidentKind(row.kind)})


def _values(incident: Incident) -> Mapping[str, Any]:
    return {name: getattr(incident, name) for name in FIELDS} | {"kind": incident.kind.value}
