"""A Dagster run that rewrites or erases rows: it holds the one lock of all such runs while it works.

Belongs here: what the runs have in common. Not here: the work (`dags/common/clickhouse/rewrites.py`, and the dags).
"""

import contextlib
from collections.abc import Iterator

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.rewrites import LOCK, Job, new_job
from dags.common.locks import LockTimeoutError, exclusive
from dags.common.postgres import Postgres

# How long a run may take; the work itself gives up some minutes before, and says how far it came.
RUN_SECONDS = 21_600
WORK_SECONDS = RUN_SECONDS - 600.0
LOCK_WAIT_SECONDS = 60.0


@contextlib.contextmanager
def rewriting(
    context: dg.OpExecutionContext,
    cluster: ClickhouseCluster,
    postgres: Postgres,
    *,
    lock_wait_seconds: float = LOCK_WAIT_SECONDS,
) -> Iterator[Job]:
    """The lock, until the end of the block, and the job of this run. Ends the step when another run has the lock."""
    holder = f"{context.job_name} {context.run_id}"
    try:
        with exclusive(postgres, LOCK, lock_wait_seconds, holder=holder, hold_seconds=RUN_SECONDS) as lock:
            yield new_job(
                cluster,
                context.run_id,
                deadline_seconds=WORK_SECONDS,
                report=context.log.info,
                still_ours=lock.assert_held,
            )
    except LockTimeoutError as error:
        description = f"Only one run at a time may rewrite events. {error}"
        raise dg.Failure(description=description, allow_retries=False) from error
