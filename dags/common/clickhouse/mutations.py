"""Mutations as values: commands that rewrite parts of a table, enqueued once and identified by their ids.

Waiting for a mutation is in `mutation_progress.py`.

A mutation may be enqueued twice when a connection breaks at the wrong moment. So a command must be idempotent and have
the same effect on every replica: set what a dictionary says that was compared on all hosts, or delete by a condition.
"""

import datetime as dt
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import literal
from dags.common.clickhouse.errors import ClusterError
from dags.common.clickhouse.hosts import Host
from dags.common.clickhouse.mutation_progress import (
    STORAGE_STATEMENT,
    Enqueued,
    EnqueuedMutation,
    Known,
    host_names,
    known_mutations,
    number_of,
)
from dags.common.clickhouse.query import Query, quoted

if TYPE_CHECKING:
    from clickhouse_driver import Client

logger = logging.getLogger(__name__)
PARTITION_ID = re.compile(r"[A-Za-z0-9_-]+")
# A replica learns of a mutation from Keeper, so it is in the list of the server a moment after the ALTER.
POLL_SECONDS = 0.05
ALTER_SETTINGS = {
    # `wait` waits, with a deadline and on every replica.
    "mutations_sync": 0,
    "alter_sync": 0,
    # Replicated tables refuse dictGet without it. The dictionaries are compared on all hosts first.
    "allow_nondeterministic_mutations": 1,
}
# Both sides go through the formatter, because system.mutations prints other spaces and parentheses than were sent.
FORMATTED_STATEMENT = "SELECT arrayMap(one -> formatQuerySingleLine(concat('ALTER TABLE t ', one)), %(commands)s)"
# A compact part is rewritten as a whole; of a wide part, only the assigned columns are.
REWRITTEN_BYTES_STATEMENT = """
SELECT disk_name, sum(part_bytes) FROM (
    SELECT
        disk_name, name,
        sumIf(column_bytes_on_disk, column IN %(columns)s) AS assigned_bytes,
        if(any(part_type) = 'Compact' OR %(is_whole)s, any(bytes_on_disk), assigned_bytes) AS part_bytes
    FROM system.parts_columns
    WHERE active AND database = currentDatabase() AND table = %(table)s
        AND (%(is_whole_table)s OR partition_id IN %(partitions)s)
    GROUP BY disk_name, name
) GROUP BY disk_name
"""
FREE_BYTES_STATEMENT = "SELECT sum(unreserved_space) FROM system.disks WHERE name IN %(disks)s"
CLOCK_STATEMENT = "SELECT toUnixTimestamp64Micro(now64(6, 'UTC'))"


class ClockSkewError(Exception):
    """The servers' clocks differ by more than there is time to wait."""


class CapacityError(Exception):
    """A host has too many unfinished mutations, or too little free disk space. Nothing was enqueued on any host."""


@dataclass(frozen=True)
class Command:
    """One command of an ALTER TABLE, without IN PARTITION, as `update` and `delete` make it.

    `columns` are the columns it writes; none means whole rows. `parameters` fill the `%(name)s` of its texts.
    """

    action: str
    condition: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()


def update(assignments: Mapping[str, str], where: str, parameters: Mapping[str, Any] | None = None) -> Command:
    """Return a command that sets columns to expressions: `update({"person_id": "dictGet(…)"}, "dictHas(…)")`.

    Name dictionaries with their database: the server runs the command later, outside of any session.
    """
    if not assignments:
        raise ValueError("An update sets at least one column.")
    action = "UPDATE " + ", ".join(f"{quoted(column)} = {expression}" for column, expression in assignments.items())
    return Command(action, where, dict(parameters or {}), tuple(assignments))


def delete(where: str, parameters: Mapping[str, Any] | None = None) -> Command:
    """Return a command that deletes rows by rewriting their parts without them.

    The server removes the files of the replaced parts some minutes later: `old_parts_lifetime`.
    """
    return Command("DELETE", where, dict(parameters or {}))


@dataclass(frozen=True)
class Mutation:
    """Commands for one table, run by one ALTER.

    `partitions` are ids as in system.parts (partition_id); every command runs in each of them, and in no other. None
    means the whole table. An empty sequence is refused: such a mutation would do nothing.
    """

    table: str
    commands: Sequence[Command]
    partitions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        quoted(self.table)
        if not self.commands:
            raise ValueError(f"A mutation of {self.table} needs at least one command.")
        if self.partitions is not None and not self.partitions:
            raise ValueError(f"A mutation of no partition of {self.table} does nothing: leave it out. None means all.")
        for partition in self.partitions or ():
            if not PARTITION_ID.fullmatch(partition):
                raise ValueError(f"'{partition}' is not a partition_id as in system.parts.")

    def texts(self, client: "Client") -> list[str]:
        """Return each command with its partition and its parameters filled in, in the order in which they run."""
        texts = []
        for partition in self.partitions or (None,):
            place = "" if partition is None else f" IN PARTITION ID {literal(partition)}"
            for command in self.commands:
                action, condition = (_filled(client, text, command) for text in (command.action, command.condition))
                texts.append(f"{action}{place} WHERE ({condition})")
        return texts


@dataclass(frozen=True)
class Capacity:
    """What a host must have free before a mutation is enqueued there.

    The disks of the table must have `free_space_factor` times the bytes free that the mutation may rewrite.
    """

    max_unfinished_mutations: int = 20
    free_space_factor: float = 1.1


def floor_time(cluster: ClickhouseCluster, *, timeout_seconds: float = 60) -> dt.datetime:
    """Return a time that all servers' clocks have reached: the `not_before` of what this run enqueues from now on.

    It is a whole second, as times in system.mutations are, so the call takes up to a second. Raises ClockSkewError when
    one server's clock is far behind another's.
    """
    deadline = time.monotonic() + timeout_seconds
    clocks = _clocks(cluster)
    floor = math.ceil(max(clocks.values()))
    while min(clocks.values()) < floor:
        behind = min(clocks, key=clocks.__getitem__)
        left = deadline - time.monotonic()
        if floor - clocks[behind] > left:
            raise ClockSkewError(
                f"The clock of ClickHouse host {behind} is {floor - clocks[behind]:.1f} seconds behind another host's, "
                f"and {max(left, 0):.1f} seconds are left to wait. Synchronize the clocks (NTP)."
            )
        time.sleep(floor - clocks[behind])
        clocks = _clocks(cluster)
    return dt.datetime.fromtimestamp(floor, dt.UTC)


def enqueue(
    cluster: ClickhouseCluster,
    mutation_by_shard: Mapping[int, Mutation],
    *,
    not_before: dt.datetime,
    capacity: Capacity = Capacity(),
    timeout_seconds: float = 120,
) -> Enqueued:
    """Enqueue on each shard what is missing, and return its ids without waiting; `wait` waits.

    An identical mutation, finished or not, is adopted instead if it was created at or after `not_before` (with time
    zone, by the servers' clocks: see `floor_time`). Replicas that share the table get the mutation once; servers with
    tables of their own each get it. All hosts are checked before anything is enqueued. An empty mapping enqueues
    nothing. Raises CapacityError, ClusterError and UnknownShardError.
    """
    by_host = {host: mutation for shard, mutation in mutation_by_shard.items() for host in cluster.replicas_of(shard)}
    return _enqueue(cluster, by_host, not_before, capacity, timeout_seconds)


def enqueue_on_all_hosts(
    cluster: ClickhouseCluster,
    mutation: Mutation,
    *,
    not_before: dt.datetime,
    capacity: Capacity = Capacity(),
    timeout_seconds: float = 120,
) -> Enqueued:
    """Enqueue like `enqueue`, for a table that every host has with the same rows (Placement.EVERY_NODE)."""
    return _enqueue(cluster, dict.fromkeys(cluster.hosts, mutation), not_before, capacity, timeout_seconds)


@dataclass(frozen=True)
class _Group:
    """Hosts that share the storage of one table, hosts that answered first, and their mutation."""

    mutation: Mutation
    storage: str
    hosts: tuple[Host, ...]
    answering: tuple[Host, ...]


def _enqueue(
    cluster: ClickhouseCluster,
    mutation_by_host: Mapping[Host, Mutation],
    not_before: dt.datetime,
    capacity: Capacity,
    timeout_seconds: float,
) -> Enqueued:
    if not_before.tzinfo is None:
        raise ValueError("not_before needs a time zone: it is compared with the servers' clocks.")
    if not mutation_by_host:
        return Enqueued(())
    groups = _groups(cluster, mutation_by_host, timeout_seconds)

    def on_each(fn_of: Callable[[_Group], Callable[["Client"], Any]]) -> list[Any]:
        calls = {group.answering: fn_of(group) for group in groups}
        results = cluster.map_one_host_per_group(calls, retryable=True, timeout_seconds=timeout_seconds).result()
        return list(results.values())

    problems = on_each(lambda group: lambda client: _missing_capacity(client, group, not_before, capacity))
    lines = [
        f"- {group.answering[0]}: {problem}"
        for group, problem in zip(groups, problems, strict=True)
        if problem is not None
    ]
    if lines:
        raise CapacityError("No mutation was enqueued, because hosts lack capacity for it:\n" + "\n".join(lines))
    mutations = on_each(lambda group: lambda client: _enqueue_missing(client, group, not_before))
    for mutation in mutations:
        verb = "found, so not enqueued again" if mutation.is_adopted else "enqueued"
        logger.info("Mutation %s of %s on %s: %s", mutation.id, mutation.table, host_names(mutation.hosts), verb)
    return Enqueued(tuple(mutations))


def _groups(
    cluster: ClickhouseCluster, mutation_by_host: Mapping[Host, Mutation], timeout_seconds: float
) -> list[_Group]:
    """Group the hosts by storage. A host that does not answer is grouped with its shard, if that is replicated."""
    queries: dict[tuple[Host, ...], Query] = {
        (host,): Query(STORAGE_STATEMENT, {"table": mutation.table}) for host, mutation in mutation_by_host.items()
    }
    answers, silent = cluster.map_one_host_per_group(queries, timeout_seconds=timeout_seconds).results_and_failures()
    found: dict[str, list[Host]] = {}
    storage_of_shard: dict[int, str] = {}
    for host, rows in answers.items():
        if not rows:
            raise LookupError(
                f"ClickHouse host {host} has no table {mutation_by_host[host].table} in database {cluster.database}."
            )
        ((storage, is_replicated),) = rows
        found.setdefault(storage, []).append(host)
        if is_replicated:
            storage_of_shard[host.shard] = storage
    # Such a host may have rows that no other host has.
    unreplicated = {host: error for host, error in silent.items() if host.shard not in storage_of_shard}
    if unreplicated:
        raise ClusterError(unreplicated, len(queries))
    groups = []
    for storage, answering in found.items():
        missing = [host for host in silent if storage_of_shard[host.shard] == storage]
        mutation, *others = [mutation_by_host[host] for host in answering]
        if any(other != mutation for other in others):
            raise ValueError(f"{host_names(answering)} share the table {mutation.table}: give them the same mutation.")
        groups.append(_Group(mutation, storage, (*answering, *missing), tuple(answering)))
    return groups


def _missing_capacity(client: "Client", group: _Group, not_before: dt.datetime, capacity: Capacity) -> str | None:
    """Return why the host lacks capacity for the mutation; None if it has capacity, or the mutation already."""
    mutation = group.mutation
    known = known_mutations(client, mutation.table)
    if _matching(known, _formatted(client, mutation.texts(client)), not_before) is not None:
        return None
    unfinished = sum(not one.is_done for one in known.values())
    if unfinished >= capacity.max_unfinished_mutations:
        return (
            f"{mutation.table} has {unfinished} unfinished mutations, and may have at most "
            f"{capacity.max_unfinished_mutations}. Wait for them, or find in system.mutations why they do not finish."
        )
    parameters = {
        "table": mutation.table,
        "is_whole": any(not command.columns for command in mutation.commands),
        "columns": sorted({column for command in mutation.commands for column in command.columns} or {""}),
        "is_whole_table": mutation.partitions is None,
        "partitions": list(mutation.partitions or [""]),
    }
    by_disk = dict(client.execute(REWRITTEN_BYTES_STATEMENT, parameters))
    needed = sum(by_disk.values()) * capacity.free_space_factor
    if not needed:
        return None
    ((free,),) = client.execute(FREE_BYTES_STATEMENT, {"disks": sorted(by_disk)})
    if free >= needed:
        return None
    return (
        f"rewriting {mutation.table} may need {needed:.0f} bytes, and {free} are free on {', '.join(sorted(by_disk))}."
    )


def _enqueue_missing(client: "Client", group: _Group, not_before: dt.datetime) -> EnqueuedMutation:
    mutation = group.mutation
    texts = mutation.texts(client)
    commands = _formatted(client, texts)
    found = _matching(known_mutations(client, mutation.table), commands, not_before)
    is_adopted = found is not None
    if found is None:
        client.execute(f"ALTER TABLE {quoted(mutation.table)} {', '.join(texts)}", settings=ALTER_SETTINGS)
    # Until the deadline of the call.
    while found is None:
        found = _matching(known_mutations(client, mutation.table), commands, not_before)
        time.sleep(0 if found else POLL_SECONDS)
    return EnqueuedMutation(
        table=mutation.table,
        id=found.id,
        commands=commands,
        hosts=group.hosts,
        storage=group.storage,
        created_at=dt.datetime.fromtimestamp(found.created_at, dt.UTC),
        is_adopted=is_adopted,
    )


def _matching(known: Mapping[str, Known], commands: tuple[str, ...], not_before: dt.datetime) -> Known | None:
    """Return the latest identical mutation since `not_before`. Its recorded time is cut to whole seconds."""
    floor = not_before.timestamp()
    same = [
        one
        for one in known.values()
        if tuple(one.commands) == commands and one.created_at >= floor and not one.is_killed
    ]
    return max(same, key=lambda one: number_of(one.id), default=None)


def _filled(client: "Client", text: str, command: Command) -> str:
    """Return the text with the values in it, as the driver writes them."""
    if not command.parameters:
        return text
    filled: str = client.substitute_params(text, dict(command.parameters), client.connection.context)
    return filled


def _formatted(client: "Client", texts: Sequence[str]) -> tuple[str, ...]:
    ((formatted,),) = client.execute(FORMATTED_STATEMENT, {"commands": list(texts)})
    return tuple(formatted)


def _clocks(cluster: ClickhouseCluster) -> dict[Host, float]:
    """Return seconds since 1970 by each server's clock."""
    answers = cluster.map_all_hosts(Query(CLOCK_STATEMENT)).result()
    return {host: microseconds / 1e6 for host, ((microseconds,),) in answers.items()}
