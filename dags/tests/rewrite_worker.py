"""A squash or the deletes in a process of its own, which takes one step for each line that it reads.

Run: `python -m dags.tests.rewrite_worker squash|delete DSN DATABASE PORT PORT`. It prints each step and continues when
it reads a line, so a test decides after which step to kill it.
"""

import sys

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access
from dags.common.locks import exclusive
from dags.common.rewrites.run import LOCK
from dags.tests.rewriting import World, hosts_of, postgres_of


def step(text: str) -> None:
    """Print the step, and wait for a line."""
    sys.stdout.write(text.replace("\n", " ") + "\n")
    sys.stdout.flush()
    if not sys.stdin.readline():
        sys.exit("the test has ended")


def main() -> None:
    """Run one job to its end."""
    job, dsn, database, *node_ports = sys.argv[1:]
    postgres = postgres_of(dsn)
    with (
        exclusive(postgres, LOCK, 30, holder=f"worker of {job}") as lock,
        ClickhouseCluster(hosts_of([int(port) for port in node_ports]), Access(database=database)) as cluster,
    ):
        world = World(cluster, postgres, lock.assert_held)
        step("The lock is held.")
        if job == "squash":
            world.squash(report=step, run_id="worker")
        else:
            world.delete(report=step, run_id="worker")


if __name__ == "__main__":
    main()
