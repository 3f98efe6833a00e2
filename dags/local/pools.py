"""Pool limits, recorded before the first run.

The run queue records a pool's default limit when it first sees a run that needs the pool, and applies it only in its
next iteration, so the runs of a first backfill would all start at the same time.
"""

from collections.abc import Iterable

import dagster as dg


def record_pool_limits(instance: dg.DagsterInstance, pools: Iterable[str]) -> None:
    """Record the default limit of the instance for each pool that has no limit."""
    storage = instance.event_log_storage
    limited = {limit.name for limit in storage.get_pool_limits()}
    for pool in set(pools) - limited:
        # Not a public method of Dagster; the public command would have to be run once for each pool.
        storage.initialize_concurrency_limit_to_default(pool)
