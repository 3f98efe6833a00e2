"""Which tables a deletion request covers, and by which columns. Add every new table here, to one of the lists."""

from collections.abc import Mapping
from dataclasses import dataclass

from dags.common.clickhouse.ddl import Column, Table
from dags.common.clickhouse.query import quoted
from dags.common.clickhouse.tables import (
    ANALYTICS_DIGEST_DAILY,
    EVENT_DAY_CHANGES,
    EVENTS,
    EVENTS_REJECTED,
    EXCHANGE_RATE,
    INGESTED_OBJECTS,
    PERSON_DISTINCT_ID_OVERRIDES,
    SCHEMA_MIGRATIONS,
    WEB_PRE_AGGREGATED_TEAMS,
    WEB_SESSION_DAYS,
    WEB_SESSIONS,
)
from dags.common.deletion_requests import RequestKind

# The key of each kind of request: columns of the tables that a run makes for its requests.
TEAM_ID = Column("team_id", "Int64", "Team.")
KEYS: Mapping[RequestKind, tuple[Column, ...]] = {
    RequestKind.PERSON: (TEAM_ID, Column("id", "UUID", "Id of the person.")),
    RequestKind.TEAM: (TEAM_ID,),
    RequestKind.EVENT: (TEAM_ID, Column("name", "String", "Name of the event.")),
    RequestKind.UUID: (TEAM_ID, Column("id", "UUID", "Uuid of the event.")),
}
UNTIL = Column("until", "Int64", "Rows up to this time are covered, microseconds since 1970.")
# Before and after every time that a column can hold.
NEVER = -(2**62)
ALWAYS = 2**62


@dataclass(frozen=True)
class Target:
    """A table that requests cover. Rows whose `time` is later than the request are not covered.

    `columns` has, for each kind that covers the table, the columns that a key is compared with.
    """

    table: Table
    time: str
    columns: Mapping[RequestKind, tuple[str, ...]]

    def condition(self, kind: RequestKind) -> str:
        """Return the condition of the rows that requests of the kind cover; `requests_<kind>` is their dictionary."""
        key = ", ".join(self.columns[kind])
        until = f"dictGetOrDefault(%(requests_{kind})s, 'until', tuple({key}), toInt64({NEVER}))"
        return f"toUnixTimestamp64Micro({self.time}) <= {until}"

    def prewhere(self, kind: RequestKind, table: str) -> str:
        """Return a cheaper condition that all these rows fulfill: the last column is in the table of requests."""
        return f"{self.columns[kind][-1]} IN (SELECT {KEYS[kind][-1].name} FROM {quoted(table)})"  # noqa: S608 - names from code


EVENTS_TARGET = Target(
    EVENTS,
    "timestamp",
    {
        RequestKind.PERSON: ("team_id", "person_id"),
        RequestKind.TEAM: ("team_id",),
        RequestKind.EVENT: ("team_id", "CAST(event, 'String')"),
        RequestKind.UUID: ("team_id", "uuid"),
    },
)
OVERRIDES_TARGET = Target(
    PERSON_DISTINCT_ID_OVERRIDES,
    "_timestamp",
    {RequestKind.PERSON: ("team_id", "person_id"), RequestKind.TEAM: ("team_id",)},
)
REJECTED_TARGET = Target(EVENTS_REJECTED, "rejected_at", {RequestKind.TEAM: ("team_id",)})
# Counts of a team's days: no row is about one person.
DIGEST_TARGET = Target(ANALYTICS_DIGEST_DAILY, "toDateTime64(day, 6, 'UTC')", {RequestKind.TEAM: ("team_id",)})

# In the order of deletion: events last, so that a request that fails on another table still finds its events.
TARGETS = (REJECTED_TARGET, DIGEST_TARGET, OVERRIDES_TARGET, EVENTS_TARGET)

# Computed from events: their stale days are recomputed.
DERIVED = (WEB_SESSIONS,)

EXEMPT: Mapping[str, str] = {
    SCHEMA_MIGRATIONS.name: "statements of the schema",
    EXCHANGE_RATE.name: "rates of currencies",
    EVENT_DAY_CHANGES.name: "days on which events changed, and no event",
    INGESTED_OBJECTS.name: "names and sizes of objects, and no line of them",
    WEB_PRE_AGGREGATED_TEAMS.name: "which teams are computed",
    WEB_SESSION_DAYS.name: "counts of days over all teams",
}
