"""Requests to delete data: the table `deletion_requests` in Postgres, which applications write to.

`dags/deletes/` processes the requests. What "deleted" means is in docs/deletes.md.
"""

import datetime as dt
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, LiteralString

from dags.common.postgres import Postgres

# Each runs once, in this order. Never change one: append a new one instead.
MIGRATIONS: tuple[LiteralString, ...] = (
    """
    CREATE TABLE deletion_requests (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        kind text NOT NULL CHECK (kind IN ('person', 'team', 'event', 'uuid')),
        team_id bigint NOT NULL,
        key text NOT NULL DEFAULT '',
        requested_by text NOT NULL CHECK (requested_by <> ''),
        requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        reason text NOT NULL DEFAULT '',
        state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'refused')),
        note text NOT NULL DEFAULT '',
        evidence jsonb,
        finished_at timestamptz,
        CONSTRAINT key_fits_kind CHECK (
            CASE kind
                WHEN 'team' THEN key = ''
                WHEN 'event' THEN key <> ''
                ELSE key ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
            END
        ),
        CONSTRAINT done_with_evidence CHECK (state <> 'done' OR (evidence IS NOT NULL AND finished_at IS NOT NULL))
    );
    CREATE INDEX deletion_requests_pending ON deletion_requests (team_id, requested_at) WHERE state = 'pending';
    COMMENT ON TABLE deletion_requests IS 'What is to be deleted. Insert kind, team_id, key and requested_by.';
    CREATE TABLE deletion_days (day date PRIMARY KEY);
    COMMENT ON TABLE deletion_days IS 'Days (UTC) that lose events, until what comes from them is computed again.';
    """,
)


class RequestKind(StrEnum):
    """What a request names. The value is that of the column `kind`, and decides what `key` is."""

    PERSON = "person"  # key: id of the person
    TEAM = "team"  # key: empty
    EVENT = "event"  # key: name of the event
    UUID = "uuid"  # key: uuid of one event


class RequestState(StrEnum):
    """The state of a request: the value is that of the column `state`."""

    PENDING = "pending"
    DONE = "done"
    REFUSED = "refused"


class UnknownRequestError(LookupError):
    """There is no request of that id in the state that the change requires."""


@dataclass(frozen=True)
class DeletionRequest:
    """A row of `deletion_requests`."""

    id: int
    kind: RequestKind
    team_id: int
    key: str
    requested_by: str
    requested_at: dt.datetime
    reason: str = ""
    state: RequestState = RequestState.PENDING
    note: str = ""
    evidence: Mapping[str, Any] | None = None
    finished_at: dt.datetime | None = None


@dataclass(frozen=True)
class CompletedRequest:
    """What a request that is done covers: events up to `requested_at` that have this key."""

    kind: RequestKind
    team_id: int
    key: str
    requested_at: dt.datetime


# Held exclusively while requests are marked as done, and shared by loads from reading the completed requests to their
# last insert: so no load that has not seen a request inserts rows after these were counted.
COMPLETION_LOCK = "completion of deletion requests"

REQUESTS_STATEMENT = """
SELECT id, kind, team_id, key, requested_by, requested_at, reason, state, note, evidence, finished_at
FROM deletion_requests
WHERE (%(state)s IS NULL OR state = %(state)s) AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s::bigint[]))
ORDER BY requested_at, id LIMIT %(limit)s
"""


def apply_migrations(postgres: Postgres) -> int:
    """Bring the tables in Postgres to the newest version; return it. Safe to repeat, also at the same time."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtext('deletion_requests_versions'))")
        cursor.execute(
            "CREATE TABLE IF NOT EXISTS deletion_requests_versions "
            "(version int PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        cursor.execute("SELECT coalesce(max(version), 0) FROM deletion_requests_versions")
        ((applied,),) = cursor.fetchall()
        for version, statement in enumerate(MIGRATIONS, start=1):
            if version > applied:
                cursor.execute(statement)
                cursor.execute("INSERT INTO deletion_requests_versions (version) VALUES (%s)", (version,))
    return len(MIGRATIONS)


def request_deletion(
    postgres: Postgres,
    kind: RequestKind,
    team_id: int,
    keys: Sequence[str],
    *,
    requested_by: str,
    reason: str = "",
    requested_at: dt.datetime | None = None,
) -> list[int]:
    """Insert a request for each key (for a team, the one key ''), all or none; return their ids.

    Without `requested_at` the time is now, by the clock of Postgres. Raises psycopg2.errors.CheckViolation when a key
    does not fit the kind.
    """
    with postgres.connection() as connection, connection.cursor() as cursor:
        ids = []
        for key in keys:
            cursor.execute(
                "INSERT INTO deletion_requests (kind, team_id, key, requested_by, reason, requested_at) "
                "VALUES (%s, %s, %s, %s, %s, coalesce(%s, clock_timestamp())) RETURNING id",
                (kind.value, team_id, key, requested_by, reason, requested_at),
            )
            ((request_id,),) = cursor.fetchall()
            ids.append(request_id)
        return ids


def list_requests(
    postgres: Postgres,
    *,
    state: RequestState | None = None,
    ids: Collection[int] | None = None,
    limit: int | None = None,
) -> list[DeletionRequest]:
    """Return the requests with this state or these ids, the oldest first, at most `limit`."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        parameters = {"state": state, "ids": None if ids is None else list(ids), "limit": limit}
        cursor.execute(REQUESTS_STATEMENT, parameters)
        return [_request(*row) for row in cursor.fetchall()]


def due_requests(postgres: Postgres, limit: int) -> list[DeletionRequest]:
    """Return the pending requests that were not made for a later time, the oldest first, at most `limit`."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        ((now,),) = cursor.fetchall()
    return [one for one in list_requests(postgres, state=RequestState.PENDING, limit=limit) if one.requested_at <= now]


def completed_requests(postgres: Postgres, team_ids: Collection[int]) -> list[CompletedRequest]:
    """Return the requests of these teams that are done, each key once, with the latest time."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT kind, team_id, key, max(requested_at) FROM deletion_requests "
            "WHERE state = 'done' AND team_id = ANY(%s::bigint[]) GROUP BY kind, team_id, key",
            (sorted(team_ids),),
        )
        return [CompletedRequest(RequestKind(kind), *others) for kind, *others in cursor.fetchall()]


def earliest_person_requests(postgres: Postgres) -> dict[int, dt.datetime]:
    """Return the time of the oldest pending request for a person, by team."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT team_id, min(requested_at) FROM deletion_requests "
            "WHERE state = 'pending' AND kind = 'person' GROUP BY team_id"
        )
        return dict(cursor.fetchall())


def set_waiting_notes(postgres: Postgres, notes: Mapping[int, str]) -> None:
    """Write why these requests are still pending, by id, and clear the notes of the other pending requests."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE deletion_requests SET note = '' WHERE state = 'pending' AND note <> ''")
        for request_id, note in notes.items():
            cursor.execute(
                "UPDATE deletion_requests SET note = %s WHERE id = %s AND state = 'pending'", (note, request_id)
            )


def mark_done(postgres: Postgres, evidence: Mapping[int, Mapping[str, Any]]) -> None:
    """Mark these pending requests as done, each with its evidence, all or none.

    Raises UnknownRequestError when one is not pending anymore.
    """
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE deletion_requests AS requests SET state = 'done', note = '', evidence = proof::jsonb, "
            "finished_at = clock_timestamp() FROM unnest(%s::bigint[], %s::text[]) AS done (id, proof) "
            "WHERE requests.id = done.id AND state = 'pending'",
            (list(evidence), [json.dumps(proof) for proof in evidence.values()]),
        )
        if cursor.rowcount != len(evidence):
            raise UnknownRequestError(
                f"{len(evidence) - cursor.rowcount} of {len(evidence)} requests are not pending anymore: they were "
                "refused in the meantime. None was marked as done; run deletes_job again."
            )


def refuse(postgres: Postgres, request_id: int, reason: str) -> None:
    """Refuse a pending request. Raises UnknownRequestError when it is not pending."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE deletion_requests SET state = 'refused', note = %s, finished_at = clock_timestamp() "
            "WHERE id = %s AND state = 'pending'",
            (reason, request_id),
        )
        if cursor.rowcount != 1:
            raise UnknownRequestError(
                f"There is no pending deletion request {request_id}. List the pending ones: "
                "python -m dags.deletes list --state pending"
            )


def add_stale_days(postgres: Postgres, days: Collection[dt.date]) -> None:
    """Record days that are about to lose events, so that their web tables become stale."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO deletion_days (day) SELECT unnest(%s::date[]) ON CONFLICT DO NOTHING", (sorted(days),)
        )


def stale_days(postgres: Postgres) -> list[dt.date]:
    """Return the days that lost events, or were about to, and whose web tables were not recomputed since."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT day FROM deletion_days ORDER BY day")
        return [day for (day,) in cursor.fetchall()]


def remove_stale_days(postgres: Postgres, days: Collection[dt.date]) -> None:
    """Remove the days whose web tables were recomputed."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM deletion_days WHERE day = ANY(%s::date[])", (sorted(days),))


def _request(request_id: int, kind: str, team_id: int, key: str, *others: Any) -> DeletionRequest:
    requested_by, requested_at, reason, state, note, evidence, finished_at = others
    return DeletionRequest(
        id=request_id,
        kind=RequestKind(kind),
        team_id=team_id,
        key=key,
        requested_by=requested_by,
        requested_at=requested_at,
        reason=reason,
        state=RequestState(state),
        note=note,
        evidence=evidence,
        finished_at=finished_at,
    )
