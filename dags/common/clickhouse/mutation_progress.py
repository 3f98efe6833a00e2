"""The progress of enqueued mutations on every host, and waiting for them with a deadline."""

import datetime as dt
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import CallTimeoutError, ClusterError, one_line
from dags.common.clickhouse.hosts import Host
from dags.common.clickhouse.retry import SERVER_ERRORS, is_transient

if TYPE_CHECKING:
    from clickhouse_driver import Client

# Timeout of one poll of one host. Near the deadline of the wait it shrinks to the minimum.
MAX_POLL_SECONDS = 30.0
MIN_POLL_SECONDS = 1.0
# The pause between polls is a share of the time waited so far, so that a short mutation is noticed quickly.
PAUSE_SHARE = 0.1
MIN_PAUSE_SECONDS = 0.01
MAX_PAUSE_SECONDS = 1.0
TRANSIENT_ERRORS = {error.name: error for error in SERVER_ERRORS.values() if error.transient}
# Replicas share a path in Keeper. Tables without one differ by server, host name or data path.
STORAGE_STATEMENT = """
SELECT
    if(replicas.zookeeper_path != '', replicas.zookeeper_path,
        concat(toString(serverUUID()), ' ', hostName(), ' ', arrayStringConcat(tables.data_paths, ' '))),
    replicas.zookeeper_path != ''
FROM (
    SELECT database, name, data_paths FROM system.tables WHERE database = currentDatabase() AND name = %(table)s
) AS tables
LEFT JOIN (
    SELECT database, table, zookeeper_path FROM system.replicas
    WHERE database = currentDatabase() AND table = %(table)s
) AS replicas ON replicas.database = tables.database AND replicas.table = tables.name
"""
KNOWN_STATEMENT = """
SELECT
    mutation_id, formatQuerySingleLineOrNull(concat('ALTER TABLE t ', command)), toUnixTimestamp(create_time),
    is_done, is_killed, parts_to_do, latest_fail_reason, latest_fail_error_code_name
FROM system.mutations
WHERE database = currentDatabase() AND table = %(table)s AND (%(id)s IS NULL OR mutation_id = %(id)s)
"""
KEPT_STATEMENT = "SELECT toUInt64(value) FROM system.merge_tree_settings WHERE name = 'finished_mutations_to_keep'"


class MutationState(Enum):
    """The state of a mutation on one host."""

    DONE = "done"
    RUNNING = "still in progress"
    FAILING = "failing"
    KILLED = "killed"
    NOT_FOUND = "not found"
    UNREACHABLE = "unknown, because the host does not answer"


@dataclass(frozen=True)
class Progress:
    """The progress of one mutation on one host. `parts_to_do` are left to rewrite; `reason` is the server's."""

    host: Host
    table: str
    id: str
    state: MutationState
    parts_to_do: int = 0
    reason: str = ""

    def __str__(self) -> str:
        parts = f", {self.parts_to_do} parts to do" if self.parts_to_do else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.host}: {self.id} of {self.table} is {self.state.value}{parts}{reason}"


class MutationError(Exception):
    """Mutations are not done. `progress` has the state of each on each host."""

    def __init__(self, headline: str, progress: Sequence[Progress]) -> None:
        self.progress = tuple(progress)
        super().__init__("\n- ".join([f"{headline}:", *map(str, self.progress)]))


class MutationKilledError(MutationError):
    """The mutation was killed. Parts that were rewritten before stay rewritten."""


class MutationFailingError(MutationError):
    """The server cannot rewrite a part, and retries forever: fix the cause it reports, or kill the mutation."""


class MutationNotFoundError(MutationError):
    """The server does not list the mutation: whether it was done is unknown."""


class MutationTimeoutError(MutationError):
    """The mutation was not done before the deadline. It continues: a later wait for the same ids can succeed."""


# In the order in which they matter when hosts are in different states.
FAILED_STATES: tuple[tuple[MutationState, type[MutationError], str], ...] = (
    (MutationState.KILLED, MutationKilledError, "A mutation was killed, so some of its rows may not be rewritten"),
    (MutationState.NOT_FOUND, MutationNotFoundError, "A mutation was not found, so whether it was done is unknown"),
    (
        MutationState.FAILING,
        MutationFailingError,
        "A mutation fails: fix the cause, or run KILL MUTATION",
    ),
)


@dataclass(frozen=True)
class EnqueuedMutation:
    """A mutation that a server has accepted: its id on each of `hosts`, which share it by replication.

    `commands` are the texts in the server's formatting, `created_at` is by the server's clock, `storage` distinguishes
    this table from another table of the same name, and `is_adopted` means that it was found instead of enqueued now.
    """

    table: str
    id: str
    commands: tuple[str, ...]
    hosts: tuple[Host, ...]
    storage: str
    created_at: dt.datetime
    is_adopted: bool


@dataclass(frozen=True)
class Enqueued:
    """The mutations of one call of `enqueue`."""

    mutations: tuple[EnqueuedMutation, ...]

    @property
    def ids(self) -> dict[str, str]:
        """The ids by host (`address:port`), for metadata and evidence; each host has at most one."""
        return {str(host): mutation.id for mutation in self.mutations for host in mutation.hosts}


def wait(
    cluster: ClickhouseCluster,
    enqueued: Enqueued,
    *,
    deadline_seconds: float,
    on_progress: Callable[[Sequence[Progress]], None] | None = None,
) -> tuple[Host, ...]:
    """Wait until every mutation is done on all hosts that answer; return the hosts that do not.

    At least one host of each mutation must say that it is done; a replica that does not answer then runs the mutation
    when it is back. `on_progress` gets the states of all hosts whenever one of them changes. The pauses between polls
    grow to a second.

    Raises MutationKilledError, MutationNotFoundError, MutationFailingError (transient failures are waited out) or
    MutationTimeoutError, with all hosts in one message.
    """
    started = time.monotonic()
    deadline = started + deadline_seconds
    polled = [(mutation, _current_hosts(cluster, mutation)) for mutation in enqueued.mutations]
    reported: list[Progress] = []
    while True:
        by_mutation = _poll(cluster, polled, deadline - time.monotonic())
        progress = [one for of_mutation in by_mutation for one in of_mutation]
        if on_progress is not None and progress != reported:
            on_progress(progress)
            reported = progress
        for state, error, headline in FAILED_STATES:
            if any(one.state is state for one in progress):
                raise error(headline, progress)
        if all(_is_done(of_mutation) for of_mutation in by_mutation):
            return tuple(sorted({one.host for one in progress if one.state is MutationState.UNREACHABLE}))
        left = deadline - time.monotonic()
        if left <= 0:
            raise MutationTimeoutError(
                f"Mutations were not done within {deadline_seconds:g} seconds and continue", progress
            )
        pause = min(max((time.monotonic() - started) * PAUSE_SHARE, MIN_PAUSE_SECONDS), MAX_PAUSE_SECONDS)
        time.sleep(min(pause, left))


def _current_hosts(cluster: ClickhouseCluster, mutation: EnqueuedMutation) -> list[Host]:
    """Return the hosts of the mutation that the cluster still has. Raises LookupError when it has none of them."""
    addresses = set(map(str, mutation.hosts))
    hosts = [host for host in cluster.hosts if str(host) in addresses]
    if not hosts:
        raise LookupError(
            f"{mutation.id} of {mutation.table} was enqueued on {host_names(mutation.hosts)}, and this cluster has no "
            f"such host, only {host_names(cluster.hosts)}."
        )
    return hosts


@dataclass
class Known:
    """A mutation as system.mutations has it. `created_at` is whole seconds since 1970."""

    id: str
    commands: list[str]
    created_at: int
    is_done: bool
    is_killed: bool
    parts_to_do: int
    latest_fail_reason: str
    latest_fail_error: str


def known_mutations(client: "Client", table: str, id_: str | None = None) -> dict[str, Known]:
    """Return the mutations of the table that the server lists, by id; with `id_`, that mutation alone."""
    known: dict[str, Known] = {}
    # One row for each command, in the order of the commands.
    for found, formatted, created_at, done, killed, parts, reason, error in client.execute(
        KNOWN_STATEMENT, {"table": table, "id": id_}
    ):
        one = known.setdefault(found, Known(found, [], created_at, bool(done), bool(killed), parts, reason, error))
        one.commands.append(formatted)
    return known


def _poll(
    cluster: ClickhouseCluster, polled: Iterable[tuple[EnqueuedMutation, list[Host]]], seconds_left: float
) -> list[list[Progress]]:
    """Return the progress of every mutation on each of its hosts; all hosts are polled at once."""
    seconds = min(max(seconds_left, MIN_POLL_SECONDS), MAX_POLL_SECONDS)
    calls = [
        (mutation, cluster.among(hosts).map_all_hosts(_Poll(mutation), timeout_seconds=seconds))
        for mutation, hosts in polled
    ]
    by_mutation = []
    errors: dict[Host, BaseException] = {}
    for mutation, by_host in calls:
        answers, failures = by_host.results_and_failures()
        progress = [
            Progress(host, mutation.table, mutation.id, state, parts, reason)
            for host, (state, parts, reason) in answers.items()
        ]
        for host, error in failures.items():
            if is_transient(error) or isinstance(error, CallTimeoutError):
                reason = one_line(error)
                progress.append(Progress(host, mutation.table, mutation.id, MutationState.UNREACHABLE, reason=reason))
            else:
                errors[host] = error
        by_mutation.append(sorted(progress, key=lambda one: one.host))
    if errors:
        raise ClusterError(errors, len(cluster.hosts))
    return by_mutation


@dataclass(frozen=True)
class _Poll:
    """A call: the state of the mutation on this server, the parts left to rewrite, and the reason."""

    mutation: EnqueuedMutation
    retryable: bool = True

    def __call__(self, client: "Client") -> tuple[MutationState, int, str]:
        mutation = self.mutation
        storages = client.execute(STORAGE_STATEMENT, {"table": mutation.table})
        if [storage for storage, _ in storages] != [mutation.storage]:
            return MutationState.NOT_FOUND, 0, "the table was dropped, or replaced by another one"
        # By its id first: the server formats the commands of each mutation that it lists.
        one = known_mutations(client, mutation.table, mutation.id).get(mutation.id)
        if one is None:
            known = known_mutations(client, mutation.table)
            one = known.get(mutation.id)
        if one is None:
            ((kept,),) = client.execute(KEPT_STATEMENT)
            return _gone(mutation.id, [other.id for other in known.values() if other.is_done], kept)
        if tuple(one.commands) != mutation.commands:
            return MutationState.NOT_FOUND, 0, "its id belongs to other commands"
        if one.is_killed:
            return MutationState.KILLED, one.parts_to_do, one.latest_fail_reason
        if one.is_done:
            return MutationState.DONE, 0, ""
        is_failing = bool(one.latest_fail_reason) and not is_transient_failure(
            one.latest_fail_error, one.latest_fail_reason
        )
        return MutationState.FAILING if is_failing else MutationState.RUNNING, one.parts_to_do, one.latest_fail_reason


def _gone(id_: str, finished: Sequence[str], kept: int) -> tuple[MutationState, int, str]:
    """Return whether an unlisted mutation was killed, or dropped from the list, which keeps the last finished ones."""
    if len(finished) < kept or any(number_of(other) < number_of(id_) for other in finished):
        return MutationState.KILLED, 0, "the server does not list it, but still lists older ones"
    return MutationState.NOT_FOUND, 0, f"the server lists only the last {kept} finished mutations"


def is_transient_failure(error_name: str, reason: str) -> bool:
    """Return whether the error that a mutation failed with is transient by the table in `retry.py`."""
    known = TRANSIENT_ERRORS.get(error_name)
    return known is not None and (known.only_if is None or known.only_if in reason)


def _is_done(progress: Sequence[Progress]) -> bool:
    states = {one.state for one in progress}
    return MutationState.DONE in states and states <= {MutationState.DONE, MutationState.UNREACHABLE}


def number_of(id_: str) -> int:
    """Return the number in an id; ids of one table count up: mutation_5.txt, or 0000000005 if it is replicated."""
    return int("".join(character for character in id_ if character.isdigit()))


def host_names(hosts: Iterable[Host]) -> str:
    """Return the addresses, for messages."""
    return ", ".join(map(str, hosts))
