"""A ClickHouse cluster as one value: calls on any host or on all hosts, with retries, deadlines and query tags.

What is retried is in `retry.py`; ready-made calls are in `query.py`. No Dagster here.
"""

import contextlib
import copy
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

from clickhouse_driver import Client, errors
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_when_event_set
from tenacity.nap import sleep_using_event

from dags.common.clickhouse.query import Query
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.clickhouse.retry import RetryPolicy, is_connection_error, is_transient
from dags.common.settings import Settings

logger = logging.getLogger(__name__)
# The driver logs a traceback for each host that it cannot reach; here it is one line, or the error of the call.
logging.getLogger("clickhouse_driver.connection").setLevel(logging.ERROR)

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 10.0
CALL_TIMEOUT_SECONDS = 300.0
# A silent socket is given up after this long; the deadline of a call, which is shorter, cuts it off before.
LONGEST_CALL_SECONDS = 86_400.0
# Idle time, interval and probes after which the system reports a dead peer.
KEEPALIVE_SECONDS_AND_PROBES = (60, 15, 4)

HOSTS_STATEMENT = """
SELECT host_name, port, shard_num, replica_num FROM system.clusters
WHERE cluster = %(cluster)s ORDER BY shard_num, replica_num
"""

ENGINE_STATEMENT = "SELECT engine FROM system.tables WHERE database = currentDatabase() AND name = %(table)s"


@dataclass(frozen=True, order=True)
class Host:
    """One server of the cluster. Shards and replicas count from 1."""

    address: str
    port: int
    shard: int = 1
    replica: int = 1

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


class ClusterError(Exception):
    """A call failed on some hosts. `errors` has the error of each; the message names them all."""

    def __init__(self, errors_by_host: Mapping[Host, BaseException], host_count: int) -> None:
        self.errors = dict(errors_by_host)
        lines = [f"- {host}: {one_line(error)}" for host, error in self.errors.items()]
        super().__init__(f"The call failed on {len(lines)} of {host_count} ClickHouse hosts:\n" + "\n".join(lines))


class _Session(Client):  # type: ignore[misc] # clickhouse_driver has no types
    """A client that adds a call's settings to every query, and that ends for good when the call's time is up."""

    call_settings: Mapping[str, Any]
    ended: bool = False

    def establish_connection(self, settings: Mapping[str, Any] | None) -> None:
        if self.ended:
            raise CallTimeoutError("The deadline of this call has passed: its client takes no more queries.")
        super().establish_connection({**self.call_settings, **(settings or {})})

    def end(self) -> None:
        """Wakes the thread that waits for the server. The server stops a query whose client has gone."""
        self.ended = True
        socket = self.connection.socket
        if socket is not None:
            # It may be closed already: then there is nobody to wake.
            with contextlib.suppress(OSError):
                socket.shutdown(2)


class _Pool:
    """The connections to one host: at most `size` in use, idle ones kept, doubtful ones closed."""

    def __init__(self, host: Host, access: Access, size: int) -> None:
        self.host = host
        self._access = access
        self._slots = threading.BoundedSemaphore(size)
        self._idle: list[_Session] = []
        self._closed = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def session(self, settings: Mapping[str, Any]) -> Iterator[_Session]:
        """A connected session; it goes back to the pool only when it was left as it was found."""
        if not self._slots.acquire(timeout=LONGEST_CALL_SECONDS):
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

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for session in idle:
            session.disconnect()

    def _idle_session(self) -> _Session | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                session = self._idle.pop()
            try:
                if session.connection.ping():
                    return session
            except (errors.Error, OSError):
                logger.info("An idle connection to %s gave a wrong answer to a ping, and is closed.", self.host)
            session.disconnect()

    def _new_session(self) -> _Session:
        session = _Session(
            host=self.host.address,
            port=self.host.port,
            user=self._access.user,
            password=self._access.password.get_secret_value(),
            database=self._access.database,
            secure=self._access.secure,
            client_name="analytics-platform",
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            send_receive_timeout=LONGEST_CALL_SECONDS,
            tcp_keepalive=KEEPALIVE_SECONDS_AND_PROBES,
            # One call, one session: a silent reconnect would lose temporary tables in the middle of it.
            disable_reconnect=True,
        )
        try:
            session.connection.connect()
        except BaseException:
            session.disconnect()
            raise
        return session

    def _give_back(self, session: _Session) -> None:
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

    def __init__(self, fn: Callable[[Client], T], hosts: Sequence[Host], timeout_seconds: float) -> None:
        self.fn = fn
        self.hosts = hosts
        self.timeout_seconds = timeout_seconds
        self.future: Future[T] = Future()
        self.over = threading.Event()
        self.started = False
        self.failures: list[tuple[Host, BaseException]] = []
        self._session: _Session | None = None
        # Reentrant: callbacks of the future run while it is held, and may end this call.
        self._lock = threading.RLock()
        timer = threading.Timer(timeout_seconds, self.expire, args=(timeout_seconds,))
        timer.daemon = True
        self.future.add_done_callback(lambda _: timer.cancel())
        timer.start()

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
        """Ends the call with an error, and wakes its thread."""
        with self._lock:
            self._settle(lambda: self.future.set_exception(error))
            self.over.set()
            if self._session is not None:
                self._session.end()

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
    def using(self, session: _Session) -> Iterator[None]:
        """While the session is in use here, the end of the call ends it."""
        with self._lock:
            if self.over.is_set():
                raise CallTimeoutError("The deadline of this call has passed.")
            self._session = session
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


class FuturesMap(Mapping[Host, "Future[T]"], Generic[T]):
    """The futures of one call on several hosts, by host."""

    def __init__(self, calls: Mapping[Host, _Call[T]]) -> None:
        self._calls = dict(calls)

    def __getitem__(self, host: Host) -> "Future[T]":
        return self._calls[host].future

    def __iter__(self) -> Iterator[Host]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def result(self, timeout_seconds: float | None = None) -> dict[Host, T]:
        """The result of every host, when all have one.

        Waits at most `timeout_seconds` for all together, then ends the calls still under way; without it, until the
        deadline of each call. Raises ClusterError with the error of every host that failed, chained to the first.
        """
        futures.wait(self.values(), timeout=timeout_seconds)
        if timeout_seconds is not None:
            for call in self._calls.values():
                call.expire(timeout_seconds)
        failed = {host: error for host, future in self.items() if (error := _error_of(future)) is not None}
        if failed:
            raise ClusterError(failed, len(self)) from next(iter(failed.values()))
        return {host: future.result() for host, future in self.items()}


@dataclass(frozen=True)
class _Shared:
    """What a cluster and its tagged copies have in common."""

    pools: Mapping[Host, _Pool]
    executor: ThreadPoolExecutor
    policy: RetryPolicy
    turn: "itertools.count[int]" = field(default_factory=itertools.count)
    calls: "set[_Call[Any]]" = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
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
            executor=ThreadPoolExecutor(connections_per_host * len(self.hosts), thread_name_prefix="clickhouse"),
            policy=policy or RetryPolicy(),
        )

    def __repr__(self) -> str:
        return f"ClickhouseCluster({', '.join(map(str, self.hosts))})"

    def any_host(
        self,
        fn: Callable[[Client], T],
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
        fn: Callable[[Client], T],
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
        if host not in self.hosts:
            raise ValueError(f"{host} is not among the hosts of this cluster: {', '.join(map(str, self.hosts))}.")
        pinned = copy.copy(self)
        pinned.hosts = (host,)
        return pinned

    def close(self) -> None:
        """Ends every call under way and closes the connections, those of tagged copies too."""
        self._shared.closed.set()
        with self._shared.lock:
            calls = list(self._shared.calls)
        for call in calls:
            call.end(ClusterClosedError("The ClickHouse cluster was closed while this call was under way."))
        self._shared.executor.shutdown(wait=False, cancel_futures=True)
        for pool in self._shared.pools.values():
            pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self, fn: Callable[[Client], T], hosts: Sequence[Host], *, retryable: bool | None, timeout_seconds: float | None
    ) -> _Call[T]:
        seconds = self._call_timeout_seconds if timeout_seconds is None else timeout_seconds
        if not 0 < seconds <= LONGEST_CALL_SECONDS:
            raise ValueError(f"timeout_seconds is {seconds:g}: give more than 0 and at most {LONGEST_CALL_SECONDS:g}.")
        may_repeat = bool(getattr(fn, "retryable", False)) if retryable is None else retryable
        if self._shared.closed.is_set():
            raise ClusterClosedError("The ClickHouse cluster is closed.")
        call = _Call(fn, hosts, seconds)
        with self._shared.lock:
            self._shared.calls.add(call)
        call.future.add_done_callback(lambda _: self._forget(call))
        retrying = _retrying(call, self._shared.policy, may_repeat=may_repeat)
        try:
            self._shared.executor.submit(call.run, retrying, lambda: self._attempt(call))
        except RuntimeError as error:
            # Closed by another thread since the check above.
            call.end(ClusterClosedError("The ClickHouse cluster is closed."))
            raise ClusterClosedError("The ClickHouse cluster is closed.") from error
        return call

    def _attempt(self, call: _Call[T]) -> T:
        host = call.hosts[len(call.failures) % len(call.hosts)]
        try:
            with self._shared.pools[host].session(self._settings) as session, call.using(session):
                call.started = True
                return call.fn(session)
        except BaseException as error:
            call.failures.append((host, error))
            raise

    def _forget(self, call: _Call[Any]) -> None:
        with self._shared.lock:
            self._shared.calls.discard(call)


def connect(access: Access, address: str, port: int, cluster_name: str | None = None) -> ClickhouseCluster:
    """The cluster of that name as the server at `address:port` knows it; without a name, that one server.

    Raises UnknownClusterError when the server has no cluster of that name, and what any_host raises when the server
    cannot be asked.
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
    return ClickhouseCluster(ordered, access, name=cluster_name)


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
