"""Which errors pass by themselves, in one table of server error codes, and how long to wait before trying again.

Whether a call may be made twice is the caller's knowledge: see `retryable` in `cluster.py`.
"""

import errno
from dataclasses import dataclass

from tenacity import wait_exponential, wait_random
from tenacity.wait import wait_base

NETWORK_ERRNOS = {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH}


@dataclass(frozen=True)
class ServerError:
    """One error code of the server. With `only_if`, it is transient only when that text is in the message."""

    name: str
    transient: bool
    reason: str
    only_if: str | None = None


def _transient(name: str, reason: str, only_if: str | None = None) -> ServerError:
    return ServerError(name, transient=True, reason=reason, only_if=only_if)


def _permanent(name: str, reason: str) -> ServerError:
    return ServerError(name, transient=False, reason=reason)


# A code that is not here is permanent: an unknown error is shown at once, not waited out.
SERVER_ERRORS: dict[int, ServerError] = {
    32: _transient("ATTEMPT_TO_READ_AFTER_EOF", "another server closed its end in the middle of a distributed query"),
    47: _permanent("UNKNOWN_IDENTIFIER", "the statement is wrong"),
    57: _permanent("TABLE_ALREADY_EXISTS", "somebody made it: say IF NOT EXISTS where that is fine"),
    60: _permanent("UNKNOWN_TABLE", "the schema was not applied, or the statement is wrong"),
    62: _permanent("SYNTAX_ERROR", "the statement is wrong"),
    81: _permanent("UNKNOWN_DATABASE", "the configuration is wrong"),
    158: _permanent("TOO_MANY_ROWS", "a limit of the query: the second run meets it too"),
    159: _permanent("TIMEOUT_EXCEEDED", "the query used up its own time: a second run doubles the load, and fails too"),
    160: _permanent("TOO_SLOW", "a limit of the query: the second run meets it too"),
    164: _permanent("READONLY", "the user may not write"),
    202: _transient("TOO_MANY_SIMULTANEOUS_QUERIES", "refused before it began; other queries end"),
    203: _transient("NO_FREE_CONNECTION", "the server's own connections to other servers are all in use"),
    209: _transient("SOCKET_TIMEOUT", "the network, or a server that restarts"),
    210: _transient("NETWORK_ERROR", "the network, or a server that restarts"),
    225: _transient("NO_ZOOKEEPER", "the session with Keeper is being renewed"),
    236: _transient("ABORTED", "the server is shutting down, and comes back"),
    241: _transient("MEMORY_LIMIT_EXCEEDED", "the server as a whole is short of memory for now", only_if="(total)"),
    242: _transient("TABLE_IS_READ_ONLY", "the replica has lost Keeper, and finds it again"),
    243: _permanent("NOT_ENOUGH_SPACE", "space does not come back within a retry"),
    252: _transient("TOO_MANY_PARTS", "merges catch up"),
    279: _transient("ALL_CONNECTION_TRIES_FAILED", "the server could not reach another server"),
    285: _transient("TOO_FEW_LIVE_REPLICAS", "replicas come back"),
    286: _transient("UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", "the write before it is still on its way"),
    307: _permanent("TOO_MANY_BYTES", "a limit of the query: the second run meets it too"),
    319: _transient("UNKNOWN_STATUS_OF_INSERT", "Keeper was lost while committing; a token makes the second try safe"),
    341: _permanent("UNFINISHED", "a mutation failed or was killed: its reason must be read"),
    394: _permanent("QUERY_WAS_CANCELLED", "somebody wanted it to end"),
    439: _transient("CANNOT_SCHEDULE_TASK", "the server's threads are all in use; refused before it began"),
    473: _transient("DEADLOCK_AVOIDED", "another statement held the table's lock for too long"),
    497: _permanent("ACCESS_DENIED", "the user lacks a grant"),
    499: _permanent("S3_ERROR", "the server has already retried what can be retried in object storage"),
    516: _permanent("AUTHENTICATION_FAILED", "the user or the password is wrong"),
    517: _transient("CANNOT_ASSIGN_ALTER", "another ALTER of the same table came first"),
    529: _transient("NOT_A_LEADER", "another replica is being chosen"),
    692: _permanent("TOO_MANY_MUTATIONS", "mutations take longer than a retry waits"),
    733: _transient("TABLE_IS_BEING_RESTARTED", "it comes back"),
    745: _transient("SERVER_OVERLOADED", "the server sheds load for now"),
    999: _transient("KEEPER_EXCEPTION", "the session with Keeper was lost or is being renewed"),
}


def is_connection_error(error: BaseException) -> bool:
    """Whether the connection failed, on our side of it: the same call may succeed on another host."""
    from clickhouse_driver import errors

    if isinstance(error, errors.NetworkError | errors.SocketTimeoutError | EOFError | ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in NETWORK_ERRNOS


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later: a failed connection, or a transient code of the table."""
    from clickhouse_driver import errors

    if isinstance(error, errors.ServerException):
        known = SERVER_ERRORS.get(error.code)
        return known is not None and known.transient and (known.only_if is None or known.only_if in error.message)
    return is_connection_error(error)


@dataclass(frozen=True)
class RetryPolicy:
    """How often to try, and how long to wait: the wait doubles from the first to the longest, plus jitter."""

    attempts: int = 5
    first_wait_seconds: float = 0.2
    max_wait_seconds: float = 10.0

    def wait(self) -> wait_base:
        """The waits between attempts, in tenacity's terms."""
        growing = wait_exponential(multiplier=self.first_wait_seconds, max=self.max_wait_seconds)
        return growing + wait_random(0, self.first_wait_seconds)
