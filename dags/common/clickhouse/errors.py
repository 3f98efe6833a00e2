"""Errors of calls on a ClickHouse cluster. Which server errors are retried is in `retry.py`."""

from collections.abc import Mapping

from dags.common.clickhouse.hosts import Host


class CallTimeoutError(Exception):
    """A call did not end before its deadline. Whether it had an effect is unknown."""


class ClusterClosedError(RuntimeError):
    """The cluster was closed before or during the call."""


class UnknownClusterError(LookupError):
    """The server has no cluster of the configured name."""


class UnknownShardError(LookupError):
    """The cluster has no shard of this number."""


class ClusterError(Exception):
    """A call failed on some hosts. `errors` has the error of each host; the first one is the cause."""

    def __init__(self, errors_by_host: Mapping[Host, BaseException], host_count: int) -> None:
        self.errors = dict(errors_by_host)
        lines = [f"- {host}: {one_line(error)}" for host, error in self.errors.items()]
        super().__init__(f"The call failed on {len(lines)} of {host_count} ClickHouse hosts:\n" + "\n".join(lines))
        self.__cause__ = next(iter(self.errors.values()), None)


def one_line(error: BaseException) -> str:
    """Return the error with its type, without line breaks and without the server's stack trace."""
    text = str(error).split("Stack trace:", 1)[0]
    return f"{type(error).__name__}: {' '.join(text.split())}"
