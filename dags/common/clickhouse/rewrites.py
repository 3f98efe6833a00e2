"""What jobs that rewrite or erase rows share: a lock, tables of the run on every host, rounds until none is left.

Belongs here: the mechanics, the same for every such job. Not here: which rows and why (the jobs themselves), and
mutations and dictionaries as such (`mutations.py`, `dictionaries.py`).

At most one of these jobs works at a time: each holds the lock. So whatever bears the prefix of a run's tables, when the
lock has just been taken, was left by a run that died.
"""

import datetime as dt
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dags.common.clickhouse import dictionaries
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import Column, Placement, SchemaForm, Table
from dags.common.clickhouse.hosts import Host
from dags.common.clickhouse.mutation_progress import Enqueued, Progress, passes_by_itself, wait
from dags.common.clickhouse.mutations import Command, Mutation, enqueue, enqueue_on_all_hosts, floor_time
from dags.common.clickhouse.query import Insert, Query, Rows, quoted
from dags.common.clickhouse.tables import EVENTS
from dags.common.markdown import markdown_table

if TYPE_CHECKING:
    from clickhouse_driver import Client

logger = logging.getLogger(__name__)

LOCK = "clickhouse_rewrites"
PREFIX = "rewrite_"
# Rows may come in behind a mutation, so there may be something left for another round; not again and again.
MOST_ROUNDS = 5
# More than these in one statement, and it would meet the server's limit on the length of a statement.
MOST_PARTITIONS_BY_NAME = 50
MOST_TEAMS_BY_NAME = 100
ROWS_PER_PAGE = 200_000
POLL_SECONDS = 0.1

LEFTOVERS_STATEMENT = """
SELECT name, engine = 'Dictionary' FROM system.tables
WHERE database = currentDatabase() AND startsWith(name, %(prefix)s) ORDER BY 2 DESC, 1
"""
UNFINISHED_STATEMENT = """
SELECT table, mutation_id, latest_fail_error_code_name, latest_fail_reason FROM system.mutations
WHERE database = currentDatabase() AND NOT is_done AND position(command, %(prefix)s) > 0
"""
KILL_STATEMENT = """
KILL MUTATION WHERE database = currentDatabase() AND table = %(table)s AND mutation_id = %(id)s SYNC
"""

Report = Callable[[str], None]


class RowsRemainError(Exception):
    """After several rounds there are still rows that a rewrite should have taken. The message says how many."""


class LeftoverError(Exception):
    """A mutation of a dead run is not over, so what it reads cannot be dropped."""


@dataclass(frozen=True)
class Touched:
    """What a condition finds in a partition of a shard."""

    rows: int
    parts: int
    # UTC; only where it was asked for them.
    days: frozenset[dt.date] = frozenset()


# By shard, and in it by partition (its id in system.parts); nothing else has any row.
Found = Mapping[int, Mapping[str, Touched]]


@dataclass(frozen=True)
class Rewritten:
    """What the rounds of one table did. After them nothing is left that the condition finds, on any host."""

    table: str
    first_found: Found
    rows: int
    rounds: int
    mutations: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Job:
    """One attempt of a run: its time, its tables, and how it tells what it does.

    `still_ours` raises when the lock may be somebody else's by now; it is called before anything is destroyed.
    """

    cluster: ClickhouseCluster
    run_id: str
    attempt: str
    not_before: dt.datetime
    deadline: float
    report: Report
    still_ours: Callable[[], None]

    def seconds_left(self) -> float:
        """Seconds until the deadline; raises TimeoutError when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("The time of this run is up. What it has done stands; run it again to go on.")
        return left

    def name(self, what: str) -> str:
        """The name of a table or dictionary of this attempt alone."""
        return f"{PREFIX}{what}__{re.sub(r'[^A-Za-z0-9]', '_', self.run_id)}__{self.attempt}"

    def full_name(self, name: str) -> str:
        """`database.name`, as functions of dictionaries take it wherever the server runs them."""
        return f"{self.cluster.database}.{name}"


def new_job(
    cluster: ClickhouseCluster,
    run_id: str,
    *,
    deadline_seconds: float,
    report: Report,
    still_ours: Callable[[], None],
) -> Job:
    """A job whose tables no other attempt has, not even one of the same run."""
    deadline = time.monotonic() + deadline_seconds
    # By the servers' clocks, in whole seconds as theirs of mutations. No need to wait for the next one: the name of its
    # dictionary is in each mutation of this attempt, so none from before has the same text.
    answers = cluster.map_all_hosts(Query("SELECT toUnixTimestamp(now())")).result()
    begun = dt.datetime.fromtimestamp(min(seconds for ((seconds,),) in answers.values()), dt.UTC)
    return Job(cluster, run_id, uuid.uuid4().hex[:8], begun, deadline, report, still_ours)


def stored_as(cluster: ClickhouseCluster, table: Table) -> str:
    """The name of the table that holds the rows on each host. The servers know in which form the schema is."""
    clustered = SchemaForm(cluster.database, cluster.name or "-")
    if cluster.is_replicated(EVENTS.stored_as(clustered)):
        return table.stored_as(clustered)
    return table.name


def drop_leftovers(job: Job) -> list[str]:
    """Drop what runs that died left on any host; return the names. The lock must be held.

    Their mutations are waited for first, because one that has lost its dictionary fails for ever and keeps later ones
    from the table. One that fails, and not for a reason that passes, is killed.
    """
    _end_mutations(job)
    job.still_ours()
    dropped = _drop_all(job.cluster)
    # One may have been on its way when its sender died: without its dictionary it fails, and is killed.
    _end_mutations(job)
    if dropped:
        job.report(f"Dropped what runs that died had left: {', '.join(dropped)}.")
    return dropped


def drop_own(job: Job) -> None:
    """Drop the tables and dictionaries of this attempt, on every host."""
    _drop_all(job.cluster, f"__{job.attempt}")


def make_table(job: Job, what: str, columns: Sequence[Column], key: Sequence[str]) -> str:
    """Make an empty table of the run on every host; return its name."""
    name = job.name(what)
    declarations = ", ".join(column.declaration() for column in columns)
    order_by = ", ".join(map(quoted, key))
    statement = f"CREATE TABLE IF NOT EXISTS {quoted(name)} ({declarations}) ENGINE = MergeTree ORDER BY ({order_by})"
    job.cluster.map_all_hosts(Query(statement, retryable=True)).result()
    return name


def copy_to_other_hosts(job: Job, source: Host, name: str, columns: Sequence[str], key: Sequence[str]) -> int:
    """Bring the rows of a table of the run from one host to all others, in pages; return their number."""
    here = job.cluster.only(source)
    others = [job.cluster.only(host) for host in job.cluster.hosts if host != source]
    if not others:
        return int(here.any_host(Query(f"SELECT count() FROM {quoted(name)}")).result()[0][0])  # noqa: S608 - a name made here
    names, keys = ", ".join(map(quoted, columns)), ", ".join(map(quoted, key))
    count, last = 0, None
    while True:
        after = "" if last is None else f"WHERE ({keys}) > %(last)s"
        statement = f"SELECT {names} FROM {quoted(name)} {after} ORDER BY {keys} LIMIT {ROWS_PER_PAGE}"  # noqa: S608 - names from code
        page = here.any_host(Query(statement, {"last": last}), timeout_seconds=job.seconds_left()).result()
        if page:
            insert = Insert(name, columns, page)
            for future in [other.any_host(insert, timeout_seconds=job.seconds_left()) for other in others]:
                future.result()
            count += len(page)
            last = tuple(page[-1][columns.index(column)] for column in key)
        if len(page) < ROWS_PER_PAGE:
            return count


def make_dictionary(job: Job, table: str, key: Sequence[Column], values: Sequence[Column], comment: str) -> str:
    """A dictionary over a table of the run, loaded on every host and compared with the table there; return its name."""
    name = f"{table}_dict"
    dictionary = dictionaries.snapshot_dictionary(name, table, key, values, comment)
    dictionaries.make(job.cluster, dictionary)
    dictionaries.load(job.cluster, name, deadline_seconds=job.seconds_left())
    columns = [column.name for column in (*key, *values)]
    checksum = dictionaries.assert_equal_everywhere(
        f"{table} and its dictionary",
        dictionaries.checksum(job.cluster, name, deadline_seconds=job.seconds_left()),
        dictionaries.table_checksum(job.cluster, table, columns, deadline_seconds=job.seconds_left()),
    )
    job.report(f"Dictionary {name}: {checksum.rows} rows, the same on {len(job.cluster.hosts)} hosts.")
    return name


def find(
    job: Job, table: str, condition: str, parameters: Mapping[str, Any], among: str = "1", day: str | None = None
) -> Found:
    """Count what the condition finds, by shard and partition, on every host: one that does not answer is an error.

    `among` holds for every row that the condition finds, and is cheaper to ask. `day` is an expression for the day
    (UTC) of a row; left out, days are not looked for.
    """
    days = "[]" if day is None else f"groupUniqArray({day})"
    statement = (
        f"SELECT _partition_id, count(), uniqExact(_part), {days} FROM {quoted(table)} "  # noqa: S608 - text from code
        f"PREWHERE {among} WHERE {condition} GROUP BY 1"
    )
    by_host = ask_every_host(job, statement, parameters)
    found: dict[int, dict[str, Touched]] = {}
    for host, rows in by_host.items():
        for partition, count, parts, days_here in rows:
            shard = found.setdefault(host.shard, {})
            known = shard.get(partition, Touched(0, 0))
            # Replicas of a shard have the same rows: whichever has more is right about what is left.
            shard[partition] = Touched(max(count, known.rows), max(parts, known.parts), known.days.union(days_here))
    return found


def ask_every_host(job: Job, statement: str, parameters: Mapping[str, Any]) -> dict[Host, Rows]:
    """The rows that each host answers."""
    query = Query(statement, parameters)
    return job.cluster.map_all_hosts(query, timeout_seconds=job.seconds_left()).result()


def rewrite(
    job: Job,
    table: Table,
    command: Command,
    *,
    among: str = "1",
    day: str | None = None,
    narrowed: Callable[[Found], Command] | None = None,
) -> Rewritten:
    """Run the command on what its condition finds, in rounds, until it finds nothing on any host.

    Each round touches only the partitions in which there was something. `among` and `day` are as in `find`; `narrowed`
    makes the command of a round from what was found. Raises RowsRemainError when something is left after MOST_ROUNDS
    rounds.
    """
    name = stored_as(job.cluster, table)
    first: Found = {}
    ids: dict[str, list[str]] = {}
    rows = 0
    for done in range(MOST_ROUNDS + 1):
        found = find(job, name, command.condition, command.parameters, among, day)
        if not found:
            job.report(f"{name}: nothing is left to rewrite after {done} rounds.")
            return Rewritten(name, first, rows, done, ids)
        if done == MOST_ROUNDS:
            break
        first = first or found
        rows += total(found).rows
        job.report(f"{name}: {described(found)}.")
        round_command = command if narrowed is None else narrowed(found)
        # The round before had the same text: only what is newer than now is this round's.
        not_before = floor_time(job.cluster) if done else job.not_before
        job.still_ours()
        enqueued = _enqueue(job, table, name, round_command, found, not_before)
        for host, mutation_id in enqueued.ids.items():
            ids.setdefault(host, []).append(mutation_id)
        job.report(f"{name}: enqueued {json.dumps(enqueued.ids)}.")
        wait(
            job.cluster,
            enqueued,
            deadline_seconds=job.seconds_left(),
            on_progress=lambda progress: logger.info(_progress_line(progress)),
        )
        job.report(f"{name}: rewritten.")
    raise RowsRemainError(
        f"{name}: {described(found)} are still there after {MOST_ROUNDS} rounds: something writes them as fast as they "
        "are rewritten. Nothing was marked done. Look at what inserts such rows, and run this again."
    )


def total(found: Found) -> Touched:
    """Rows and parts of all shards together."""
    everything = [touched for partitions in found.values() for touched in partitions.values()]
    return Touched(sum(one.rows for one in everything), sum(one.parts for one in everything))


def partitions_of(found: Found) -> list[str]:
    """The partitions that have something on any shard."""
    return sorted({partition for partitions in found.values() for partition in partitions})


def described(found: Found) -> str:
    """One line for people."""
    touched = total(found)
    return f"{touched.rows} rows in {touched.parts} parts of {len(partitions_of(found))} partitions"


def as_markdown(found: Found) -> str:
    """The shards and partitions as a table."""
    rows = [
        [shard, partition, touched.rows, touched.parts]
        for shard, partitions in sorted(found.items())
        for partition, touched in sorted(partitions.items())
    ]
    return markdown_table(["shard", "partition", "rows", "parts"], "rlrr", rows) or "Nothing."


def among_teams(team_ids: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """A condition that spares the server the other teams' rows, with its parameters; nothing when there are many."""
    if not 0 < len(team_ids) <= MOST_TEAMS_BY_NAME:
        return "", {}
    return "team_id IN %(team_ids)s AND ", {"team_ids": tuple(sorted(team_ids))}


def microseconds(moment: dt.datetime) -> int:
    """Since 1970, as toUnixTimestamp64Micro counts them; exact, which a float would not be."""
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def _enqueue(job: Job, table: Table, name: str, command: Command, found: Found, not_before: dt.datetime) -> Enqueued:
    if table.placement is Placement.EVERY_NODE:
        return enqueue_on_all_hosts(job.cluster, Mutation(name, [command]), not_before=not_before)
    mutations = {
        shard: Mutation(
            name, [command], None if len(partitions) > MOST_PARTITIONS_BY_NAME else tuple(sorted(partitions))
        )
        for shard, partitions in found.items()
    }
    return enqueue(job.cluster, mutations, not_before=not_before)


def _progress_line(progress: Sequence[Progress]) -> str:
    return "Parts to rewrite: " + ", ".join(f"{one.host} {one.parts_to_do}" for one in progress)


def _end_mutations(job: Job) -> None:
    waiting: Mapping[Host, Rows] = {}
    while True:
        try:
            left = job.seconds_left()
        except TimeoutError as error:
            raise LeftoverError(
                f"Mutations of a run that died are not done yet: {waiting}. Wait for them, or end them with KILL "
                "MUTATION, and run this again."
            ) from error
        query = Query(UNFINISHED_STATEMENT, {"prefix": PREFIX})
        answers = job.cluster.map_all_hosts(query, timeout_seconds=left).result()
        waiting = {host: rows for host, rows in answers.items() if rows}
        if not waiting:
            return
        for host, rows in waiting.items():
            for table, mutation_id, error_name, reason in rows:
                if reason and not passes_by_itself(error_name, reason):
                    job.report(
                        f"{host}: mutation {mutation_id} of {table}, of a run that died, fails and is killed: {reason}"
                    )
                    kill = Query(KILL_STATEMENT, {"table": table, "id": mutation_id}, retryable=True)
                    job.cluster.only(host).any_host(kill, timeout_seconds=left).result()
        time.sleep(POLL_SECONDS)


def _drop_all(cluster: ClickhouseCluster, suffix: str = "") -> list[str]:
    def drop(client: "Client") -> list[str]:
        dropped = []
        for name, is_dictionary in client.execute(LEFTOVERS_STATEMENT, {"prefix": PREFIX}):
            if suffix in name:
                client.execute(f"DROP {'DICTIONARY' if is_dictionary else 'TABLE'} IF EXISTS {quoted(name)} SYNC")
                dropped.append(name)
        return dropped

    found = cluster.map_all_hosts(drop, retryable=True).result()
    return sorted({name for names in found.values() for name in names})
