"""Does the requests that are due: deletes by partition, counts what is left on every host, and keeps the evidence.

Belongs here: the order of the work, and which requests must wait. Not here: which rows a request covers
(`registry.py`), locks, run config and metadata (`job.py`).

A request is marked done only after every host has said that it has none of its rows, and after what is computed from
them was computed again. Whatever happens before that, it stays pending, and the next run does all of it again.
"""

import datetime as dt
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from dags.common import deletion_requests
from dags.common.clickhouse.ddl import Placement
from dags.common.clickhouse.mutations import Command, delete
from dags.common.clickhouse.query import Insert, quoted
from dags.common.clickhouse.rewrites import (
    Found,
    Job,
    among_teams,
    ask_every_host,
    drop_leftovers,
    drop_own,
    find,
    make_dictionary,
    make_table,
    microseconds,
    rewrite,
    stored_as,
)
from dags.common.clickhouse.tables import PERSON_DISTINCT_ID_OVERRIDES
from dags.common.deletion_requests import DeletionRequest, RequestKind
from dags.common.postgres import Postgres
from dags.deletes.registry import (
    ALWAYS,
    EVENTS_TARGET,
    KEYS,
    OVERRIDES_TARGET,
    TARGETS,
    UNTIL,
    Target,
)

MOST_REQUESTS = 100_000
# In one statement; days between two ranges are computed again without need, never left out.
MOST_DAY_RANGES = 8

# A person's own override, live or not: while it is there, whose some events are is not yet in the events.
OVERRIDES_OF_PERSONS_STATEMENT = """
SELECT team_id, person_id, min(toUnixTimestamp64Micro(_timestamp)) FROM {overrides} FINAL
WHERE {teams}{covered} GROUP BY 1, 2
"""
ANY_OVERRIDE_STATEMENT = "SELECT 1 FROM {overrides} WHERE {teams}is_deleted = 0 LIMIT 1"
# Events that still say this person, and belong to another by now.
OVERRIDES_OF_EVENTS_STATEMENT = """
SELECT asked.team_id, asked.person_id, min(toUnixTimestamp64Micro(latest._timestamp))
FROM (SELECT team_id, distinct_id, person_id, _timestamp FROM {overrides} FINAL WHERE {teams}is_deleted = 0) AS latest
INNER JOIN (
    SELECT DISTINCT team_id, distinct_id, person_id FROM {events} PREWHERE {among} WHERE {teams}{covered}
) AS asked
ON latest.team_id = asked.team_id AND latest.distinct_id = asked.distinct_id
WHERE latest.person_id != asked.person_id GROUP BY 1, 2
"""

DAY_OF_EVENT = "toDate(timestamp, 'UTC')"

ComputeAgain = Callable[[Sequence[dt.date]], Sequence[dt.date]]
# Team, and what else the kind has for a key.
RequestKey = tuple[Any, ...]


@dataclass(frozen=True)
class Lookup:
    """The requests of a run on every host: a table and a dictionary for each kind."""

    tables: Mapping[RequestKind, str]
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class Deleted:
    """What was done, or in a dry run would be. `waiting` tells why, by id of the request; the rest is by table."""

    is_dry_run: bool
    done: tuple[int, ...] = ()
    waiting: Mapping[int, str] = field(default_factory=dict)
    found: Mapping[str, Found] = field(default_factory=dict)
    rows_deleted: Mapping[str, int] = field(default_factory=dict)
    rows_by_request: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    mutations: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    days_computed_again: tuple[dt.date, ...] = ()


def delete_requested(job: Job, postgres: Postgres, compute_again: ComputeAgain, *, dry_run: bool) -> Deleted:
    """Do every pending request that is due and need not wait. The lock must be held. May be called again at any time.

    `compute_again` gets the days (UTC) that lost events, and returns those whose tables it computed again. In a dry run
    nothing is deleted, and no request is changed.
    """
    if not dry_run:
        drop_leftovers(job)
    asked = deletion_requests.due(postgres, MOST_REQUESTS)
    lookup = _lookup(job, "asked", asked)
    waiting = _waiting(job, asked, lookup)
    runnable = [one for one in asked if one.id not in waiting]
    job.report(f"{len(runnable)} requests are due, {len(waiting)} wait for a squash.")
    if not dry_run:
        deletion_requests.say_why_waiting(postgres, waiting)
    if waiting:
        lookup = _lookup(job, "runnable", runnable)
    counts = _counts(job, lookup, runnable)
    if dry_run:
        found = {
            target.table.name: find(
                job, stored_as(job.cluster, target.table), command.condition, command.parameters, among
            )
            for target, command, among in _commands(lookup, runnable)
        }
        drop_own(job)
        done = tuple(one.id for one in runnable)
        return Deleted(is_dry_run=True, done=done, waiting=waiting, found=found, rows_by_request=counts)
    found, rows, mutations = {}, {}, {}
    for target, command, among in _commands(lookup, runnable):
        if target is EVENTS_TARGET:
            narrowed = _narrowing(job, postgres, command)
            rewritten = rewrite(job, target.table, command, among=among, day=DAY_OF_EVENT, narrowed=narrowed)
        else:
            rewritten = rewrite(job, target.table, command, among=among)
        found[target.table.name] = rewritten.first_found
        rows[target.table.name] = rewritten.rows
        mutations[target.table.name] = rewritten.mutations
        job.report(f"{target.table.name}: none of the rows is left on any host; {rewritten.rows} were deleted.")
    days = _compute_again(job, postgres, compute_again)
    evidence = _evidence(job, runnable, counts, mutations, days)
    job.still_ours()
    deletion_requests.mark_done(postgres, evidence)
    job.report(f"{len(runnable)} requests are done.")
    drop_own(job)
    job.report("The tables of this run are dropped.")
    done = tuple(one.id for one in runnable)
    return Deleted(
        is_dry_run=False,
        done=done,
        waiting=waiting,
        found=found,
        rows_deleted=rows,
        rows_by_request=counts,
        mutations=mutations,
        days_computed_again=tuple(days),
    )


def _waiting(job: Job, asked: Sequence[DeletionRequest], lookup: Lookup) -> dict[int, str]:
    """Why requests for persons must wait, by id: until the events say whose they were when the request was made."""
    persons = [one for one in asked if one.kind is RequestKind.PERSON]
    if not persons:
        return {}
    teams, parameters = among_teams(sorted({one.team_id for one in persons}))
    parameters["requests_person"] = lookup.parameters["requests_person"]
    overrides = quoted(stored_as(job.cluster, PERSON_DISTINCT_ID_OVERRIDES))
    events = quoted(stored_as(job.cluster, EVENTS_TARGET.table))
    of_persons = OVERRIDES_OF_PERSONS_STATEMENT.format(
        overrides=overrides, teams=teams, covered=OVERRIDES_TARGET.condition(RequestKind.PERSON)
    )
    of_events = OVERRIDES_OF_EVENTS_STATEMENT.format(
        overrides=overrides,
        events=events,
        teams=teams,
        among=EVENTS_TARGET.among(RequestKind.PERSON, lookup.tables[RequestKind.PERSON]),
        covered=EVENTS_TARGET.condition(RequestKind.PERSON),
    )
    earliest: dict[tuple[int, UUID], int] = {}
    any_override = ANY_OVERRIDE_STATEMENT.format(overrides=overrides, teams=teams)
    statements = [of_persons]
    # After a squash there is often none, and the events need not be read for it.
    if any(ask_every_host(job, any_override, parameters).values()):
        statements.append(of_events)
    for statement in statements:
        for rows in ask_every_host(job, statement, parameters).values():
            for team_id, person_id, moment in rows:
                key = team_id, person_id
                earliest[key] = min(moment, earliest.get(key, moment))
    return {
        one.id: f"Waits for squash_person_overrides: an override of this person, written {_moment(moment)}, is pending."
        for one in persons
        if (moment := earliest.get((one.team_id, UUID(one.key)), ALWAYS)) <= microseconds(one.requested_at)
    }


def _moment(since_1970: int) -> str:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=since_1970)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _lookup(job: Job, what: str, asked: Sequence[DeletionRequest]) -> Lookup:
    """The requests on every host: what is asked for, and the latest time that is covered."""
    tables = {}
    parameters = {}
    for kind in sorted({one.kind for one in asked}):
        columns = (*KEYS[kind], UNTIL)
        table = make_table(job, f"{what}_{kind}", columns, [column.name for column in KEYS[kind]])
        latest: dict[RequestKey, int] = {}
        for one in asked:
            if one.kind is kind:
                # A named event is meant whatever time it bears.
                until = ALWAYS if kind is RequestKind.UUID else microseconds(one.requested_at)
                latest[_key(one)] = max(until, latest.get(_key(one), until))
        rows = [(*key, until) for key, until in latest.items()]
        insert = Insert(table, [column.name for column in columns], rows)
        job.cluster.map_all_hosts(insert, timeout_seconds=job.seconds_left()).result()
        tables[kind] = table
        dictionary = make_dictionary(job, table, KEYS[kind], (UNTIL,), "Deletion requests of a run.")
        parameters[f"requests_{kind}"] = job.full_name(dictionary)
    return Lookup(tables, parameters)


def _key(request: DeletionRequest) -> RequestKey:
    if request.kind is RequestKind.TEAM:
        return (request.team_id,)
    return request.team_id, request.key if request.kind is RequestKind.EVENT else UUID(request.key)


def _commands(lookup: Lookup, asked: Sequence[DeletionRequest]) -> list[tuple[Target, Command, str]]:
    """The deletion of each table that these requests reach, and what its rows are among."""
    commands = []
    for target in TARGETS:
        kinds = [kind for kind in target.columns if kind in lookup.tables]
        if kinds:
            teams, parameters = among_teams(sorted({one.team_id for one in asked if one.kind in kinds}))
            condition = f"{teams}({' OR '.join(target.condition(kind) for kind in kinds)})"
            among = " OR ".join(target.among(kind, lookup.tables[kind]) for kind in kinds)
            own = {f"requests_{kind}": lookup.parameters[f"requests_{kind}"] for kind in kinds}
            commands.append((target, delete(condition, {**parameters, **own}), among))
    return commands


def _counts(job: Job, lookup: Lookup, asked: Sequence[DeletionRequest]) -> dict[int, dict[str, int]]:
    """How many rows each request finds, by table."""
    counts: dict[int, dict[str, int]] = {one.id: {} for one in asked}
    for target in TARGETS:
        for kind in target.columns:
            of_kind = [one for one in asked if one.kind is kind]
            if of_kind:
                found = _counts_by_key(job, lookup, target, kind, of_kind)
                for one in of_kind:
                    counts[one.id][target.table.name] = found.get(_key(one), 0)
    return counts


def _counts_by_key(
    job: Job, lookup: Lookup, target: Target, kind: RequestKind, asked: Sequence[DeletionRequest]
) -> dict[RequestKey, int]:
    columns = ", ".join(target.columns[kind])
    teams, parameters = among_teams(sorted({one.team_id for one in asked}))
    statement = (
        f"SELECT {columns}, count() FROM {quoted(stored_as(job.cluster, target.table))} "  # noqa: S608 - text from code
        f"PREWHERE {target.among(kind, lookup.tables[kind])} WHERE {teams}{target.condition(kind)} GROUP BY {columns}"
    )
    by_shard: dict[int, dict[RequestKey, int]] = {}
    for host, rows in ask_every_host(job, statement, {**parameters, **lookup.parameters}).items():
        shard = by_shard.setdefault(host.shard if target.table.placement is Placement.SHARDED else 1, {})
        for *key, count in rows:
            shard[tuple(key)] = max(count, shard.get(tuple(key), 0))
    keys = {key for shard in by_shard.values() for key in shard}
    return {key: sum(shard.get(key, 0) for shard in by_shard.values()) for key in keys}


def _narrowing(job: Job, postgres: Postgres, command: Command) -> Callable[[Found], Command]:
    """Makes the deletion of a round: of the days that have something now, which are remembered before that."""

    def narrowed(found: Found) -> Command:
        touched = [one for partitions in found.values() for one in partitions.values()]
        ranges = day_ranges({day for one in touched for day in one.days})
        deletion_requests.add_days(postgres, _days_in(ranges))
        job.report(f"Remembered {len(_days_in(ranges))} days that are about to lose events.")
        # An event that comes in now on another day is left for the next round, so that its day is remembered first.
        conditions = [f"toDate(timestamp) BETWEEN %(first_{n})s AND %(last_{n})s" for n in range(len(ranges))]
        parameters: dict[str, Any] = {**command.parameters}
        for n, (first, last) in enumerate(ranges):
            parameters |= {f"first_{n}": first, f"last_{n}": last}
        return delete(f"({' OR '.join(conditions) or 'false'}) AND ({command.condition})", parameters)

    return narrowed


def day_ranges(days: Collection[dt.date]) -> list[tuple[dt.date, dt.date]]:
    """First and last days of at most MOST_DAY_RANGES ranges that hold all these days; small gaps are closed first."""
    ordered = sorted(set(days))
    if not ordered:
        return []
    gaps = [(later - earlier).days for earlier, later in itertools.pairwise(ordered)]
    widest = sorted(range(len(gaps)), key=lambda n: gaps[n], reverse=True)[: MOST_DAY_RANGES - 1]
    cuts = sorted(n for n in widest if gaps[n] > 1)
    firsts = [ordered[0], *(ordered[n + 1] for n in cuts)]
    lasts = [*(ordered[n] for n in cuts), ordered[-1]]
    return list(zip(firsts, lasts, strict=True))


def _days_in(ranges: Sequence[tuple[dt.date, dt.date]]) -> list[dt.date]:
    return [first + dt.timedelta(days=n) for first, last in ranges for n in range((last - first).days + 1)]


def _compute_again(job: Job, postgres: Postgres, compute_again: ComputeAgain) -> list[dt.date]:
    """The days that lost events in this run, and in those that died before they came to this."""
    remembered = deletion_requests.remembered_days(postgres)
    if not remembered:
        return []
    days = list(compute_again(remembered))
    job.report(f"Computed {len(days)} days again of the tables that are made from events.")
    deletion_requests.forget_days(postgres, remembered)
    return days


def _evidence(
    job: Job,
    asked: Sequence[DeletionRequest],
    counts: Mapping[int, Mapping[str, int]],
    mutations: Mapping[str, Mapping[str, Sequence[str]]],
    days: Sequence[dt.date],
) -> dict[int, dict[str, Any]]:
    hosts = [str(host) for host in job.cluster.hosts]
    # Not each day: thousands of requests, of many days each, would fill Postgres with dates.
    bounds = {"first": min(days).isoformat(), "last": max(days).isoformat()} if days else {}
    computed = {"count": len(days), **bounds}
    return {
        one.id: {
            "run_id": job.run_id,
            "rows_before": dict(counts[one.id]),
            # Not assumed: each table was counted on every one of these hosts, and none had a row left.
            "rows_after": dict.fromkeys(counts[one.id], 0),
            "counted_on_hosts": hosts,
            "mutations": {table: dict(ids) for table, ids in mutations.items() if table in counts[one.id]},
            "days_computed_again": computed,
        }
        for one in asked
    }
