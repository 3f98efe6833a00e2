"""Failing a step without retries when ClickHouse reports an error that a retry cannot fix."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from dags.common.clickhouse.errors import ClusterError
from dags.common.clickhouse.retry import is_transient
from dags.common.clickhouse.staging import StagingError


@contextlib.contextmanager
def fail_without_retry() -> Iterator[None]:
    """Raise dagster.Failure, which no retry policy retries, for errors that are permanent; let other errors through."""
    try:
        yield
    except StagingError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except ClusterError as error:
        from clickhouse_driver import errors

        causes = list(error.errors.values())
        known = [cause for cause in causes if isinstance(cause, errors.ServerException | StagingError)]
        if known and not any(is_transient(cause) for cause in known):
            raise dg.Failure(description=str(error), allow_retries=False) from error
        raise
