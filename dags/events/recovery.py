"""Recovery from loads that died: their staging tables are dropped, and their statements killed."""

import logging
import time

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.leftovers import drop_leftovers
from dags.common.clickhouse.query import Query
from dags.events import staging_table

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 1800.0
POLL_SECONDS = 0.2
# Statements that only read are harmless.
RUNNING = "query ILIKE 'INSERT INTO %%' AND position(query, %(prefix)s) > 0"


def end_dead_loads(cluster: ClickhouseCluster) -> None:
    """Drop the tables and kill the statements of loads that died. Only the holder of the lock may call it.

    The tables go first, so that a dead load cannot start a further statement after its statements are killed.
    """
    prefix = {"prefix": staging_table.PREFIX}
    # Not SYNC: it would wait for the statements that are killed below.
    dropped = drop_leftovers(cluster, staging_table.PREFIX, sync=False)
    if dropped:
        logger.warning("Dropped %s, left by a load that died.", ", ".join(dropped))
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        running = Query(f"SELECT count() FROM system.processes WHERE {RUNNING}", prefix)  # noqa: S608 - names from code
        if not any(rows[0][0] for rows in cluster.map_all_hosts(running).result().values()):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"A statement of a load that died is still running after {TIMEOUT_SECONDS:.0f} seconds and KILL QUERY. "
                "Find it in system.processes and restart that server if it cannot be killed."
            )
        kill = Query(f"KILL QUERY WHERE {RUNNING} ASYNC", prefix, retryable=True)
        cluster.map_all_hosts(kill, timeout_seconds=TIMEOUT_SECONDS).result()
        time.sleep(POLL_SECONDS)
