"""Which errors are transient, by one table of server error codes, and how long to wait before a retry.

Whether a call may be repeated at all is for its caller to say: see `retryable` in `cluster.py`.
"""

import errno
from dataclasses import dataclass

from tenacity import wait_exponential, wait_random
from tenacity.wait import wait_base

NETWORK_ERRNOS = {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}


@dataclass(frozen=True)
class ServerError:
    """One error code of the server. With `only_if`, it is transient only if the message contains that text."""

    name: str
    transient: bool
    reason: str
    only_if: str | None = None


def _transient(name: str, reason: str, only_if: str | None = None) -> ServerError:
    return ServerError(name, transient=True, reason=reason, only_if=only_if)


def _permanent(name: str, reason: str) -> ServerError:
    return ServerError(name, transient=False, reason=reason)


# Any other code is permanent: an unknown error is raised at once.
SERVER_ERRORS: dict[int, ServerError] = {
    32: _transient("ATTEMPT_TO_READ_AFTER_EOF", "another server closed the connection during a distributed query"),
    47: _permanent("UNKNOWN_IDENTIFIER", "the statement is wrong"),
    57: _permanent("TABLE_ALREADY_EXISTS", "it exists: use IF NOT EXISTS where that is fine"),
    60: _permanent("UNKNOWN_TABLE", "the schema was not applied, or the statement is wrong"),
    62: _permanent("SYNTAX_ERROR", "the statement is wrong"),
    81: _permanent("UNKNOWN_DATABASE", "the configuration is wrong"),
    158: _permanent("TOO_MANY_ROWS", "a limit of the query: a retry exceeds it too"),
    159: _permanent("TIMEOUT_EXCEEDED", "the query exceeded its time limit: a retry doubles the load, and fails too"),
    160: _permanent("TOO_SLOW", "a limit of the query: a retry exceeds it too"),
    164: _permanent("READONLY", "the user may not write"),
    202: _transient("TOO_MANY_SIMULTANEOUS_QUERIES", "refused before it started, until other queries have ended"),
    203: _transient("NO_FREE_CONNECTION", "the server's own connections to other servers are all in use"),
    209: _transient("SOCKET_TIMEOUT", "the network, or a server that restarts"),
    210: _transient("NETWORK_ERROR", "the network, or a server that restarts"),
    225: _transient("NO_ZOOKEEPER", "the session with Keeper is being renewed"),
    236: _transient("ABORTED", "the server is shutting down to restart"),
    241: _transient("MEMORY_LIMIT_EXCEEDED", "the server as a whole is short of memory for now", only_if="(total)"),
    242: _transient("TABLE_IS_READ_ONLY", "the replica has lost Keeper for now"),
    243: _permanent("NOT_ENOUGH_SPACE", "no space is freed within a retry"),
    252: _transient("TOO_MANY_PARTS", "merges catch up"),
    279: _transient("ALL_CONNECTION_TRIES_FAILED", "the server could not reach another server"),
    285: _transient("TOO_FEW_LIVE_REPLICAS", "replicas come back"),
    286: _transient("UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", "the previous write is still in progress"),
    307: _permanent("TOO_MANY_BYTES", "a limit of the query: a retry exceeds it too"),
    319: _transient("UNKNOWN_STATUS_OF_INSERT", "Keeper was lost during the commit; a token makes a retry safe"),
    341: _permanent("UNFINISHED", "a mutation failed or was killed: its reason must be read"),
    394: _permanent("QUERY_WAS_CANCELLED", "the query was killed on purpose"),
    439: _transient("CANNOT_SCHEDULE_TASK", "refused before it started, because all threads are in use"),
    473: _transient("DEADLOCK_AVOIDED", "another statement held the table's lock for too long"),
    497: _permanent("ACCESS_DENIED", "the user lacks a grant"),
    499: _permanent("S3_ERROR", "the server has already retried what can be retried in object storage"),
    516: _permanent("AUTHENTICATION_FAILED", "the user or the password is wrong"),
    517: _transient("CANNOT_ASSIGN_ALTER", "another ALTER of the same table was first"),
    529: _transient("NOT_A_LEADER", "another replica is being chosen"),
    692: _permanent("TOO_MANY_MUTATIONS", "mutations take longer than a retry waits"),
    733: _transient("TABLE_IS_BEING_RESTARTED", "it is available again after the restart"),
    745: _transient("SERVER_OVERLOADED", "the server sheds load for now"),
    999: _transient("KEEPER_EXCEPTION", "the session with Keeper was lost or is being renewed"),
}


def is_connection_error(error: BaseException) -> bool:
    """Return whether the connection to the server failed: the same call may succeed on another host."""
    from clickhouse_driver import errors

    if isinstance(error, errors.NetworkError | errors.SocketTimeoutError | EOFError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in NETWORK_ERRNOS


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later: a failed connection, or a transient code of the table."""
    from clickhouse_driver import errors

    if isinstance(error, errors.ServerException):
        known = SERVER_ERRORS.get(error.code)
        return known is not None and known.transient and (known.only_if is None or known.only_if in error.message)
    return is_connection_error(error)


@dataclass(frozen=True)
class RetryPolicy:
    """How often to try, and how long to wait: the wait doubles from the first to the maximum, plus jitter."""

    attempts: int = 5
    first_wait_seconds: float = 0.2
    max_wait_seconds: float = 10.0

    def wait(self) -> wait_base:
        """Return the waits between attempts for tenacity."""
        growing = wait_exponential(multiplier=self.first_wait_seconds, max=self.max_wait_seconds)
        return growing + wait_random(0, self.first_wait_seconds)
