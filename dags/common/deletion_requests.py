"""Requests to delete data, in Postgres: the table that applications write to, and what becomes of each request.

Belongs here: the table `deletion_requests` and what is read from it and written to it. Not here: the deleting
(`dags/deletes/`), and what "deleted" means (`docs/deletes.md`).
"""

import datetime as dt
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, LiteralString

from dags.common.postgres import Postgres

# Each is run once, in this order, and never changed after that: what is to change is a new one at the end.
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
    """What a request names: the value is the column `kind`, and decides what `key` is."""

    PERSON = "person"  # key: id of the person
    TEAM = "team"  # key: empty
    EVENT = "event"  # key: name of the event
    UUID = "uuid"  # key: uuid of one event


class RequestState(StrEnum):
    """What became of a request."""

    PENDING = "pending"
    DONE = "done"
    REFUSED = "refused"


class UnknownRequestError(LookupError):
    """There is no request of that id in the state that the change needs."""


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


REQUESTS_STATEMENT = """
SELECT id, kind, team_id, key, requested_by, requested_at, reason, state, note, evidence, finished_at
FROM deletion_requests
WHERE (%(state)s IS NULL OR state = %(state)s) AND (%(ids)s::bigint[] IS NULL OR id = ANY(%(ids)s::bigint[]))
ORDER BY requested_at, id LIMIT %(most)s
"""


def prepare(postgres: Postgres) -> int:
    """Bring the tables in Postgres to the newest version, and return it. Safe at any time, and by several at once."""
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


def ask(
    postgres: Postgres,
    kind: RequestKind,
    team_id: int,
    keys: Sequence[str],
    *,
    requested_by: str,
    reason: str = "",
    requested_at: dt.datetime | None = None,
) -> list[int]:
    """Insert a request for each key (for a team, the one key ''), all or none; return the ids.

    Without `requested_at` they are asked for now, by the clock of Postgres. Raises psycopg2.errors.CheckViolation when
    a key is not one of the kind.
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


def requests(
    postgres: Postgres,
    *,
    state: RequestState | None = None,
    ids: Collection[int] | None = None,
    most: int | None = None,
) -> list[DeletionRequest]:
    """The requests of a state, or of these ids, or all of them; the oldest first, at most so many."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        parameters = {"state": state, "ids": None if ids is None else list(ids), "most": most}
        cursor.execute(REQUESTS_STATEMENT, parameters)
        return [_request(*row) for row in cursor.fetchall()]


def due(postgres: Postgres, most: int) -> list[DeletionRequest]:
    """The pending requests whose time has come, by the clock of Postgres; the oldest first, at most so many."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        ((now,),) = cursor.fetchall()
    return [one for one in requests(postgres, state=RequestState.PENDING, most=most) if one.requested_at <= now]


def earliest_person_requests(postgres: Postgres) -> dict[int, dt.datetime]:
    """When the oldest pending request for a person was made, by team."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT team_id, min(requested_at) FROM deletion_requests "
            "WHERE state = 'pending' AND kind = 'person' GROUP BY team_id"
        )
        return dict(cursor.fetchall())


def say_why_waiting(postgres: Postgres, notes: Mapping[int, str]) -> None:
    """Write why these requests are still pending; the notes of the other pending ones are cleared."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE deletion_requests SET note = '' WHERE state = 'pending' AND note <> ''")
        for request_id, note in notes.items():
            cursor.execute(
                "UPDATE deletion_requests SET note = %s WHERE id = %s AND state = 'pending'", (note, request_id)
            )


def mark_done(postgres: Postgres, evidence: Mapping[int, Mapping[str, Any]]) -> None:
    """Mark these pending requests as done, each with its evidence, all or none.

    Raises UnknownRequestError when one is not pending any more.
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
                f"{len(evidence) - cursor.rowcount} of {len(evidence)} requests are not pending any more: they were "
                "refused while they were done. None was marked; run the deletes again."
            )


def refuse(postgres: Postgres, request_id: int, why: str) -> None:
    """End a pending request without doing it. Raises UnknownRequestError when it is not pending."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE deletion_requests SET state = 'refused', note = %s, finished_at = clock_timestamp() "
            "WHERE id = %s AND state = 'pending'",
            (why, request_id),
        )
        if cursor.rowcount != 1:
            raise UnknownRequestError(f"There is no pending deletion request {request_id}: see the command's list.")


def add_days(postgres: Postgres, days: Collection[dt.date]) -> None:
    """Remember days that are about to lose events."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO deletion_days (day) SELECT unnest(%s::date[]) ON CONFLICT DO NOTHING", (sorted(days),)
        )


def remembered_days(postgres: Postgres) -> list[dt.date]:
    """Days that have lost events, or were about to, and whose tables were not computed again."""
    with postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT day FROM deletion_days ORDER BY day")
        return [day for (day,) in cursor.fetchall()]


def forget_days(postgres: Postgres, days: Collection[dt.date]) -> None:
    """The tables of these days were computed again."""
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
