"""Processing deletion requests: delete the rows, count on every host what is left, and keep the evidence.

Which rows a request covers is in `registry.py`.

A request is marked done only after every host has confirmed that none of its rows is left, and after the tables that
are computed from them were recomputed. Until then it stays pending, and the next run starts over.
"""

import datetime as dt
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from dags.common import deletion_requests, event_days
from dags.common.clickhouse.ddl import Placement
from dags.common.clickhouse.mutations import Command, delete
from dags.common.clickhouse.query import Insert, quoted
from dags.common.clickhouse.tables import PERSON_DISTINCT_ID_OVERRIDES
from dags.common.deletion_requests import COMPLETION_LOCK, DeletionRequest, RequestKind
from dags.common.event_days import ChangeReason
from dags.common.locks import exclusive
from dags.common.postgres import Postgres
from dags.common.rewrites.conditions import microseconds, team_condition
from dags.common.rewrites.matches import Matches, total
from dags.common.rewrites.rewrite import Rewrite, RowsRemainError
from dags.deletes.registry import (
    ALWAYS,
    EVENTS_TARGET,
    KEYS,
    OVERRIDES_TARGET,
    TARGETS,
    UNTIL,
    Target,
)

# Of one run; the rest waits for the next run.
MAX_REQUESTS = 100_000
# In one statement. With few ranges some days are recomputed without need, but none is missed.
MAX_DAY_RANGES = 8

# Overrides to this person, live or not: until the squash applies them, the events name another person.
OVERRIDES_OF_PERSONS_STATEMENT = """
SELECT team_id, person_id, min(toUnixTimestamp64Micro(_timestamp)) FROM {overrides} FINAL
WHERE {teams}{covered} GROUP BY 1, 2
"""
ANY_OVERRIDE_STATEMENT = "SELECT 1 FROM {overrides} WHERE {teams}is_deleted = 0 LIMIT 1"
# Events that still name this person, and belong to another person by an override.
OVERRIDES_OF_EVENTS_STATEMENT = """
SELECT requested.team_id, requested.person_id, min(toUnixTimestamp64Micro(latest._timestamp))
FROM (SELECT team_id, distinct_id, person_id, _timestamp FROM {overrides} FINAL WHERE {teams}is_deleted = 0) AS latest
INNER JOIN (
    SELECT DISTINCT team_id, distinct_id, person_id FROM {events} PREWHERE {prewhere} WHERE {teams}{covered}
) AS requested
ON latest.team_id = requested.team_id AND latest.distinct_id = requested.distinct_id
WHERE latest.person_id != requested.person_id GROUP BY 1, 2
"""

DAY_OF_EVENT = "toDate(timestamp, 'UTC')"

Recompute = Callable[[Sequence[dt.date]], Sequence[dt.date]]
# The team, then the rest of the key of the kind.
RequestKey = tuple[Any, ...]


@dataclass(frozen=True)
class RequestLookup:
    """The requests of a run on every host: a table and a dictionary for each kind."""

    tables: Mapping[RequestKind, str]
    # Names of the dictionaries, as parameters of the conditions.
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class DeletionResult:
    """What a run deleted, or in a dry run would delete.

    `done` has ids of requests, `waiting` the reasons by id. `matches`, `rows_deleted` and `mutations` are by table.
    """

    is_dry_run: bool
    done: tuple[int, ...] = ()
    waiting: Mapping[int, str] = field(default_factory=dict)
    matches: Mapping[str, Matches] = field(default_factory=dict)
    rows_deleted: Mapping[str, int] = field(default_factory=dict)
    rows_by_request: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    mutations: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    days_recomputed: tuple[dt.date, ...] = ()


def process_requests(rewrite: Rewrite, postgres: Postgres, recompute: Recompute, *, dry_run: bool) -> DeletionResult:
    """Process every due request that need not wait for a squash. Safe to repeat at any time.

    `recompute` gets the days (UTC) that lost events, and returns the days that it recomputed. A dry run deletes nothing
    and changes no request.
    """
    if not dry_run:
        rewrite.drop_leftovers()
        event_days.close_leftovers(rewrite.cluster, ChangeReason.DELETE, rewrite.run_id)
    due = deletion_requests.due_requests(postgres, MAX_REQUESTS)
    lookup = _create_lookup(rewrite, "due", due)
    waiting = _find_waiting(rewrite, due, lookup)
    runnable = [one for one in due if one.id not in waiting]
    rewrite.report(f"{len(runnable)} requests can be processed, {len(waiting)} wait for a squash.")
    if not dry_run:
        deletion_requests.set_waiting_notes(postgres, waiting)
    if waiting:
        lookup = _create_lookup(rewrite, "runnable", runnable)
    counts = _count_rows(rewrite, lookup, runnable)
    done = tuple(one.id for one in runnable)
    if dry_run:
        matches = {
            target.table.name: rewrite.find(
                rewrite.stored_as(target.table), command.condition, command.parameters, prewhere=prewhere
            )
            for target, command, prewhere in _commands(lookup, runnable)
        }
        rewrite.drop_own()
        return DeletionResult(is_dry_run=True, done=done, waiting=waiting, matches=matches, rows_by_request=counts)
    results = {}
    for target, command, prewhere in _commands(lookup, runnable):
        is_events = target is EVENTS_TARGET
        results[target.table.name] = rewrite.apply(
            target.table,
            command,
            prewhere=prewhere,
            day=DAY_OF_EVENT if is_events else None,
            narrow=_narrow_to_days(rewrite, postgres, command) if is_events else None,
        )
        rows = results[target.table.name].rows
        rewrite.report(f"{target.table.name}: no row is left on any host; {rows} were deleted.")
    mutations = {table: result.mutations for table, result in results.items()}
    changed = event_days.days_of_change(rewrite.cluster, _change_id(rewrite))
    event_days.record_closed(rewrite.cluster, changed, _change_id(rewrite), ChangeReason.DELETE, rewrite.run_id)
    days = _recompute_stale_days(rewrite, postgres, recompute)
    evidence = _evidence(rewrite, runnable, counts, mutations, days)
    # From here on, loads skip what these requests cover. A load that began earlier may have inserted such rows.
    with exclusive(postgres, COMPLETION_LOCK, rewrite.seconds_left()):
        _assert_no_row_is_left(rewrite, lookup, runnable)
        rewrite.assert_lock_held()
        deletion_requests.mark_done(postgres, evidence)
    rewrite.report(f"{len(runnable)} requests are done.")
    rewrite.drop_own()
    rewrite.report("The tables of this run are dropped.")
    return DeletionResult(
        is_dry_run=False,
        done=done,
        waiting=waiting,
        matches={table: result.matches for table, result in results.items()},
        rows_deleted={table: result.rows for table, result in results.items()},
        rows_by_request=counts,
        mutations=mutations,
        days_recomputed=tuple(days),
    )


def _assert_no_row_is_left(rewrite: Rewrite, lookup: RequestLookup, requests: Sequence[DeletionRequest]) -> None:
    for target, command, prewhere in _commands(lookup, requests):
        if target is EVENTS_TARGET:
            table = rewrite.stored_as(target.table)
            rows = total(rewrite.find(table, command.condition, command.parameters, prewhere=prewhere)).rows
            if rows:
                raise RowsRemainError(
                    f"{rows} events that the requests cover were loaded since they were deleted. The requests stay "
                    "pending: run deletes_job again."
                )


def _find_waiting(rewrite: Rewrite, due: Sequence[DeletionRequest], lookup: RequestLookup) -> dict[int, str]:
    """Return the requests for persons that must wait, with the reason, by id.

    They wait until the squash has written into the events whose events they were at the time of the request.
    """
    persons = [one for one in due if one.kind is RequestKind.PERSON]
    if not persons:
        return {}
    teams, parameters = team_condition(sorted({one.team_id for one in persons}))
    parameters["requests_person"] = lookup.parameters["requests_person"]
    overrides = quoted(rewrite.stored_as(PERSON_DISTINCT_ID_OVERRIDES))
    events = quoted(rewrite.stored_as(EVENTS_TARGET.table))
    of_persons = OVERRIDES_OF_PERSONS_STATEMENT.format(
        overrides=overrides, teams=teams, covered=OVERRIDES_TARGET.condition(RequestKind.PERSON)
    )
    of_events = OVERRIDES_OF_EVENTS_STATEMENT.format(
        overrides=overrides,
        events=events,
        teams=teams,
        prewhere=EVENTS_TARGET.prewhere(RequestKind.PERSON, lookup.tables[RequestKind.PERSON]),
        covered=EVENTS_TARGET.condition(RequestKind.PERSON),
    )
    earliest: dict[tuple[int, UUID], int] = {}
    any_override = ANY_OVERRIDE_STATEMENT.format(overrides=overrides, teams=teams)
    statements = [of_persons]
    # After a squash there is often no override, so the events need not be read.
    if any(rewrite.query_every_host(any_override, parameters).values()):
        statements.append(of_events)
    for statement in statements:
        for rows in rewrite.query_every_host(statement, parameters).values():
            for team_id, person_id, written_at in rows:
                key = team_id, person_id
                earliest[key] = min(written_at, earliest.get(key, written_at))
    return {
        one.id: f"Waits for squash_person_overrides to apply an override of this person, written {_utc(written_at)}."
        for one in persons
        if (written_at := earliest.get((one.team_id, UUID(one.key)), ALWAYS)) <= microseconds(one.requested_at)
    }


def _utc(microseconds_since_1970: int) -> str:
    time = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=microseconds_since_1970)
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _create_lookup(rewrite: Rewrite, what: str, requests: Sequence[DeletionRequest]) -> RequestLookup:
    """Create the lookup of these requests on every host: each key, and the latest time that it covers."""
    tables = {}
    parameters = {}
    for kind in sorted({one.kind for one in requests}):
        columns = (*KEYS[kind], UNTIL)
        table = rewrite.create_table(f"{what}_{kind}", columns, [column.name for column in KEYS[kind]])
        latest: dict[RequestKey, int] = {}
        for one in requests:
            if one.kind is kind:
                # An event that is named by its uuid is covered whatever its time.
                until = ALWAYS if kind is RequestKind.UUID else microseconds(one.requested_at)
                latest[_key(one)] = max(until, latest.get(_key(one), until))
        rows = [(*key, until) for key, until in latest.items()]
        insert = Insert(table, [column.name for column in columns], rows)
        rewrite.cluster.map_all_hosts(insert, timeout_seconds=rewrite.seconds_left()).result()
        tables[kind] = table
        dictionary = rewrite.create_dictionary(table, KEYS[kind], (UNTIL,), "Deletion requests of a run.")
        parameters[f"requests_{kind}"] = rewrite.full_name(dictionary)
    return RequestLookup(tables, parameters)


def _key(request: DeletionRequest) -> RequestKey:
    if request.kind is RequestKind.TEAM:
        return (request.team_id,)
    return request.team_id, request.key if request.kind is RequestKind.EVENT else UUID(request.key)


def _commands(lookup: RequestLookup, requests: Sequence[DeletionRequest]) -> list[tuple[Target, Command, str]]:
    """Return the deletion from each table that these requests cover, with its PREWHERE condition."""
    commands = []
    for target in TARGETS:
        kinds = [kind for kind in target.columns if kind in lookup.tables]
        if kinds:
            teams, parameters = team_condition(sorted({one.team_id for one in requests if one.kind in kinds}))
            condition = f"{teams}({' OR '.join(target.condition(kind) for kind in kinds)})"
            prewhere = " OR ".join(target.prewhere(kind, lookup.tables[kind]) for kind in kinds)
            own = {f"requests_{kind}": lookup.parameters[f"requests_{kind}"] for kind in kinds}
            commands.append((target, delete(condition, {**parameters, **own}), prewhere))
    return commands


def _count_rows(
    rewrite: Rewrite, lookup: RequestLookup, requests: Sequence[DeletionRequest]
) -> dict[int, dict[str, int]]:
    """Count the rows that each request covers, by table."""
    counts: dict[int, dict[str, int]] = {one.id: {} for one in requests}
    for target in TARGETS:
        for kind in target.columns:
            of_kind = [one for one in requests if one.kind is kind]
            if of_kind:
                found = _count_rows_by_key(rewrite, lookup, target, kind, of_kind)
                for one in of_kind:
                    counts[one.id][target.table.name] = found.get(_key(one), 0)
    return counts


def _count_rows_by_key(
    rewrite: Rewrite, lookup: RequestLookup, target: Target, kind: RequestKind, requests: Sequence[DeletionRequest]
) -> dict[RequestKey, int]:
    columns = ", ".join(target.columns[kind])
    teams, parameters = team_condition(sorted({one.team_id for one in requests}))
    statement = (
        f"SELECT {columns}, count() FROM {quoted(rewrite.stored_as(target.table))} "  # noqa: S608 - text from code
        f"PREWHERE {target.prewhere(kind, lookup.tables[kind])} WHERE {teams}{target.condition(kind)} "
        f"GROUP BY {columns}"
    )
    by_shard: dict[int, dict[RequestKey, int]] = {}
    for host, rows in rewrite.query_every_host(statement, {**parameters, **lookup.parameters}).items():
        shard = by_shard.setdefault(host.shard if target.table.placement is Placement.SHARDED else 1, {})
        for *key, count in rows:
            shard[tuple(key)] = max(count, shard.get(tuple(key), 0))
    keys = {key for shard in by_shard.values() for key in shard}
    return {key: sum(shard.get(key, 0) for shard in by_shard.values()) for key in keys}


def _narrow_to_days(rewrite: Rewrite, postgres: Postgres, command: Command) -> Callable[[Matches], Command]:
    """Return the function that makes the command of a round: it records the matched days and deletes from these."""

    def narrow(matches: Matches) -> Command:
        matched = [one for partitions in matches.values() for one in partitions.values()]
        ranges = day_ranges({day for one in matched for day in one.days})
        days = _days_in(ranges)
        deletion_requests.add_stale_days(postgres, days)
        event_days.record_open(rewrite.cluster, days, _change_id(rewrite), ChangeReason.DELETE, rewrite.run_id)
        rewrite.report(f"Recorded {len(days)} days that are about to lose events.")
        # An event that arrives now on another day is left for the next round, so that its day is recorded first.
        conditions = [f"toDate(timestamp) BETWEEN %(first_{n})s AND %(last_{n})s" for n in range(len(ranges))]
        parameters: dict[str, Any] = {**command.parameters}
        for n, (first, last) in enumerate(ranges):
            parameters |= {f"first_{n}": first, f"last_{n}": last}
        return delete(f"({' OR '.join(conditions) or 'false'}) AND ({command.condition})", parameters)

    return narrow


def _change_id(rewrite: Rewrite) -> str:
    return f"delete {rewrite.run_id} {rewrite.attempt}"


def day_ranges(days: Collection[dt.date]) -> list[tuple[dt.date, dt.date]]:
    """Return first and last days of at most MAX_DAY_RANGES ranges that contain these days; small gaps are closed."""
    ordered = sorted(set(days))
    if not ordered:
        return []
    gaps = [(later - earlier).days for earlier, later in itertools.pairwise(ordered)]
    widest = sorted(range(len(gaps)), key=lambda n: gaps[n], reverse=True)[: MAX_DAY_RANGES - 1]
    cuts = sorted(n for n in widest if gaps[n] > 1)
    firsts = [ordered[0], *(ordered[n + 1] for n in cuts)]
    lasts = [*(ordered[n] for n in cuts), ordered[-1]]
    return list(zip(firsts, lasts, strict=True))


def _days_in(ranges: Sequence[tuple[dt.date, dt.date]]) -> list[dt.date]:
    return [first + dt.timedelta(days=n) for first, last in ranges for n in range((last - first).days + 1)]


def _recompute_stale_days(rewrite: Rewrite, postgres: Postgres, recompute: Recompute) -> list[dt.date]:
    """Recompute the days that lost events in this run, and in runs that died before this step."""
    stale = deletion_requests.stale_days(postgres)
    if not stale:
        return []
    days = list(recompute(stale))
    rewrite.report(f"Recomputed {len(days)} days of the web tables.")
    deletion_requests.remove_stale_days(postgres, stale)
    return days


def _evidence(
    rewrite: Rewrite,
    requests: Sequence[DeletionRequest],
    counts: Mapping[int, Mapping[str, int]],
    mutations: Mapping[str, Mapping[str, Sequence[str]]],
    days: Sequence[dt.date],
) -> dict[int, dict[str, Any]]:
    hosts = [str(host) for host in rewrite.cluster.hosts]
    # Not every day: thousands of requests, of many days each, would fill Postgres with dates.
    bounds = {"first": min(days).isoformat(), "last": max(days).isoformat()} if days else {}
    computed = {"count": len(days), **bounds}
    return {
        one.id: {
            "run_id": rewrite.run_id,
            "rows_before": dict(counts[one.id]),
            # Not assumed: each table was counted on every one of these hosts.
            "rows_after": dict.fromkeys(counts[one.id], 0),
            "counted_on_hosts": hosts,
            "mutations": {table: dict(ids) for table, ids in mutations.items() if table in counts[one.id]},
            "days_computed_again": computed,
        }
        for one in requests
    }
