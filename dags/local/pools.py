"""Pool limits, recorded before the first run: the one place that calls a method of Dagster's storage for it.

The queue records a pool's default limit when it first sees a run that needs the pool, and heeds it from the next look
on, so the runs of a first backfill would all start at once.
"""

from collections.abc import Iterable

import dagster as dg


def record_pool_limits(instance: dg.DagsterInstance, pools: Iterable[str]) -> None:
    """Give each pool the default limit of the instance, unless it has a limit."""
    storage = instance.event_log_storage
    limited = {limit.name for limit in storage.get_pool_limits()}
    for pool in set(pools) - limited:
        # Not among Dagster's public methods; the command for it would have to be run once for each pool.
        storage.initialize_concurrency_limit_to_default(pool)
