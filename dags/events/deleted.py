"""Staged events that a completed deletion request covers: a load skips them, so that what was deleted stays deleted."""

from collections.abc import Iterable

from dags.common.clickhouse.query import Insert, quoted
from dags.common.deletion_requests import CompletedRequest, RequestKind
from dags.common.rewrites.conditions import microseconds
from dags.events.staging import SETTINGS, StagedBatch
from dags.events.staging_table import IS_EVENT

DELETED_RULE = "deleted on request"
# An event that is named by its uuid is covered whatever its time.
ALWAYS = 2**62

CREATE_STATEMENT = """
CREATE TABLE {deleted} (team_id Int64, kind String, key String, until Int64) ENGINE = MergeTree ORDER BY tuple()
"""
COVERED = """
SELECT object, line FROM (
    SELECT object, line, team_id, toUnixTimestamp64Micro(timestamp) AS time, named.1 AS kind, named.2 AS key
    FROM {staged}
    ARRAY JOIN [
        ('person', toString(person_id)), ('team', ''), ('event', CAST(event, 'String')), ('uuid', toString(uuid))
    ] AS named
    WHERE {is_event}
) AS found
INNER JOIN {deleted} AS requests USING (team_id, kind, key)
WHERE time <= until
"""
SKIP_STATEMENT = "ALTER TABLE {staged} UPDATE skipped_by = %(rule)s WHERE {is_event} AND (object, line) IN ({covered})"


def skip_deleted_events(staged: StagedBatch, requests: Iterable[CompletedRequest]) -> None:
    """Mark the staged events that the requests cover as skipped."""
    rows = [
        (
            one.team_id,
            one.kind.value,
            one.key,
            ALWAYS if one.kind is RequestKind.UUID else microseconds(one.requested_at),
        )
        for one in requests
    ]
    if not rows:
        return
    names = {"staged": quoted(staged.table), "deleted": quoted(staged.deleted), "is_event": IS_EVENT}
    staged.run(CREATE_STATEMENT.format(**names))
    staged.host.any_host(Insert(staged.deleted, ("team_id", "kind", "key", "until"), rows)).result()
    covered = COVERED.format(**names)
    if staged.rows(f"SELECT 1 FROM ({covered}) LIMIT 1"):  # noqa: S608 - names from code
        statement = SKIP_STATEMENT.format(covered=covered, **names)
        staged.run(statement, {"rule": DELETED_RULE}, settings={**SETTINGS, "mutations_sync": 1})
