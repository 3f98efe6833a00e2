"""A ClickHouse cluster as one value: calls on any host, all hosts, hosts of a role or one of each shard.

Calls have retries, deadlines and query tags.

What is retried is in `retry.py`; ready-made calls are in `query.py`. No Dagster here.
"""

import contextlib
import copy
import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_when_event_set
from tenacity.nap import sleep_using_event

from dags.common.clickhouse.query import Query
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.clickhouse.retry import RetryPolicy, is_connection_error, is_transient
from dags.common.settings import Settings

if TYPE_CHECKING:
    from clickhouse_driver import Client

    from dags.common.clickhouse.session import DriverSession

logger = logging.getLogger(__name__)
# The driver logs a traceback for each host that it cannot reach; here it is one line, or the error of the call.
logging.getLogger("clickhouse_driver.connection").setLevel(logging.ERROR)

T = TypeVar("T")

# For the connection, and again for the greeting on it.
CONNECT_TIMEOUT_SECONDS = 10.0
# For the answer to KILL QUERY … ASYNC, which does not wait for the query's end.
KILL_TIMEOUT_SECONDS = 10.0
CALL_TIMEOUT_SECONDS = 300.0
# A silent socket is given up after this long; the deadline of a call, which is shorter, cuts it off before.
LONGEST_CALL_SECONDS = 86_400.0
# After so long without a call, the thread that keeps the deadlines ends.
IDLE_SECONDS = 10.0
# Idle time, interval and probes after which the system reports a dead peer.
KEEPALIVE_SECONDS_AND_PROBES = (60, 15, 4)

HOSTS_STATEMENT = """
SELECT host_name, port, shard_num, replica_num FROM system.clusters
WHERE cluster = %(cluster)s ORDER BY shard_num, replica_num
"""

ROLE_STATEMENT = "SELECT substitution FROM system.macros WHERE macro = 'role'"

KILL_STATEMENT = "KILL QUERY WHERE query_id = %(query_id)s ASYNC"

# Role of a host that has no macro `role`, and of one that could not be asked.
DATA_ROLE = "data"
UNKNOWN_ROLE = "unknown"

ENGINE_STATEMENT = "SELECT engine FROM system.tables WHERE database = currentDatabase() AND name = %(table)s"


@dataclass(frozen=True, order=True)
class Host:
    """One server of the cluster. Shards and replicas count from 1; those of role `data` hold the rows."""

    address: str
    port: int
    shard: int = 1
    replica: int = 1
    role: str = DATA_ROLE

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


@dataclass(frozen=True)
class Access:
    """How to sign in on every host of the cluster."""

    user: str = "default"
    password: SecretStr = field(default=SecretStr(""), repr=False)
    database: str = "default"
    secure: bool = False


class CallTimeoutError(Exception):
    """A call did not end before its deadline. Whether it had an effect is unknown."""


class ClusterClosedError(RuntimeError):
    """The cluster was closed, before the call or in the middle of it."""


class UnknownClusterError(LookupError):
    """The server knows no cluster of the configured name."""


class UnknownShardError(LookupError):
    """The cluster has no shard of this number."""


class UnknownRoleError(LookupError):
    """The cluster has no host of this role, or hosts whose role is not known."""


class ClusterError(Exception):
    """A call failed on some hosts. `errors` has the error of each; the message names them all."""

    def __init__(self, errors_by_host: Mapping[Host, BaseException], host_count: int) -> None:
        self.errors = dict(errors_by_host)
        lines = [f"- {host}: {one_line(error)}" for host, error in self.errors.items()]
        super().__init__(f"The call failed on {len(lines)} of {host_count} ClickHouse hosts:\n" + "\n".join(lines))


class _Pool:
    """The connections to one host: at most `size` in use, idle ones kept, doubtful ones closed."""

    def __init__(self, host: Host, access: Access, size: int) -> None:
        self.host = host
        self._access = access
        self._slots = threading.BoundedSemaphore(size)
        self._idle: list[DriverSession] = []
        self._closed = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def session(self, settings: Mapping[str, Any], wait_seconds: float) -> Iterator["DriverSession"]:
        """A session, which may not be connected; it goes back to the pool only when it was left as it was found."""
        if not self._slots.acquire(timeout=max(wait_seconds, 0)):
            raise CallTimeoutError(f"No connection to {self.host} came free.")
        try:
            session = self._idle_session() or self._new_session()
            session.call_settings = settings
            try:
                yield session
            except BaseException:
                session.disconnect()
                raise
            self._give_back(session)
        finally:
            self._slots.release()

    def kill(self, query_id: str, settings: Mapping[str, Any]) -> None:
        """Tells the server to stop the query, on a connection of its own: the pool's may all be stuck."""
        from clickhouse_driver import errors

        try:
            session = self._new_session()
            try:
                session.call_settings = settings
                session.connection.silence_seconds = KILL_TIMEOUT_SECONDS
                session.execute(KILL_STATEMENT, {"query_id": query_id})
            finally:
                session.disconnect()
        except (errors.Error, OSError, EOFError) as error:
            logger.warning("Query %s on %s was not killed, and may still run: %s", query_id, self.host, one_line(error))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.disconnect()

    def _idle_session(self) -> "DriverSession | None":
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _new_session(self) -> "DriverSession":
        # The driver takes long to import, and most who import this module never connect.
        from dags.common.clickhouse.session import DriverSession

        return DriverSession(
            host=self.host.address,
            port=self.host.port,
            user=self._access.user,
            password=self._access.password.get_secret_value(),
            database=self._access.database,
            secure=self._access.secure,
            client_name="analytics-platform",
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            # Until the server has greeted: a silent one must not hold a thread.
            send_receive_timeout=CONNECT_TIMEOUT_SECONDS,
            tcp_keepalive=KEEPALIVE_SECONDS_AND_PROBES,
            # One call, one session: a silent reconnect would lose temporary tables in the middle of it.
            disable_reconnect=True,
        )

    def _give_back(self, session: "DriverSession") -> None:
        connection = session.connection
        as_found = (
            connection.connected
            and not connection.is_query_executing
            and not session.ended
            and connection.database == self._access.database
        )
        with self._lock:
            keep = as_found and not self._closed
            if keep:
                self._idle.append(session)
        if not keep:
            session.disconnect()


class _Call(Generic[T]):
    """One function on its way: its future, its deadline, and the session that it uses now."""

    def __init__(self, fn: Callable[["Client"], T], hosts: Sequence[Host], timeout_seconds: float) -> None:
        self.fn = fn
        self.hosts = hosts
        self.timeout_seconds = timeout_seconds
        self.deadline = time.monotonic() + timeout_seconds
        self.future: Future[T] = Future()
        self.over = threading.Event()
        self.started = False
        self.failures: list[tuple[Host, BaseException]] = []
        # The host of the attempt under way, or of the last one.
        self.host = hosts[0]
        self._session: DriverSession | None = None
        self._kill: Callable[[str], None] | None = None
        # Reentrant: callbacks of the future run while it is held, and may end this call.
        self._lock = threading.RLock()

    def expire(self, seconds: float) -> None:
        """Ends the call because `seconds` have passed."""
        hosts = ", ".join(map(str, self.hosts))
        self.end(
            CallTimeoutError(
                f"The ClickHouse call on {hosts} did not end within {seconds:g} seconds. Whether it had an effect is "
                "unknown. Look it up in system.processes and system.query_log; give a longer timeout_seconds if the "
                "work needs it."
            )
        )

    def end(self, error: BaseException) -> None:
        """Ends the call with an error, wakes its thread, and has the server stop the query under way."""
        with self._lock:
            self._settle(lambda: self.future.set_exception(error))
            self.over.set()
            query_id = self._session.end() if self._session is not None else None
            kill = self._kill
        if query_id is not None and kill is not None:
            # A thread of its own: whoever ends the call does not wait. No daemon: the end of the program waits for it.
            threading.Thread(target=kill, args=(query_id,), name=f"kill {query_id}").start()

    def seconds_left(self) -> float:
        """Until the deadline; may be less than 0."""
        return self.deadline - time.monotonic()

    def run(self, retrying: Retrying, attempt: Callable[[], T]) -> None:
        """Makes the attempts on this thread, and settles the future."""
        with self._lock:
            if self.future.done() or not self.future.set_running_or_notify_cancel():
                return
        try:
            result = retrying(attempt)
        except BaseException as error:  # noqa: BLE001 - as concurrent.futures does: it is raised where it is waited for
            self._describe(error)
            # Bound here, because the name of a caught error is gone after its block.
            self._settle(lambda error=error: self.future.set_exception(error))  # type: ignore[misc]
        else:
            self._settle(lambda: self.future.set_result(result))

    @contextlib.contextmanager
    def using(self, session: "DriverSession", kill: Callable[[str], None]) -> Iterator[None]:
        """While the session is in use here, the end of the call ends it, and kills its query."""
        with self._lock:
            if self.over.is_set():
                raise CallTimeoutError("The deadline of this call has passed.")
            self._session, self._kill = session, kill
        try:
            yield
        finally:
            with self._lock:
                self._session = None

    def _settle(self, settle: Callable[[], None]) -> None:
        with self._lock:
            if not self.future.done():
                # Cancelled by its holder in this very moment: nobody waits for it.
                with contextlib.suppress(futures.InvalidStateError):
                    settle()

    def _describe(self, error: BaseException) -> None:
        if not self.failures:
            return
        *earlier, (host, _) = self.failures
        error.add_note(f"On ClickHouse host {host}, attempt {len(self.failures)}.")
        for earlier_host, earlier_error in earlier:
            error.add_note(f"Before it, on {earlier_host}: {one_line(earlier_error)}")


class _Deadlines:
    """The calls under way, and one thread that ends those whose time is up. It ends after a while without calls.

    A timer for each call would cost more than the call.
    """

    def __init__(self) -> None:
        self._calls: set[_Call[Any]] = set()
        self._changed = threading.Condition()
        self._wakes_at = 0.0
        self._is_watched = False

    def add(self, call: _Call[Any]) -> None:
        """From now on the call is ended at its deadline."""
        with self._changed:
            self._calls.add(call)
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, name="clickhouse deadlines", daemon=True).start()
            elif call.deadline < self._wakes_at:
                self._changed.notify()
        call.future.add_done_callback(lambda _: self._remove(call))

    def under_way(self) -> list[_Call[Any]]:
        """The calls that are not over."""
        with self._changed:
            return list(self._calls)

    def _remove(self, call: _Call[Any]) -> None:
        with self._changed:
            self._calls.discard(call)

    def _watch(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                overdue = [call for call in self._calls if call.deadline <= now]
                if not overdue:
                    self._wakes_at = min((call.deadline for call in self._calls), default=now + IDLE_SECONDS)
                    is_told = self._changed.wait(self._wakes_at - now)
                    if not is_told and not self._calls:
                        self._is_watched = False
                        return
                self._calls.difference_update(overdue)
            # Outside of the lock: callbacks of the futures run here.
            for call in overdue:
                call.expire(call.timeout_seconds)


class FuturesMap(Mapping[Host, "Future[T]"], Generic[T]):
    """The futures of one call on several hosts, by host.

    A call that may go to any of several hosts is listed under the first of them.
    """

    def __init__(self, calls: Mapping[Host, _Call[T]]) -> None:
        self._calls = dict(calls)

    def __getitem__(self, host: Host) -> "Future[T]":
        return self._calls[host].future

    def __iter__(self) -> Iterator[Host]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def result(self, timeout_seconds: float | None = None) -> dict[Host, T]:
        """The result of every host, when all have one; of several hosts, the one that gave it.

        Waits at most `timeout_seconds` for all together, then ends the calls still under way; without it, until the
        deadline of each call. Raises ClusterError with the error of every host that failed, chained to the first.
        """
        futures.wait(self.values(), timeout=timeout_seconds)
        if timeout_seconds is not None:
            for call in self._calls.values():
                call.expire(timeout_seconds)
        calls = self._calls.values()
        failed = {call.host: error for call in calls if (error := _error_of(call.future)) is not None}
        if failed:
            raise ClusterError(failed, len(self)) from next(iter(failed.values()))
        return {call.host: call.future.result() for call in calls}


@dataclass(frozen=True)
class _Shared:
    """What a cluster and its tagged copies have in common."""

    pools: Mapping[Host, _Pool]
    # One for each host: calls that wait for a host that is stuck take no thread from the others.
    executors: Mapping[Host, ThreadPoolExecutor]
    policy: RetryPolicy
    turn: "itertools.count[int]" = field(default_factory=itertools.count)
    deadlines: _Deadlines = field(default_factory=_Deadlines)
    closed: threading.Event = field(default_factory=threading.Event)


class ClickhouseCluster:
    """The hosts of one ClickHouse cluster.

    A call is a function of a `clickhouse_driver.Client` that runs on another thread; what it returns or raises comes
    out of a future. It must use up the results it asks for, and leave no SET, USE or temporary table behind. It must
    not wait for another call of the same cluster: there may be no thread left for that one.

    A call is made again only if that is safe. Before the function has begun, a connection that fails is always tried
    again. Once it has begun, it is called again, after a transient error, only if it is `retryable`: by the argument,
    or by an attribute of the function, as `Query` and `Insert` have. Everything else is called at most once.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        access: Access = Access(),
        *,
        name: str | None = None,
        policy: RetryPolicy | None = None,
        connections_per_host: int = 4,
        call_timeout_seconds: float = CALL_TIMEOUT_SECONDS,
    ) -> None:
        """No connection is made yet. `name` is the cluster's in system.clusters. Raises ValueError without hosts."""
        if not hosts:
            raise ValueError("A ClickHouse cluster needs at least one host.")
        self.hosts = tuple(hosts)
        self.name = name
        self.database = access.database
        self._call_timeout_seconds = call_timeout_seconds
        self._settings: Mapping[str, Any] = {}
        self._shared = _Shared(
            pools={host: _Pool(host, access, connections_per_host) for host in self.hosts},
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
        return sorted({host.shard for host in self._data_hosts()})

    def replicas_of(self, shard: int) -> tuple[Host, ...]:
        """The hosts that have the rows of this shard. Raises UnknownShardError."""
        replicas = tuple(host for host in self._data_hosts() if host.shard == shard)
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
        """Calls `fn` once on one host; the hosts take turns. A host that cannot be reached is passed over.

        `timeout_seconds` is for everything: waiting for a thread, all attempts, all waits. The future raises what `fn`
        raised last, with notes that name the hosts, or CallTimeoutError.
        """
        first = next(self._shared.turn) % len(self.hosts)
        in_turn = self.hosts[first:] + self.hosts[:first]
        return self._submit(fn, in_turn, retryable=retryable, timeout_seconds=timeout_seconds).future

    def map_all_hosts(
        self,
        fn: Callable[["Client"], T],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Calls `fn` on every host at once. `timeout_seconds` is for each host."""
        return FuturesMap(
            {
                host: self._submit(fn, (host,), retryable=retryable, timeout_seconds=timeout_seconds)
                for host in self.hosts
            }
        )

    def map_hosts_by_role(
        self,
        fn: Callable[["Client"], T],
        role: str,
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Calls `fn` on every host of that role at once. `timeout_seconds` is for each host.

        Raises UnknownRoleError when no host has the role, or when some host's role could not be learned: leaving such
        a host out could leave out what was meant.
        """
        roles = {host: host.role for host in self.hosts}
        unknown = [str(host) for host, its_role in roles.items() if its_role == UNKNOWN_ROLE]
        if unknown:
            raise UnknownRoleError(
                f"The role of {', '.join(unknown)} is not known, because it could not be asked. Try again when it "
                "answers."
            )
        hosts = [host for host, its_role in roles.items() if its_role == role]
        if not hosts:
            known = ", ".join(sorted(set(roles.values())))
            raise UnknownRoleError(f"No host of this ClickHouse cluster has the role '{role}', only: {known}.")
        return FuturesMap(
            {host: self._submit(fn, (host,), retryable=retryable, timeout_seconds=timeout_seconds) for host in hosts}
        )

    def map_one_host_per_shard(
        self,
        fn: Callable[["Client"], T],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Calls `fn` once for each shard, on one of its replicas: see `map_any_host_in_shards`."""
        by_shard = dict.fromkeys(self.shards, fn)
        return self.map_any_host_in_shards(by_shard, retryable=retryable, timeout_seconds=timeout_seconds)

    def map_any_host_in_shards(
        self,
        fn_by_shard: Mapping[int, Callable[["Client"], T]],
        *,
        retryable: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> FuturesMap[T]:
        """Calls the function of each shard once, on one of its replicas, which take turns; all shards at once.

        A replica that cannot be reached is passed over, and one that fails is followed by the next if the call may be
        made again. `timeout_seconds` is for each shard, with all its attempts. The result is keyed by the host that
        gave it, whose `shard` is the shard. Raises UnknownShardError before anything is called.
        """
        turn = next(self._shared.turn)
        replicas_by_shard = {shard: self.replicas_of(shard) for shard in fn_by_shard}
        calls = {}
        for shard, replicas in replicas_by_shard.items():
            first = turn % len(replicas)
            in_turn = replicas[first:] + replicas[:first]
            call = self._submit(fn_by_shard[shard], in_turn, retryable=retryable, timeout_seconds=timeout_seconds)
            calls[in_turn[0]] = call
        return FuturesMap(calls)

    def tagged(self, tags: QueryTags) -> "ClickhouseCluster":
        """The same cluster and connections, with the tags as `log_comment` on every query."""
        tagged = copy.copy(self)
        tagged._settings = {**self._settings, "log_comment": tags.to_json()}  # noqa: SLF001 - of this class
        return tagged

    def is_replicated(self, table: str) -> bool:
        """Whether a row written to `table` on one host reaches the others. The servers know; a setting may be wrong."""
        rows = self.any_host(Query(ENGINE_STATEMENT, {"table": table})).result()
        return any(engine.startswith("Replicated") for (engine,) in rows)

    def only(self, host: Host) -> "ClickhouseCluster":
        """The same cluster and connections, with calls on that one host: for tables that are on it alone."""
        return self.among([host])

    def among(self, hosts: Sequence[Host]) -> "ClickhouseCluster":
        """The same cluster and connections, with calls on these hosts. Raises ValueError for one it has not."""
        if not hosts:
            raise ValueError("Give at least one host of this cluster.")
        for host in hosts:
            if host not in self.hosts:
                raise ValueError(f"{host} is not among the hosts of this cluster: {', '.join(map(str, self.hosts))}.")
        narrowed = copy.copy(self)
        narrowed.hosts = tuple(hosts)
        return narrowed

    def close(self) -> None:
        """Ends every call under way, kills its query and closes the connections, those of tagged copies too."""
        self._shared.closed.set()
        for call in self._shared.deadlines.under_way():
            call.end(ClusterClosedError("The ClickHouse cluster was closed while this call was under way."))
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
    ) -> _Call[T]:
        seconds = self._call_timeout_seconds if timeout_seconds is None else timeout_seconds
        if not 0 < seconds <= LONGEST_CALL_SECONDS:
            raise ValueError(f"timeout_seconds is {seconds:g}: give more than 0 and at most {LONGEST_CALL_SECONDS:g}.")
        may_repeat = bool(getattr(fn, "retryable", False)) if retryable is None else retryable
        if self._shared.closed.is_set():
            raise ClusterClosedError("The ClickHouse cluster is closed.")
        call = _Call(fn, hosts, seconds)
        self._shared.deadlines.add(call)
        retrying = _retrying(call, self._shared.policy, may_repeat=may_repeat)
        try:
            self._shared.executors[hosts[0]].submit(call.run, retrying, lambda: self._attempt(call))
        except RuntimeError as error:
            # Closed by another thread since the check above.
            call.end(ClusterClosedError("The ClickHouse cluster is closed."))
            raise ClusterClosedError("The ClickHouse cluster is closed.") from error
        return call

    def _attempt(self, call: _Call[T]) -> T:
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

    def _data_hosts(self) -> list[Host]:
        # One whose role is not known counts: if it holds rows, leaving it out would hide a shard.
        return [host for host in self.hosts if host.role in (DATA_ROLE, UNKNOWN_ROLE)]


def connect(access: Access, address: str, port: int, cluster_name: str | None = None) -> ClickhouseCluster:
    """The cluster of that name as the server at `address:port` knows it; without a name, that one server.

    Each host is asked for its role. Raises UnknownClusterError when the server has no cluster of that name, and what
    any_host raises when the server cannot be asked.
    """
    seed = ClickhouseCluster([Host(address, port)], access)
    if cluster_name is None:
        return seed
    with seed:
        rows = seed.any_host(Query(HOSTS_STATEMENT, {"cluster": cluster_name})).result()
        if not rows:
            known = seed.any_host(Query("SELECT DISTINCT cluster FROM system.clusters ORDER BY cluster")).result()
            raise UnknownClusterError(
                f"ClickHouse at {address}:{port} knows no cluster '{cluster_name}', only: "
                f"{', '.join(name for (name,) in known) or 'none'}. Set CLICKHOUSE_CLUSTER to one of them, or unset it "
                "to use this one host."
            )
    # A server that plays two parts in the cluster is called once.
    hosts = {(name, host_port): Host(name, host_port, shard, replica) for name, host_port, shard, replica in rows[::-1]}
    ordered = sorted(hosts.values(), key=lambda host: (host.shard, host.replica))
    return ClickhouseCluster(_with_roles(ordered, access), access, name=cluster_name)


def _with_roles(hosts: Sequence[Host], access: Access) -> list[Host]:
    # One attempt each: a host that is down must not hold up everybody, and its role is asked again next time.
    with ClickhouseCluster(hosts, access, policy=RetryPolicy(attempts=1)) as cluster:
        asked = cluster.map_all_hosts(Query(ROLE_STATEMENT), timeout_seconds=CONNECT_TIMEOUT_SECONDS)
        futures.wait(asked.values())
        roles = {}
        for host, future in asked.items():
            error = future.exception()
            if error is None:
                roles[host] = next((str(role) for (role,) in future.result()), DATA_ROLE)
            else:
                logger.warning("The role of ClickHouse host %s is not known: %s", host, one_line(error))
                roles[host] = UNKNOWN_ROLE
    return [dataclasses.replace(host, role=role) for host, role in roles.items()]


def access_from_settings(settings: Settings) -> Access:
    """How the environment says to sign in."""
    return Access(
        user=settings.clickhouse_user,
        password=settings.clickhouse_password,
        database=settings.clickhouse_database,
        secure=settings.clickhouse_secure,
    )


def cluster_from_settings(settings: Settings) -> ClickhouseCluster:
    """The cluster that the environment names. Raises as `connect` does."""
    access = access_from_settings(settings)
    return connect(access, settings.clickhouse_host, settings.clickhouse_port, settings.clickhouse_cluster)


def _retrying(call: _Call[Any], policy: RetryPolicy, *, may_repeat: bool) -> Retrying:
    backoff = policy.wait()

    def should_retry(error: BaseException) -> bool:
        return is_transient(error) and (may_repeat or not call.started)

    def wait_seconds(state: RetryCallState) -> float:
        _, error = call.failures[-1]
        untried_hosts = len(call.failures) < len(call.hosts)
        return 0.0 if untried_hosts and is_connection_error(error) else backoff(state)

    def log_retry(_: RetryCallState) -> None:
        host, error = call.failures[-1]
        logger.warning("ClickHouse call on %s failed and is made again: %s", host, one_line(error))

    return Retrying(
        retry=retry_if_exception(should_retry),
        stop=stop_after_attempt(max(policy.attempts, len(call.hosts))) | stop_when_event_set(call.over),
        wait=wait_seconds,
        sleep=sleep_using_event(call.over),
        before_sleep=log_retry,
        reraise=True,
    )


def _error_of(future: "Future[Any]") -> BaseException | None:
    return futures.CancelledError("cancelled by its caller") if future.cancelled() else future.exception()


def one_line(error: BaseException) -> str:
    """The error with its type, without line breaks and without the server's stack trace."""
    text = str(error).split("Stack trace:", 1)[0]
    return f"{type(error).__name__}: {' '.join(text.split())}"
