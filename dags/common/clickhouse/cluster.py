"""A ClickHouse cluster as one value: calls on any host, on all hosts, or on one host of each shard.

Ready-made calls are in `query.py`; what is retried is in `retry.py`.
"""

import copy
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from dags.common.clickhouse.calls import Call, Deadlines, FuturesMap, retrying
from dags.common.clickhouse.errors import ClusterClosedError, UnknownShardError
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.pool import MAX_CALL_SECONDS, ConnectionPool
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.clickhouse.retry import RetryPolicy

if TYPE_CHECKING:
    from clickhouse_driver import Client

T = TypeVar("T")

CALL_TIMEOUT_SECONDS = 300.0

ENGINE_STATEMENT = "SELECT engine FROM system.tables WHERE database = currentDatabase() AND name = %(table)s"


@dataclass(frozen=True)
class _Shared:
    """What a cluster and its tagged copies have in common."""

    pools: Mapping[Host, ConnectionPool]
    # One for each host: calls that wait for a host that hangs take no thread from the others.
    executors: Mapping[Host, ThreadPoolExecutor]
    policy: RetryPolicy
    turn: "itertools.count[int]" = field(default_factory=itertools.count)
    deadlines: Deadlines = field(default_factory=Deadlines)
    closed: threading.Event = field(default_factory=threading.Event)


class ClickhouseCluster:
    """The hosts of one ClickHouse cluster.

    A call is a function of a `clickhouse_driver.Client` that runs on another thread; a future has what it returns or
    raises. It must read to their end the results that it asks for, and leave no SET, USE or temporary table behind. It
    must not wait for another call of the same cluster: no thread may be left for that call.

    A call is repeated only if that is safe. Before the function has started, a connection that fails is always tried
    again. Once it has started, it is called again, after a transient error, only if it is `retryable`: by the argument,
    or by an attribute of the function, as `Query` and `Insert` have. Everything else is called at most once.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        access: Access | None = None,
        *,
        name: str | None = None,
        policy: RetryPolicy | None = None,
        connections_per_host: int = 4,
        call_timeout_seconds: float = CALL_TIMEOUT_SECONDS,
    ) -> None:
        """Make no connection yet. `name` is the cluster's in system.clusters. Raises ValueError without hosts."""
        if not hosts:
            raise ValueError("A ClickHouse cluster needs at least one host.")
        access = access or Access()
        self.hosts = tuple(hosts)
        self.name = name
        self.database = access.database
        self._call_timeout_seconds = call_timeout_seconds
        self._settings: Mapping[str, Any] = {}
        self._shared = _Shared(
            pools={host: ConnectionPool(host, access, connections_per_host) for host in self.hosts},
            executors={
                host: ThreadPoolExecutor(connections_per_host, thread_name_prefix=f"clickhouse {host}")
                for host in self.hosts
            },
            policy=policy or RetryPolicy(),
        )

    def __repr__(self) -> str:
        return f"ClickhouseCluster({', '.join(map(str, self.hosts))})"

    @property
    def shards(self) -> list[int]:
        """The numbers of the shards that have hosts for rows, in order."""
        return sorted({host.shard for host in self.hosts if host.may_hold_rows})

    def replicas_of(self, shard: int) -> tuple[Host, ...]:
        """Return the hosts that have the rows of this shard. Raises UnknownShardError."""
        replicas = tuple(host for host in self.hosts if host.may_hold_rows and host.shard == shard)
        if not replicas:
            known = ", ".join(map(str, self.shards)) or "none"
            raise UnknownShardError(f"This ClickHouse cluster has no shard {shard}, only: {known}.")
        return replicas

    def any_host(
        self,
        fn: Callable[["Client"], T],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> Future[T]:
        """Call `fn` once on one host; the hosts take turns. A host that cannot be reached is skipped.

        `timeout_seconds` is for everything: waiting for a thread, all attempts, all waits. The future raises what `fn`
        raised last, with notes that name the hosts, or CallTimeoutError.
        """
        in_turn = _rotated(self.hosts, next(self._shared.turn))
        return self._submit(fn, in_turn, retryable=retryable, timeout_seconds=timeout_seconds).future

    def map_all_hosts(
        self,
        fn: Callable[["Client"], T],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Call `fn` on every host at once. `timeout_seconds` is for each host."""
        by_group: dict[tuple[Host, ...], Callable[[Client], T]] = {(host,): fn for host in self.hosts}
        return self.map_one_host_per_group(by_group, retryable=retryable, timeout_seconds=timeout_seconds)

    def map_one_host_per_shard(
        self,
        fn: Callable[["Client"], T],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Call `fn` once for each shard, on one of its replicas: see `map_any_host_in_shards`."""
        by_shard = dict.fromkeys(self.shards, fn)
        return self.map_any_host_in_shards(by_shard, retryable=retryable, timeout_seconds=timeout_seconds)

    def map_any_host_in_shards(
        self,
        fn_by_shard: Mapping[int, Callable[["Client"], T]],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Call the function of each shard once, on one of its replicas, which take turns; all shards at once.

        The `shard` of each host in the result is the shard. Raises UnknownShardError before anything is called.
        """
        turn = next(self._shared.turn)
        by_group = {_rotated(self.replicas_of(shard), turn): fn for shard, fn in fn_by_shard.items()}
        return self.map_one_host_per_group(by_group, retryable=retryable, timeout_seconds=timeout_seconds)

    def map_write_hosts(
        self,
        table: str,
        fn: Callable[["Client"], T],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Call `fn`, a write to a table that every host has, on as many hosts as it takes for all to have its rows.

        That is one host, in turn, if the table is replicated, and else every host.
        """
        if not self.is_replicated(table):
            return self.map_all_hosts(fn, retryable=retryable, timeout_seconds=timeout_seconds)
        by_group = {_rotated(self.hosts, next(self._shared.turn)): fn}
        return self.map_one_host_per_group(by_group, retryable=retryable, timeout_seconds=timeout_seconds)

    def map_one_host_per_group(
        self,
        fn_by_group: Mapping[tuple[Host, ...], Callable[["Client"], T]],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Call the function of each group of hosts once, on the first of its hosts that works; all groups at once.

        A host that cannot be reached is skipped, and one that fails is followed by the next if the call may be
        repeated. `timeout_seconds` is for each group, with all its attempts.
        """
        return FuturesMap(
            {
                group[0]: self._submit(fn, group, retryable=retryable, timeout_seconds=timeout_seconds)
                for group, fn in fn_by_group.items()
            }
        )

    def tagged(self, tags: QueryTags) -> "ClickhouseCluster":
        """Return the same cluster and connections, with the tags as `log_comment` on every query."""
        tagged = copy.copy(self)
        tagged._settings = {**self._settings, "log_comment": tags.to_json()}  # noqa: SLF001 - of this class
        return tagged

    def is_replicated(self, table: str) -> bool:
        """Return whether a row written to `table` on one host reaches the others, as the server knows it."""
        rows = self.any_host(Query(ENGINE_STATEMENT, {"table": table})).result()
        return any(engine.startswith("Replicated") for (engine,) in rows)

    def only(self, host: Host) -> "ClickhouseCluster":
        """Return the same cluster and connections, with calls on this host alone."""
        return self.among([host])

    def among(self, hosts: Sequence[Host]) -> "ClickhouseCluster":
        """Return the same cluster and connections, with calls on these hosts. Raises ValueError for an unknown host."""
        if not hosts:
            raise ValueError("Give at least one host of this cluster.")
        for host in hosts:
            if host not in self.hosts:
                raise ValueError(f"{host} is not among the hosts of this cluster: {', '.join(map(str, self.hosts))}.")
        narrowed = copy.copy(self)
        narrowed.hosts = tuple(hosts)
        return narrowed

    def close(self) -> None:
        """End every call in progress, kill its query and close the connections, also those of tagged copies."""
        self._shared.closed.set()
        for call in self._shared.deadlines.in_progress():
            call.end(ClusterClosedError("The ClickHouse cluster was closed while this call was in progress."))
        for executor in self._shared.executors.values():
            executor.shutdown(wait=False, cancel_futures=True)
        for pool in self._shared.pools.values():
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self,
        fn: Callable[["Client"], T],
        hosts: Sequence[Host],
        *,
        retryable: bool | None,
        timeout_seconds: float | None,
    ) -> Call[T]:
        seconds = self._call_timeout_seconds if timeout_seconds is None else timeout_seconds
        if not 0 < seconds <= MAX_CALL_SECONDS:
            raise ValueError(f"timeout_seconds is {seconds:g}: give more than 0 and at most {MAX_CALL_SECONDS:g}.")
        may_repeat = bool(getattr(fn, "retryable", False)) if retryable is None else retryable
        if self._shared.closed.is_set():
            raise ClusterClosedError("The ClickHouse cluster is closed.")
        call = Call(fn, hosts, seconds)
        self._shared.deadlines.add(call)
        retries = retrying(call, self._shared.policy, may_repeat=may_repeat)
        try:
            self._shared.executors[hosts[0]].submit(call.run, retries, lambda: self._attempt(call))
        except RuntimeError as error:
            # Closed by another thread since the check above.
            call.end(ClusterClosedError("The ClickHouse cluster is closed."))
            raise ClusterClosedError("The ClickHouse cluster is closed.") from error
        return call

    def _attempt(self, call: Call[T]) -> T:
        host = call.host = call.hosts[len(call.failures) % len(call.hosts)]
        pool = self._shared.pools[host]
        try:
            with (
                pool.session(self._settings, call.seconds_left()) as session,
                call.using(session, lambda query_id: pool.kill(query_id, self._settings)),
            ):
                session.connect()
                call.started = True
                return call.fn(session)
        except BaseException as error:
            call.failures.append((host, error))
            raise


def _rotated(hosts: tuple[Host, ...], turn: int) -> tuple[Host, ...]:
    first = turn % len(hosts)
    return hosts[first:] + hosts[:first]
