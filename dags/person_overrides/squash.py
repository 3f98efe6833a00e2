"""The squash: write the persons of the overrides into the events, then remove the overrides that were applied.

An override is applied if it is the latest of its team and distinct_id and older than the cutoff. A tombstone
(`is_deleted`) means that no override holds: no event is rewritten for it, and once it is older than the cutoff it is
removed together with the older rows of its distinct_id.

An override is removed only when no event is left, on any host, that it would change. Of several rows of one distinct_id
the latest is removed last, so that an older one never takes effect again. Both hold at whatever step the run dies.
"""

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dags.common import event_days
from dags.common.clickhouse.ddl import Column
from dags.common.clickhouse.mutations import Command, delete, update
from dags.common.clickhouse.query import Query, quoted
from dags.common.clickhouse.tables import EVENTS, PERSON_DISTINCT_ID_OVERRIDES
from dags.common.event_days import ChangeReason
from dags.common.rewrites.conditions import microseconds, team_condition
from dags.common.rewrites.matches import Matches, total
from dags.common.rewrites.rewrite import Rewrite

TEAM_ID = Column("team_id", "Int64", "Team.")
DISTINCT_ID = Column("distinct_id", "String", "The visitor as the source names it.")
PERSON_ID = Column("person_id", "UUID", "The person that the visitor belongs to.")
VERSION = Column("version", "Int64", "Of the override.")

KEY = (TEAM_ID, DISTINCT_ID)
LIVE_VALUES = (PERSON_ID, VERSION)
TOMBSTONE_VALUES = (VERSION,)

# With more, a set in PREWHERE costs more than it saves.
MAX_OVERRIDES_IN_A_SET = 100_000

DAY_OF_EVENT = "toDate(timestamp, 'UTC')"

# Lower than every version: a key that the dictionary lacks is not removed.
NO_VERSION = -(2**63)

PARTS_STATEMENT = """
SELECT partition_id, count() FROM system.parts
WHERE database = currentDatabase() AND table = %(table)s AND active AND rows > 0 GROUP BY 1
"""
# FINAL merges before the condition applies, so a superseded row is never taken for the latest.
LATEST_STATEMENT = """
INSERT INTO {target} ({columns}) SELECT {columns} FROM person_distinct_id_overrides FINAL
WHERE is_deleted = %(is_deleted)s AND toUnixTimestamp64Micro(_timestamp) < {limit}
"""
# The person of the override, or else that of the event: one lookup decides whether they differ.
NEW_PERSON = "dictGetOrDefault(%(live)s, 'person_id', (team_id, distinct_id), person_id)"


@dataclass(frozen=True)
class SquashResult:
    """What a squash did, or in a dry run would do. `matches` are the events that the overrides change."""

    is_dry_run: bool
    overrides: int
    tombstones: int
    held_teams: tuple[int, ...]
    matches: Matches = field(default_factory=dict)
    rows_rewritten: int = 0
    override_rows_removed: int = 0
    rounds: int = 0
    mutations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # Days (UTC) with rewritten events: their web tables are stale.
    days: Sequence[dt.date] = ()


def squash(
    rewrite: Rewrite,
    *,
    cutoff: dt.datetime,
    hold_back: Mapping[int, dt.datetime],
    dry_run: bool,
) -> SquashResult:
    """Apply every override that is older than the cutoff, and remove it. Safe to repeat at any time.

    In a team of `hold_back`, overrides written after the given time are left for a later run: the deletion of a person
    was requested then, and the persons of that time decide which events are deleted.
    """
    change_id = f"squash {rewrite.run_id} {rewrite.attempt}"
    if not dry_run:
        rewrite.drop_leftovers()
        event_days.close_leftovers(rewrite.cluster, ChangeReason.SQUASH, rewrite.run_id)
    overrides, tombstones, team_ids = _snapshot(rewrite, cutoff, hold_back)
    live = rewrite.create_dictionary(rewrite.name("overrides"), KEY, LIVE_VALUES, "Overrides that a squash applies.")
    rewrite.report("The overrides are on all hosts.")
    command = _rewriting(rewrite, live, team_ids)
    prewhere = _prewhere(rewrite, overrides)
    result = SquashResult(
        is_dry_run=dry_run, overrides=overrides, tombstones=tombstones, held_teams=tuple(sorted(hold_back))
    )
    if dry_run:
        if overrides:
            table = rewrite.stored_as(EVENTS)
            matches = rewrite.find(table, command.condition, command.parameters, prewhere=prewhere)
            result = dataclasses.replace(result, matches=matches)
    else:
        if overrides:
            events = rewrite.apply(
                EVENTS,
                command,
                prewhere=prewhere,
                day=DAY_OF_EVENT,
                narrow=lambda matches: _narrow(rewrite, command, matches, change_id),
            )
            result = dataclasses.replace(
                result,
                matches=events.matches,
                rows_rewritten=events.rows,
                rounds=events.rounds,
                mutations=events.mutations,
            )
        rewrite.report(f"No event is left that an override would change; {result.rows_rewritten} were rewritten.")
        dictionaries = {"live": rewrite.full_name(live)} if overrides else {}
        if tombstones:
            comment = "Tombstones that a squash removes."
            dead = rewrite.create_dictionary(rewrite.name("tombstones"), KEY, TOMBSTONE_VALUES, comment)
            dictionaries["dead"] = rewrite.full_name(dead)
        if dictionaries:
            result = dataclasses.replace(result, override_rows_removed=_remove(rewrite, dictionaries))
        changed = event_days.days_of_change(rewrite.cluster, change_id)
        event_days.record_closed(rewrite.cluster, changed, change_id, ChangeReason.SQUASH, rewrite.run_id)
        result = dataclasses.replace(result, days=tuple(changed))
    rewrite.drop_own()
    rewrite.report("The tables of this run are dropped.")
    return result


def _snapshot(
    rewrite: Rewrite, cutoff: dt.datetime, hold_back: Mapping[int, dt.datetime]
) -> tuple[int, int, tuple[int, ...]]:
    """Copy overrides and tombstones into tables of the run on every host; return their numbers, and the teams."""
    key = [column.name for column in KEY]
    limit, parameters = _limit(cutoff, hold_back)
    # From one host alone: hosts may differ in what was replicated to them, and all must apply the same overrides.
    source = rewrite.cluster.hosts[0]
    snapshots = {"overrides": (0, LIVE_VALUES), "tombstones": (1, TOMBSTONE_VALUES)}
    # Both are filled before either is copied: an override must not become a tombstone in between.
    for what, (is_deleted, values) in snapshots.items():
        table = rewrite.create_table(what, (*KEY, *values), key)
        columns = ", ".join(column.name for column in (*KEY, *values))
        statement = LATEST_STATEMENT.format(target=quoted(table), columns=columns, limit=limit)
        fill = Query(statement, {**parameters, "is_deleted": is_deleted})
        rewrite.cluster.only(source).any_host(fill, timeout_seconds=rewrite.seconds_left()).result()
    overrides, tombstones = (
        rewrite.copy_to_other_hosts(source, rewrite.name(what), [column.name for column in (*KEY, *values)], key)
        for what, (_, values) in snapshots.items()
    )
    teams = Query(f"SELECT DISTINCT team_id FROM {quoted(rewrite.name('overrides'))}")  # noqa: S608 - a name made here
    team_ids = tuple(team_id for (team_id,) in rewrite.cluster.only(source).any_host(teams).result())
    rewrite.report(
        f"Snapshot: {overrides} overrides of {len(team_ids)} teams and {tombstones} tombstones, from {source}."
    )
    return overrides, tombstones, team_ids


def _limit(cutoff: dt.datetime, hold_back: Mapping[int, dt.datetime]) -> tuple[str, dict[str, Any]]:
    """Return the microseconds that an override must be older than, as an expression, with its parameters."""
    parameters: dict[str, Any] = {"cutoff": microseconds(cutoff)}
    if not hold_back:
        return "%(cutoff)s", parameters
    teams = sorted(hold_back)
    parameters |= {
        "held_teams": teams,
        # An override of exactly that time was there when the request was made.
        "held_limits": [microseconds(hold_back[team_id]) + 1 for team_id in teams],
    }
    return "least(%(cutoff)s, transform(team_id, %(held_teams)s, %(held_limits)s, %(cutoff)s))", parameters


def _rewriting(rewrite: Rewrite, live: str, team_ids: Sequence[int]) -> Command:
    teams, parameters = team_condition(team_ids)
    return update(
        {"person_id": NEW_PERSON},
        f"{teams}person_id != {NEW_PERSON}",
        {**parameters, "live": rewrite.full_name(live)},
    )


def _prewhere(rewrite: Rewrite, overrides: int) -> str:
    """Return a condition that is cheaper than the dictionary's, and selective if there are few overrides."""
    if overrides > MAX_OVERRIDES_IN_A_SET:
        return "1"
    return f"distinct_id IN (SELECT distinct_id FROM {quoted(rewrite.name('overrides'))})"  # noqa: S608 - a name made here


def _narrow(rewrite: Rewrite, command: Command, matches: Matches, change_id: str) -> Command:
    """Record the matched days and return the command of a round, without a condition if every part has a match.

    The server then checks none, and rows that no override changes get the person that they have.
    """
    days = {day for partitions in matches.values() for matched in partitions.values() for day in matched.days}
    event_days.record_open(rewrite.cluster, days, change_id, ChangeReason.SQUASH, rewrite.run_id)
    parts_with_match = {
        (shard, partition): matched.parts
        for shard, partitions in matches.items()
        for partition, matched in partitions.items()
    }
    table = rewrite.stored_as(EVENTS)
    for host, rows in rewrite.query_every_host(PARTS_STATEMENT, {"table": table}).items():
        for partition, parts in rows:
            if parts > parts_with_match.get((host.shard, partition), parts):
                return command
    return update({"person_id": NEW_PERSON}, "1", {"live": command.parameters["live"]})


def _remove(rewrite: Rewrite, dictionaries: Mapping[str, str]) -> int:
    """Remove the overrides and tombstones of this run, the latest of each distinct_id last; return their number."""
    removed = 0
    for comparison, which in (("<", "superseded"), ("<=", "applied")):
        result = rewrite.apply(PERSON_DISTINCT_ID_OVERRIDES, _removal(dictionaries, comparison))
        # Every host has the same rows.
        removed += max((total({shard: matched}).rows for shard, matched in result.matches.items()), default=0)
        rewrite.report(f"Removed the {which} overrides.")
    return removed


def _removal(dictionaries: Mapping[str, str], comparison: str) -> Command:
    """Return the deletion of the overrides that were applied: with `<` those before the latest, with `<=` all."""
    latest = "dictGetOrDefault(%({name})s, 'version', (team_id, distinct_id), toInt64({none}))"
    conditions = [f"version {comparison} {latest.format(name=name, none=NO_VERSION)}" for name in dictionaries]
    return delete(" OR ".join(conditions), dictionaries)
