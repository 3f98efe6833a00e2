"""What the servers say of mutations: done, killed, failing, not found; and waiting for it with a deadline.

Belongs here: what identifies an enqueued mutation, and every question about it. Not here: what a mutation does and how
it is enqueued (`mutations.py`).
"""

import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Self

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import CallTimeoutError, ClusterError, one_line
from dags.common.clickhouse.hosts import Host
from dags.common.clickhouse.retry import SERVER_ERRORS, is_transient

if TYPE_CHECKING:
    from clickhouse_driver import Client

# For one look at one host; the last one, at the deadline, gets the shortest.
LOOK_SECONDS = 30.0
SHORTEST_LOOK_SECONDS = 1.0
# Between looks: a share of the time waited so far, so that a short mutation is not kept waiting for its end.
PAUSE_SHARE = 0.1
SHORTEST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 1.0
TRANSIENT_ERRORS = {error.name: error for error in SERVER_ERRORS.values() if error.transient}
# Two servers with tables of their own have different paths or host names; replicas share a path in Keeper.
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
    """What a host can say of a mutation."""

    DONE = "done"
    RUNNING = "not done yet"
    FAILING = "failing"
    KILLED = "killed"
    NOT_FOUND = "not found"
    UNREACHABLE = "the host does not answer"


@dataclass(frozen=True)
class Progress:
    """What one host says of one mutation: `parts_to_do` parts are not rewritten yet; `reason` is the server's."""

    host: Host
    table: str
    id: str
    answer: MutationState
    parts_to_do: int = 0
    reason: str = ""

    def __str__(self) -> str:
        parts = f", {self.parts_to_do} parts to do" if self.parts_to_do else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.host}: {self.id} of {self.table} is {self.answer.value}{parts}{reason}"


class MutationError(Exception):
    """Mutations are not done. `states` has what each host said of each."""

    def __init__(self, headline: str, states: Sequence[Progress]) -> None:
        self.states = tuple(states)
        super().__init__("\n- ".join([f"{headline}:", *map(str, self.states)]))


class MutationKilledError(MutationError):
    """Somebody killed the mutation. Parts that were rewritten before stay rewritten."""


class MutationFailingError(MutationError):
    """The server cannot rewrite a part, and says why. It tries again for ever: kill the mutation, or mend the cause."""


class MutationNotFoundError(MutationError):
    """The server does not know the mutation: whether it was done is unknown."""


class MutationTimeoutError(MutationError):
    """The mutation was not done before the deadline. It goes on: a later wait for the same ids can find it done."""


# In the order in which they matter when hosts say different things.
BAD_ANSWERS: tuple[tuple[MutationState, type[MutationError], str], ...] = (
    (MutationState.KILLED, MutationKilledError, "A mutation was killed, so some of its rows may be as they were"),
    (
        MutationState.NOT_FOUND,
        MutationNotFoundError,
        "A mutation is not known, so whether it was done is not known either",
    ),
    (MutationState.FAILING, MutationFailingError, "A mutation fails: mend the cause, or KILL MUTATION and begin anew"),
)


@dataclass(frozen=True)
class EnqueuedMutation:
    """A mutation that a server has taken: its id on each of `hosts`, which share it by replication.

    `commands` are the texts in the server's formatting, `created_at` is by the server's clock, `storage` tells this
    table from an earlier or later one of the name, and `is_adopted` says that it was found and not enqueued now.
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
    """What `enqueue` gave, to be kept in the run: an op returns `to_value()`, the next one begins with `from_value`."""

    mutations: tuple[EnqueuedMutation, ...]

    @property
    def ids(self) -> dict[str, str]:
        """The ids by host (`address:port`), for metadata and evidence; a host has one at most."""
        return {str(host): mutation.id for mutation in self.mutations for host in mutation.hosts}

    def to_value(self) -> list[dict[str, Any]]:
        """All of it as what JSON can hold."""
        values = []
        for mutation in self.mutations:
            value = dataclasses.asdict(mutation)
            values.append({**value, "created_at": mutation.created_at.isoformat()})
        return values

    @classmethod
    def from_value(cls, value: Sequence[Mapping[str, Any]]) -> Self:
        """The inverse of `to_value`."""
        mutations = []
        for one in value:
            fields = {
                **one,
                "commands": tuple(one["commands"]),
                "hosts": tuple(Host(**host) for host in one["hosts"]),
                "created_at": dt.datetime.fromisoformat(one["created_at"]),
            }
            mutations.append(EnqueuedMutation(**fields))
        return cls(tuple(mutations))


@dataclass(frozen=True)
class Done:
    """Every host that could be reached has done every mutation, and at least one host of each has.

    `unreachable` could not be asked: a replica among them does the mutation when it is back.
    """

    unreachable: tuple[Host, ...] = ()


def wait(
    cluster: ClickhouseCluster,
    enqueued: Enqueued,
    *,
    deadline_seconds: float,
    on_progress: Callable[[Sequence[Progress]], None] | None = None,
) -> Done:
    """Waits until every mutation is done on all hosts that can be reached.

    A host that goes away in the middle is waited for, unless another replica has done the mutation. `on_progress` gets
    what every host said, when that has changed. Pauses between looks grow with the time waited, to a second.

    Raises MutationKilledError, MutationNotFoundError, MutationFailingError (a transient failure is waited out) or
    MutationTimeoutError, with all hosts in one message.
    """
    begun = time.monotonic()
    deadline = begun + deadline_seconds
    asked = [(mutation, present_hosts(cluster, mutation)) for mutation in enqueued.mutations]
    reported: list[Progress] = []
    while True:
        states_by_mutation = _ask(cluster, asked, deadline - time.monotonic())
        states = [state for of_one in states_by_mutation for state in of_one]
        if on_progress is not None and states != reported:
            on_progress(states)
            reported = states
        for answer, error, headline in BAD_ANSWERS:
            if any(state.answer is answer for state in states):
                raise error(headline, states)
        if all(_is_done(of_one) for of_one in states_by_mutation):
            unreachable = {state.host for state in states if state.answer is MutationState.UNREACHABLE}
            return Done(tuple(sorted(unreachable)))
        left = deadline - time.monotonic()
        if left <= 0:
            raise MutationTimeoutError(f"Mutations were not done within {deadline_seconds:g} seconds and go on", states)
        pause = min(max((time.monotonic() - begun) * PAUSE_SHARE, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        time.sleep(min(pause, left))


def present_hosts(cluster: ClickhouseCluster, mutation: EnqueuedMutation) -> list[Host]:
    """The hosts of the mutation that the cluster has by now. Raises LookupError when it has none of them."""
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
    """The mutations of the table of the current database that this server lists, by id; or the one of an id."""
    known: dict[str, Known] = {}
    # One row for each command, in the order of the commands.
    for found, formatted, created_at, done, killed, parts, reason, error in client.execute(
        KNOWN_STATEMENT, {"table": table, "id": id_}
    ):
        one = known.setdefault(found, Known(found, [], created_at, bool(done), bool(killed), parts, reason, error))
        one.commands.append(formatted)
    return known


def _ask(
    cluster: ClickhouseCluster, asked: Iterable[tuple[EnqueuedMutation, list[Host]]], seconds_left: float
) -> list[list[Progress]]:
    """What every host says of every mutation; all hosts are asked at once."""
    seconds = min(max(seconds_left, SHORTEST_LOOK_SECONDS), LOOK_SECONDS)
    calls = [
        (mutation, cluster.among(hosts).map_all_hosts(_Look(mutation), timeout_seconds=seconds))
        for mutation, hosts in asked
    ]
    states_by_mutation = []
    errors: dict[Host, BaseException] = {}
    for mutation, by_host in calls:
        answers, failures = by_host.results_and_failures()
        states = [
            Progress(host, mutation.table, mutation.id, answer, parts, reason)
            for host, (answer, parts, reason) in answers.items()
        ]
        for host, error in failures.items():
            if is_transient(error) or isinstance(error, CallTimeoutError):
                reason = one_line(error)
                states.append(Progress(host, mutation.table, mutation.id, MutationState.UNREACHABLE, reason=reason))
            else:
                errors[host] = error
        states_by_mutation.append(sorted(states, key=lambda state: state.host))
    if errors:
        raise ClusterError(errors, len(cluster.hosts))
    return states_by_mutation


@dataclass(frozen=True)
class _Look:
    """A call: what this server says of the mutation, the parts to do, and why."""

    mutation: EnqueuedMutation
    retryable: bool = True

    def __call__(self, client: "Client") -> tuple[MutationState, int, str]:
        mutation = self.mutation
        storages = client.execute(STORAGE_STATEMENT, {"table": mutation.table})
        if [storage for storage, _ in storages] != [mutation.storage]:
            return MutationState.NOT_FOUND, 0, "the table was dropped, or is another one by now"
        # Alone first: the server formats the commands of each that it lists.
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
        is_failing = bool(one.latest_fail_reason) and not passes_by_itself(
            one.latest_fail_error, one.latest_fail_reason
        )
        return MutationState.FAILING if is_failing else MutationState.RUNNING, one.parts_to_do, one.latest_fail_reason


def _gone(id_: str, finished: Sequence[str], kept: int) -> tuple[MutationState, int, str]:
    """Killed, or forgotten: a server that has finished more mutations than it keeps forgets the oldest."""
    if len(finished) < kept or any(number_of(other) < number_of(id_) for other in finished):
        return MutationState.KILLED, 0, "it is gone, and the server still lists what it would have forgotten before"
    return MutationState.NOT_FOUND, 0, f"the server keeps the last {kept} that are finished"


def passes_by_itself(error_name: str, reason: str) -> bool:
    """Whether the table of retries says so of what a mutation failed with."""
    known = TRANSIENT_ERRORS.get(error_name)
    return known is not None and (known.only_if is None or known.only_if in reason)


def _is_done(states: Sequence[Progress]) -> bool:
    answers = {state.answer for state in states}
    return MutationState.DONE in answers and answers <= {MutationState.DONE, MutationState.UNREACHABLE}


def number_of(id_: str) -> int:
    """Ids of one table count up: mutation_5.txt, or 0000000005 where it replicates."""
    return int("".join(character for character in id_ if character.isdigit()))


def host_names(hosts: Iterable[Host]) -> str:
    """The addresses, for messages."""
    return ", ".join(map(str, hosts))
