"""The steps that every rewrite of rows shares: snapshots on all hosts, rounds of mutations, cleanup of dead runs.

Which rows are rewritten, and why, is in `dags/deletes/` and `dags/person_overrides/`.
"""

import datetime as dt
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dags.common.clickhouse import dictionaries
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import Column, Placement, SchemaForm, Table
from dags.common.clickhouse.hosts import Host
from dags.common.clickhouse.leftovers import drop_leftovers
from dags.common.clickhouse.mutation_progress import Enqueued, Progress, is_transient_failure, wait
from dags.common.clickhouse.mutations import Command, Mutation, enqueue, enqueue_on_all_hosts, floor_time
from dags.common.clickhouse.query import Insert, Query, Rows, quoted
from dags.common.rewrites.matches import MatchedRows, Matches, summary, total

logger = logging.getLogger(__name__)

PREFIX = "rewrite_"
# Rows may be inserted after a mutation was enqueued, so another round may find some; a few rounds must be enough.
MAX_ROUNDS = 5
# With more, a statement could exceed the server's limit on its length.
MAX_PARTITIONS_BY_NAME = 50
ROWS_PER_PAGE = 200_000
POLL_SECONDS = 0.1

UNFINISHED_STATEMENT = """
SELECT table, mutation_id, latest_fail_error_code_name, latest_fail_reason FROM system.mutations
WHERE database = currentDatabase() AND NOT is_done AND position(command, %(prefix)s) > 0
"""
KILL_STATEMENT = """
KILL MUTATION WHERE database = currentDatabase() AND table = %(table)s AND mutation_id = %(id)s SYNC
"""

Report = Callable[[str], None]


class RowsRemainError(Exception):
    """After MAX_ROUNDS rounds the condition still matches rows. The message says how many."""


class UnfinishedMutationError(Exception):
    """A mutation of a dead run is still in progress, so the dictionary that it reads cannot be dropped."""


@dataclass(frozen=True)
class RewriteResult:
    """What the rounds of one table did. After them the condition matches no row on any host."""

    table: str
    # The matches of the first round.
    matches: Matches
    rows: int
    rounds: int
    # Ids by host.
    mutations: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Rewrite:
    """One attempt of a run that rewrites or deletes rows. It holds the lock of all rewrites, so it works alone.

    Its tables and dictionaries have names of their own; any other with the prefix was left by a dead run.
    `assert_lock_held` raises when another run may hold the lock; it is called before anything is destroyed.
    """

    cluster: ClickhouseCluster
    run_id: str
    attempt: str
    not_before: dt.datetime
    deadline: float
    report: Report
    assert_lock_held: Callable[[], None]

    @classmethod
    def start(
        cls,
        cluster: ClickhouseCluster,
        run_id: str,
        *,
        deadline_seconds: float,
        report: Report,
        assert_lock_held: Callable[[], None],
    ) -> Self:
        """Start an attempt whose tables no other attempt has, not even an earlier attempt of the same run."""
        deadline = time.monotonic() + deadline_seconds
        # By the servers' clocks, in whole seconds like the times of mutations. No need to wait for the next second:
        # each mutation of this attempt names its dictionary, so no earlier mutation has the same text.
        answers = cluster.map_all_hosts(Query("SELECT toUnixTimestamp(now())")).result()
        started = dt.datetime.fromtimestamp(min(seconds for ((seconds,),) in answers.values()), dt.UTC)
        return cls(cluster, run_id, uuid.uuid4().hex[:8], started, deadline, report, assert_lock_held)

    def seconds_left(self) -> float:
        """Return the seconds until the deadline. Raises TimeoutError when it has passed."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("The deadline of this run has passed. What it has rewritten stays; run it again.")
        return left

    def name(self, what: str) -> str:
        """Return the name of a table or dictionary of this attempt."""
        return f"{PREFIX}{what}__{re.sub(r'[^A-Za-z0-9]', '_', self.run_id)}__{self.attempt}"

    def full_name(self, name: str) -> str:
        """Return `database.name`, as the functions of dictionaries need it on every host."""
        return f"{self.cluster.database}.{name}"

    def stored_as(self, table: Table) -> str:
        """Return the name of the table that holds the rows on each host: the servers know the form of the schema."""
        stored = table.stored_as(SchemaForm(self.cluster.database, self.cluster.name or "-"))
        return stored if stored != table.name and self.cluster.is_replicated(stored) else table.name

    def drop_leftovers(self) -> list[str]:
        """Drop the tables and dictionaries that dead runs left on any host; return their names.

        Waits for their mutations first: a mutation that has lost its dictionary fails forever and blocks later ones.
        Kills a mutation that fails with an error that is not transient.
        """
        self._finish_mutations()
        self.assert_lock_held()
        dropped = drop_leftovers(self.cluster, PREFIX)
        # A statement may have been in transit when its run died: without its dictionary it fails, and is killed.
        self._finish_mutations()
        if dropped:
            self.report(f"Dropped what dead runs left: {', '.join(dropped)}.")
        return dropped

    def drop_own(self) -> None:
        """Drop the tables and dictionaries of this attempt, on every host."""
        drop_leftovers(self.cluster, PREFIX, lambda leftover: f"__{self.attempt}" in leftover.name)

    def create_table(self, what: str, columns: Sequence[Column], key: Sequence[str]) -> str:
        """Create an empty table of this attempt on every host; return its name."""
        name = self.name(what)
        declarations = ", ".join(column.declaration() for column in columns)
        order_by = ", ".join(map(quoted, key))
        statement = (
            f"CREATE TABLE IF NOT EXISTS {quoted(name)} ({declarations}) ENGINE = MergeTree ORDER BY ({order_by})"
        )
        self.cluster.map_all_hosts(Query(statement, retryable=True)).result()
        return name

    def copy_to_other_hosts(self, source: Host, name: str, columns: Sequence[str], key: Sequence[str]) -> int:
        """Copy the rows of a table of this attempt from one host to all others, in pages; return their number."""
        here = self.cluster.only(source)
        others = [host for host in self.cluster.hosts if host != source]
        if not others:
            return int(here.any_host(Query(f"SELECT count() FROM {quoted(name)}")).result()[0][0])  # noqa: S608 - a name made here
        names, keys = ", ".join(map(quoted, columns)), ", ".join(map(quoted, key))
        count, last = 0, None
        while True:
            after = "" if last is None else f"WHERE ({keys}) > %(last)s"
            statement = f"SELECT {names} FROM {quoted(name)} {after} ORDER BY {keys} LIMIT {ROWS_PER_PAGE}"  # noqa: S608 - names from code
            page = here.any_host(Query(statement, {"last": last}), timeout_seconds=self.seconds_left()).result()
            if page:
                insert = Insert(name, columns, page)
                self.cluster.among(others).map_all_hosts(insert, timeout_seconds=self.seconds_left()).result()
                count += len(page)
                last = tuple(page[-1][columns.index(column)] for column in key)
            if len(page) < ROWS_PER_PAGE:
                return count

    def create_dictionary(self, table: str, key: Sequence[Column], values: Sequence[Column], comment: str) -> str:
        """Create a dictionary over a table of this attempt; load it on every host and compare it; return its name."""
        name = f"{table}_dict"
        dictionary = dictionaries.snapshot_dictionary(name, table, key, values, comment)
        dictionaries.create(self.cluster, dictionary)
        dictionaries.load(self.cluster, name, deadline_seconds=self.seconds_left())
        columns = [column.name for column in (*key, *values)]
        checksum = dictionaries.assert_equal_everywhere(
            f"{table} and its dictionary",
            dictionaries.checksum(self.cluster, name, deadline_seconds=self.seconds_left()),
            dictionaries.table_checksum(self.cluster, table, columns, deadline_seconds=self.seconds_left()),
        )
        self.report(f"Dictionary {name}: {checksum.rows} rows, the same on {len(self.cluster.hosts)} hosts.")
        return name

    def find(
        self,
        table: str,
        condition: str,
        parameters: Mapping[str, Any],
        *,
        prewhere: str = "1",
        day: str | None = None,
    ) -> Matches:
        """Count the rows that the condition matches, by shard and partition, on every host. Raises ClusterError.

        `prewhere` is a cheaper condition that every match also fulfills. `day` is an expression for the day (UTC) of a
        row; without it, no days are returned.
        """
        days = "[]" if day is None else f"groupUniqArray({day})"
        statement = (
            f"SELECT _partition_id, count(), uniqExact(_part), {days} FROM {quoted(table)} "  # noqa: S608 - text from code
            f"PREWHERE {prewhere} WHERE {condition} GROUP BY 1"
        )
        matches: dict[int, dict[str, MatchedRows]] = {}
        for host, rows in self.query_every_host(statement, parameters).items():
            for partition, count, parts, days_here in rows:
                shard = matches.setdefault(host.shard, {})
                known = shard.get(partition, MatchedRows(0, 0))
                # Replicas have the same rows, but some lag behind: the higher count is right about what is left.
                shard[partition] = MatchedRows(
                    max(count, known.rows), max(parts, known.parts), known.days.union(days_here)
                )
        return matches

    def query_every_host(self, statement: str, parameters: Mapping[str, Any]) -> dict[Host, Rows]:
        """Return the rows of the statement from each host. Raises ClusterError when a host does not answer."""
        query = Query(statement, parameters)
        return self.cluster.map_all_hosts(query, timeout_seconds=self.seconds_left()).result()

    def apply(
        self,
        table: Table,
        command: Command,
        *,
        prewhere: str = "1",
        day: str | None = None,
        narrow: Callable[[Matches], Command] | None = None,
    ) -> RewriteResult:
        """Run the command on the rows that its condition matches, in rounds, until it matches none on any host.

        Each round touches only the partitions with matches. `prewhere` and `day` are as in `find`; `narrow` makes the
        command of a round from its matches. Raises RowsRemainError when rows still match after MAX_ROUNDS rounds.
        """
        name = self.stored_as(table)
        first: Matches = {}
        ids: dict[str, list[str]] = {}
        rows = 0
        for finished in range(MAX_ROUNDS + 1):
            matches = self.find(name, command.condition, command.parameters, prewhere=prewhere, day=day)
            if not matches:
                self.report(f"{name}: no row is left to rewrite after {finished} rounds.")
                return RewriteResult(name, first, rows, finished, ids)
            if finished == MAX_ROUNDS:
                break
            first = first or matches
            rows += total(matches).rows
            self.report(f"{name}: {summary(matches)}.")
            round_command = command if narrow is None else narrow(matches)
            # The round before had the same text: only a mutation newer than now belongs to this round.
            not_before = floor_time(self.cluster) if finished else self.not_before
            self.assert_lock_held()
            enqueued = self._enqueue(table, name, round_command, matches, not_before)
            for host, mutation_id in enqueued.ids.items():
                ids.setdefault(host, []).append(mutation_id)
            self.report(f"{name}: enqueued {json.dumps(enqueued.ids)}.")
            wait(self.cluster, enqueued, deadline_seconds=self.seconds_left(), on_progress=_log_progress)
            self.report(f"{name}: rewritten.")
        raise RowsRemainError(
            f"{name}: {summary(matches)} still match after {MAX_ROUNDS} rounds: they are inserted as fast as they are "
            "rewritten. Nothing was marked done. Find what inserts such rows, and run this again."
        )

    def _enqueue(
        self, table: Table, name: str, command: Command, matches: Matches, not_before: dt.datetime
    ) -> Enqueued:
        if table.placement is Placement.EVERY_NODE:
            return enqueue_on_all_hosts(self.cluster, Mutation(name, [command]), not_before=not_before)
        mutations = {
            shard: Mutation(
                name, [command], None if len(partitions) > MAX_PARTITIONS_BY_NAME else tuple(sorted(partitions))
            )
            for shard, partitions in matches.items()
        }
        return enqueue(self.cluster, mutations, not_before=not_before)

    def _finish_mutations(self) -> None:
        """Wait until no mutation of a dead run is in progress, and kill those that fail."""
        unfinished: Mapping[Host, Rows] = {}
        while True:
            try:
                left = self.seconds_left()
            except TimeoutError as error:
                raise UnfinishedMutationError(
                    f"Mutations of a dead run are still in progress: {unfinished}. Wait for them or run KILL MUTATION, "
                    "then run this again."
                ) from error
            query = Query(UNFINISHED_STATEMENT, {"prefix": PREFIX})
            answers = self.cluster.map_all_hosts(query, timeout_seconds=left).result()
            unfinished = {host: rows for host, rows in answers.items() if rows}
            if not unfinished:
                return
            for host, rows in unfinished.items():
                for table, mutation_id, error_name, reason in rows:
                    if reason and not is_transient_failure(error_name, reason):
                        self.report(f"{host}: killing mutation {mutation_id} of {table}, of a dead run: {reason}")
                        kill = Query(KILL_STATEMENT, {"table": table, "id": mutation_id}, retryable=True)
                        self.cluster.only(host).any_host(kill, timeout_seconds=left).result()
            time.sleep(POLL_SECONDS)


def _log_progress(progress: Sequence[Progress]) -> None:
    logger.info("Parts to rewrite: %s", ", ".join(f"{one.host} {one.parts_to_do}" for one in progress))
