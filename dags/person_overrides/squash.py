"""Writes the persons of the overrides into the events, and removes the overrides that were applied.

Belongs here: the order of the work, and what is an override that may be applied. Not here: locks, run config and
metadata (`job.py`), and the mechanics of rewriting (`dags/common/clickhouse/rewrites.py`).

An override is applied when it is the latest of its team and distinct_id and older than the cutoff. A tombstone says
that none holds: nothing is rewritten for it, and when it is older than the cutoff it goes, with what is older than it.
Whatever happens in the middle, an override goes only after no event is left that it would change, on any host; and of
several rows of one distinct_id the latest goes last, so that an older one never comes back to life.
"""

import dataclasses
import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dags.common.clickhouse.ddl import Column
from dags.common.clickhouse.mutations import Command, delete, update
from dags.common.clickhouse.query import Query, quoted
from dags.common.clickhouse.rewrites import (
    Found,
    Job,
    among_teams,
    ask_every_host,
    copy_to_other_hosts,
    drop_leftovers,
    drop_own,
    find,
    make_dictionary,
    make_table,
    microseconds,
    rewrite,
    stored_as,
    total,
)
from dags.common.clickhouse.tables import EVENTS, PERSON_DISTINCT_ID_OVERRIDES

TEAM_ID = Column("team_id", "Int64", "Team.")
DISTINCT_ID = Column("distinct_id", "String", "The visitor as the source names it.")
PERSON_ID = Column("person_id", "UUID", "The person that it belongs to.")
VERSION = Column("version", "Int64", "Of the override.")

KEY = (TEAM_ID, DISTINCT_ID)
LIVE_VALUES = (PERSON_ID, VERSION)
TOMBSTONE_VALUES = (VERSION,)

# With more, looking them up in a set first costs more than it spares.
MOST_OVERRIDES_IN_A_SET = 100_000

# Below every version: what has none in a dictionary is not removed.
NO_VERSION = -(2**63)

PARTS_STATEMENT = """
SELECT partition_id, count() FROM system.parts
WHERE database = currentDatabase() AND table = %(table)s AND active AND rows > 0 GROUP BY 1
"""
# FINAL merges before the condition is asked, so a row that was superseded is never taken for the latest.
LATEST_STATEMENT = """
INSERT INTO {target} ({columns}) SELECT {columns} FROM person_distinct_id_overrides FINAL
WHERE is_deleted = %(is_deleted)s AND toUnixTimestamp64Micro(_timestamp) < {limit}
"""
# What the override says where there is one, and else what the event says: one lookup tells whether they differ.
NEW_PERSON = "dictGetOrDefault(%(live)s, 'person_id', (team_id, distinct_id), person_id)"


@dataclass(frozen=True)
class Squashed:
    """What was done, or in a dry run would be. `found` is what the overrides change in the events."""

    is_dry_run: bool
    overrides: int
    tombstones: int
    held_teams: tuple[int, ...]
    found: Found = field(default_factory=dict)
    rows_rewritten: int = 0
    override_rows_removed: int = 0
    rounds: int = 0
    mutations: Mapping[str, Sequence[str]] = field(default_factory=dict)


def squash(
    job: Job,
    *,
    cutoff: dt.datetime,
    hold_back: Mapping[int, dt.datetime],
    dry_run: bool,
) -> Squashed:
    """Apply every override that is older than the cutoff, and remove it. The lock must be held.

    In a team of `hold_back`, those written after the given time are left for a later run: somebody has asked then to
    delete a person, and whose events are whose at that time decides what goes. May be called again at any time.
    """
    if not dry_run:
        drop_leftovers(job)
    overrides, tombstones, team_ids = _snapshot(job, cutoff, hold_back)
    live = make_dictionary(job, job.name("overrides"), KEY, LIVE_VALUES, "Overrides that a squash applies.")
    job.report("The overrides are on all hosts.")
    command = _rewriting(job, live, team_ids)
    among = _among(job, overrides)
    squashed = Squashed(
        is_dry_run=dry_run, overrides=overrides, tombstones=tombstones, held_teams=tuple(sorted(hold_back))
    )
    if dry_run:
        events_table = stored_as(job.cluster, EVENTS)
        found = find(job, events_table, command.condition, command.parameters, among) if overrides else {}
        squashed = dataclasses.replace(squashed, found=found)
    else:
        if overrides:
            events = rewrite(
                job, EVENTS, command, among=among, narrowed=lambda found: _in_whole_parts(job, command, found)
            )
            squashed = dataclasses.replace(
                squashed,
                found=events.first_found,
                rows_rewritten=events.rows,
                rounds=events.rounds,
                mutations=events.mutations,
            )
        job.report(f"No event is left that an override would change; {squashed.rows_rewritten} were rewritten.")
        dictionaries = {"live": job.full_name(live)} if overrides else {}
        if tombstones:
            comment = "Tombstones that a squash removes."
            dead = make_dictionary(job, job.name("tombstones"), KEY, TOMBSTONE_VALUES, comment)
            dictionaries["dead"] = job.full_name(dead)
        if dictionaries:
            squashed = dataclasses.replace(squashed, override_rows_removed=_remove(job, dictionaries))
    drop_own(job)
    job.report("The tables of this run are dropped.")
    return squashed


def _snapshot(job: Job, cutoff: dt.datetime, hold_back: Mapping[int, dt.datetime]) -> tuple[int, int, tuple[int, ...]]:
    """Make the tables of the run on every host; return the numbers of overrides and tombstones, and the teams."""
    live = make_table(job, "overrides", (*KEY, *LIVE_VALUES), [column.name for column in KEY])
    dead = make_table(job, "tombstones", (*KEY, *TOMBSTONE_VALUES), [column.name for column in KEY])
    limit, parameters = _limit(cutoff, hold_back)
    # From one host alone: hosts may differ in what has reached them, and all must apply the same.
    source = job.cluster.hosts[0]
    for target, is_deleted, values in ((live, 0, LIVE_VALUES), (dead, 1, TOMBSTONE_VALUES)):
        columns = ", ".join(column.name for column in (*KEY, *values))
        statement = LATEST_STATEMENT.format(target=quoted(target), columns=columns, limit=limit)
        fill = Query(statement, {**parameters, "is_deleted": is_deleted})
        job.cluster.only(source).any_host(fill, timeout_seconds=job.seconds_left()).result()
    key = [column.name for column in KEY]
    overrides = copy_to_other_hosts(job, source, live, [column.name for column in (*KEY, *LIVE_VALUES)], key)
    tombstones = copy_to_other_hosts(job, source, dead, [column.name for column in (*KEY, *TOMBSTONE_VALUES)], key)
    teams = Query(f"SELECT DISTINCT team_id FROM {quoted(live)}")  # noqa: S608 - a name made here
    team_ids = tuple(team_id for (team_id,) in job.cluster.only(source).any_host(teams).result())
    job.report(f"Snapshot: {overrides} overrides of {len(team_ids)} teams and {tombstones} tombstones, from {source}.")
    return overrides, tombstones, team_ids


def _limit(cutoff: dt.datetime, hold_back: Mapping[int, dt.datetime]) -> tuple[str, dict[str, Any]]:
    """The time in microseconds that an override must be older than, as an expression, with its parameters."""
    parameters: dict[str, Any] = {"cutoff": microseconds(cutoff)}
    if not hold_back:
        return "%(cutoff)s", parameters
    teams = sorted(hold_back)
    parameters |= {
        "held_teams": teams,
        # An override of that very moment was there when the request was made.
        "held_limits": [microseconds(hold_back[team_id]) + 1 for team_id in teams],
    }
    return "least(%(cutoff)s, transform(team_id, %(held_teams)s, %(held_limits)s, %(cutoff)s))", parameters


def _rewriting(job: Job, live: str, team_ids: Sequence[int]) -> Command:
    teams, parameters = among_teams(team_ids)
    return update(
        {"person_id": NEW_PERSON},
        f"{teams}person_id != {NEW_PERSON}",
        {**parameters, "live": job.full_name(live)},
    )


def _among(job: Job, overrides: int) -> str:
    """A cheaper question than the dictionary's, which few rows pass when there are few overrides."""
    if overrides > MOST_OVERRIDES_IN_A_SET:
        return "1"
    return f"distinct_id IN (SELECT distinct_id FROM {quoted(job.name('overrides'))})"  # noqa: S608 - a name made here


def _in_whole_parts(job: Job, command: Command, found: Found) -> Command:
    """The command of a round: where every part is touched, the engine need not look first which ones are.

    The rows that no override changes get the person that they have.
    """
    partitions = {
        (shard, partition): touched.parts for shard, found_ in found.items() for partition, touched in found_.items()
    }
    for host, rows in ask_every_host(job, PARTS_STATEMENT, {"table": stored_as(job.cluster, EVENTS)}).items():
        for partition, parts in rows:
            if parts > partitions.get((host.shard, partition), parts):
                return command
    return update({"person_id": NEW_PERSON}, "1", {"live": command.parameters["live"]})


def _remove(job: Job, dictionaries: Mapping[str, str]) -> int:
    """Remove the rows of the overrides and tombstones of this run, the latest of each distinct_id last; count them."""
    removed = 0
    for comparison, said in (("<", "those that were superseded"), ("<=", "those that were applied")):
        rewritten = rewrite(job, PERSON_DISTINCT_ID_OVERRIDES, _removal(dictionaries, comparison))
        # Every host has the same rows.
        removed += max((total({shard: found}).rows for shard, found in rewritten.first_found.items()), default=0)
        job.report(f"Removed of the overrides {said}.")
    return removed


def _removal(dictionaries: Mapping[str, str], comparison: str) -> Command:
    """Deletes override rows of what was applied: those older than the latest one, or with that one."""
    latest = "dictGetOrDefault(%({name})s, 'version', (team_id, distinct_id), toInt64({none}))"
    conditions = [f"version {comparison} {latest.format(name=name, none=NO_VERSION)}" for name in dictionaries]
    return delete(" OR ".join(conditions), dictionaries)
