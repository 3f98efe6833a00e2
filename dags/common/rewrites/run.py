"""A Dagster run that rewrites rows: it holds the one lock of all such runs while it works."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.locks import LockTimeoutError, exclusive
from dags.common.postgres import Postgres
from dags.common.rewrites.rewrite import Rewrite

LOCK = "clickhouse_rewrites"
# The jobs that hold the lock for long: what need not interrupt them skips while one of them runs.
REWRITE_JOBS = ("squash_person_overrides", "deletes_job")
# Dagster ends a run after the first; the work stops some minutes before, with an error that says how far it came.
MAX_RUN_SECONDS = 21_600
MAX_WORK_SECONDS = MAX_RUN_SECONDS - 600.0
LOCK_WAIT_SECONDS = 60.0


@contextlib.contextmanager
def exclusive_rewrite(
    context: dg.OpExecutionContext,
    cluster: ClickhouseCluster,
    postgres: Postgres,
    *,
    lock_wait_seconds: float = LOCK_WAIT_SECONDS,
) -> Iterator[Rewrite]:
    """Hold the lock until the end of the block, and give the rewrite of this run.

    Raises dagster.Failure, without retries, when another run holds the lock.
    """
    holder = f"{context.job_name} {context.run_id}"
    try:
        with exclusive(postgres, LOCK, lock_wait_seconds, holder=holder, hold_seconds=MAX_RUN_SECONDS) as lock:
            yield Rewrite.start(
                cluster,
                context.run_id,
                deadline_seconds=MAX_WORK_SECONDS,
                report=context.log.info,
                assert_lock_held=lock.assert_held,
            )
    except LockTimeoutError as error:
        description = f"Only one run at a time may rewrite events. {error}"
        raise dg.Failure(description=description, allow_retries=False) from error
