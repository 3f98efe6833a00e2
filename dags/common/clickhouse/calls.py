"""Calls on a ClickHouse cluster: one function with its future, its deadline and its retries."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, stop_when_event_set
from tenacity.nap import sleep_using_event

from dags.common.clickhouse.errors import CallTimeoutError, ClusterError, one_line
from dags.common.clickhouse.hosts import Host
from dags.common.clickhouse.retry import RetryPolicy, is_connection_error, is_transient

if TYPE_CHECKING:
    from clickhouse_driver import Client

    from dags.common.clickhouse.session import DriverSession

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The thread that enforces the deadlines ends after this long without a call.
MAX_IDLE_SECONDS = 10.0


class Call(Generic[T]):
    """One function to call: its future, its deadline, and the session that it uses now."""

    def __init__(self, fn: Callable[["Client"], T], hosts: Sequence[Host], timeout_seconds: float) -> None:
        self.fn = fn
        self.hosts = hosts
        self.timeout_seconds = timeout_seconds
        self.deadline = time.monotonic() + timeout_seconds
        self.future: Future[T] = Future()
        self.ended = threading.Event()
        self.started = False
        self.failures: list[tuple[Host, BaseException]] = []
        # The host of the current attempt, or of the last one.
        self.host = hosts[0]
        self._session: DriverSession | None = None
        self._kill: Callable[[str], None] | None = None
        # Reentrant: callbacks of the future run while it is held, and may end this call.
        self._lock = threading.RLock()

    def expire(self, seconds: float) -> None:
        """End the call because `seconds` have passed."""
        hosts = ", ".join(map(str, self.hosts))
        self.end(
            CallTimeoutError(
                f"The ClickHouse call on {hosts} did not end within {seconds:g} seconds. Whether it had an effect is "
                "unknown. Look it up in system.processes and system.query_log; give a longer timeout_seconds if the "
                "work needs it."
            )
        )

    def end(self, error: BaseException) -> None:
        """End the call with an error, wake its thread, and kill its query on the server."""
        with self._lock:
            self._set_outcome(lambda: self.future.set_exception(error))
            self.ended.set()
            query_id = self._session.end() if self._session is not None else None
            kill = self._kill
        if query_id is not None and kill is not None:
            # In a thread, so that the caller does not wait. Not a daemon: the program waits for it before it exits.
            threading.Thread(target=kill, args=(query_id,), name=f"kill {query_id}").start()

    def seconds_left(self) -> float:
        """Return the seconds until the deadline; may be less than 0."""
        return self.deadline - time.monotonic()

    def run(self, retrying: Retrying, attempt: Callable[[], T]) -> None:
        """Make the attempts on this thread, and set the outcome of the future."""
        with self._lock:
            if self.future.done() or not self.future.set_running_or_notify_cancel():
                return
        try:
            result = retrying(attempt)
        except BaseException as error:  # noqa: BLE001 - as concurrent.futures does: it is raised where it is waited for
            self._add_notes(error)
            # Bound here, because the name of a caught error is gone after its block.
            self._set_outcome(lambda error=error: self.future.set_exception(error))  # type: ignore[misc]
        else:
            self._set_outcome(lambda: self.future.set_result(result))

    @contextlib.contextmanager
    def using(self, session: "DriverSession", kill: Callable[[str], None]) -> Iterator[None]:
        """Use the session: while it is in use, ending the call also ends the session and kills its query."""
        with self._lock:
            if self.ended.is_set():
                raise CallTimeoutError("The deadline of this call has passed.")
            self._session, self._kill = session, kill
        try:
            yield
        finally:
            with self._lock:
                self._session = None

    def _set_outcome(self, set_outcome: Callable[[], None]) -> None:
        with self._lock:
            if not self.future.done():
                # Its holder may cancel the future at this very moment: then nothing waits for the outcome.
                with contextlib.suppress(futures.InvalidStateError):
                    set_outcome()

    def _add_notes(self, error: BaseException) -> None:
        if not self.failures:
            return
        *earlier, (host, _) = self.failures
        error.add_note(f"On ClickHouse host {host}, attempt {len(self.failures)}.")
        for earlier_host, earlier_error in earlier:
            error.add_note(f"Before it, on {earlier_host}: {one_line(earlier_error)}")


class Deadlines:
    """The calls in progress, and one thread that ends those whose deadline has passed.

    The thread ends after MAX_IDLE_SECONDS without calls. A timer for each call would cost more than the call.
    """

    def __init__(self) -> None:
        self._calls: set[Call[Any]] = set()
        self._changed = threading.Condition()
        self._wakes_at = 0.0
        self._is_watched = False

    def add(self, call: Call[Any]) -> None:
        """End the call at its deadline, unless it has ended before."""
        with self._changed:
            self._calls.add(call)
            if not self._is_watched:
                self._is_watched = True
                threading.Thread(target=self._watch, name="clickhouse deadlines", daemon=True).start()
            elif call.deadline < self._wakes_at:
                self._changed.notify()
        call.future.add_done_callback(lambda _: self._remove(call))

    def in_progress(self) -> list[Call[Any]]:
        """Return the calls that have not ended."""
        with self._changed:
            return list(self._calls)

    def _remove(self, call: Call[Any]) -> None:
        with self._changed:
            self._calls.discard(call)

    def _watch(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                overdue = [call for call in self._calls if call.deadline <= now]
                if not overdue:
                    self._wakes_at = min((call.deadline for call in self._calls), default=now + MAX_IDLE_SECONDS)
                    is_notified = self._changed.wait(self._wakes_at - now)
                    if not is_notified and not self._calls:
                        self._is_watched = False
                        return
                self._calls.difference_update(overdue)
            # Outside of the lock: callbacks of the futures run here.
            for call in overdue:
                call.expire(call.timeout_seconds)


class FuturesMap(Mapping[Host, "Future[T]"], Generic[T]):
    """The futures of calls on several hosts, by host.

    A call that may run on any of several hosts is listed under the first of them.
    """

    def __init__(self, calls: Mapping[Host, Call[T]]) -> None:
        self._calls = dict(calls)

    def __getitem__(self, host: Host) -> "Future[T]":
        return self._calls[host].future

    def __iter__(self) -> Iterator[Host]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def result(self, timeout_seconds: float | None = None) -> dict[Host, T]:
        """Return the result of every call, by the host that ran it, in the order of the calls.

        Waits at most `timeout_seconds` for all together, then ends the calls still in progress; without it, until the
        deadline of each call. Raises ClusterError with the error of every host that failed.
        """
        results, failures = self.results_and_failures(timeout_seconds)
        if failures:
            raise ClusterError(failures, len(self))
        return results

    def results_and_failures(
        self, timeout_seconds: float | None = None
    ) -> tuple[dict[Host, T], dict[Host, BaseException]]:
        """Return the results and the errors, by host, when every call has ended: for callers that accept failures."""
        futures.wait(self.values(), timeout=timeout_seconds)
        if timeout_seconds is not None:
            for call in self._calls.values():
                call.expire(timeout_seconds)
        results: dict[Host, T] = {}
        failures: dict[Host, BaseException] = {}
        for call in self._calls.values():
            error = _error_of(call.future)
            if error is None:
                results[call.host] = call.future.result()
            else:
                failures[call.host] = error
        return results, failures


def retrying(call: Call[Any], policy: RetryPolicy, *, may_repeat: bool) -> Retrying:
    """Return the retries of a call. Before its function has started, a failed connection is always tried again."""
    backoff = policy.wait()

    def should_retry(error: BaseException) -> bool:
        return is_transient(error) and (may_repeat or not call.started)

    def wait_seconds(state: RetryCallState) -> float:
        _, error = call.failures[-1]
        has_untried_hosts = len(call.failures) < len(call.hosts)
        return 0.0 if has_untried_hosts and is_connection_error(error) else backoff(state)

    def log_retry(_: RetryCallState) -> None:
        host, error = call.failures[-1]
        logger.warning("The ClickHouse call on %s failed and is retried: %s", host, one_line(error))

    return Retrying(
        retry=retry_if_exception(should_retry),
        stop=stop_after_attempt(max(policy.attempts, len(call.hosts))) | stop_when_event_set(call.ended),
        wait=wait_seconds,
        sleep=sleep_using_event(call.ended),
        before_sleep=log_retry,
        reraise=True,
    )


def _error_of(future: "Future[Any]") -> BaseException | None:
    return futures.CancelledError("cancelled by its caller") if future.cancelled() else future.exception()
