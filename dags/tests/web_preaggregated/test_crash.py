"""After a kill of the worker or the node at any moment, the next run makes the tables equal to the raw events."""

import datetime as dt
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.schema import apply_schema
from dags.common.clickhouse.staging import STAGING_PREFIX, drop_leftovers
from dags.local.services import Lifeline
from dags.tests.web_preaggregated.events import DAY
from dags.tests.web_preaggregated.node import Node
from dags.web_preaggregated.aggregate import pre_aggregate
from dags.web_preaggregated.raw import SUBJECTS, compare_with_raw

ROOT = Path(__file__).parents[3]
EVENTS = 200_000
KILLS = 20
DAYS = [DAY + dt.timedelta(days=n) for n in (-1, 0, 1)]
WORK = """
import datetime as dt, sys
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Host
from dags.web_preaggregated.aggregate import pre_aggregate
print("working", flush=True)
with ClickhouseCluster([Host("127.0.0.1", int(sys.argv[1]))]) as cluster:
    pre_aggregate(cluster, [dt.date.fromisoformat(day) for day in sys.argv[3:]], run_id=sys.argv[2])
"""
MORE_EVENTS = """
INSERT INTO events (uuid, event, team_id, distinct_id, person_id, session_id, timestamp, pathname)
SELECT generateUUIDv4(), '$pageview', number %% 3, toString(number %% 7919),
    toUUID('00000000-0000-0000-0000-000000000001'),
    concat(toString(%(round)s), ' ', toString(intDiv(number, 4))),
    toDateTime64('2026-03-10 00:00:00', 6, 'UTC') + (number * 7919 %% 250000), toString(number %% 50)
FROM numbers(%(events)s)
"""


@pytest.fixture
def node(tmp_path: Path, lifeline: Lifeline) -> Iterator[Node]:
    with Node.running(tmp_path, lifeline) as running:
        yield running


def compute(node: Node, run_id: str) -> None:
    with node.connect() as cluster:
        pre_aggregate(cluster, DAYS, run_id=run_id)


def assert_equal_to_the_events(cluster: ClickhouseCluster) -> None:
    for subject in SUBJECTS:
        found = compare_with_raw(cluster, subject, DAYS[0], DAYS[-1])
        assert found.compared > 50
        assert found.different == 0, "\n".join(map(str, found.listed))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_a_kill_at_any_moment_the_next_run_converges_and_leaves_no_staging_tables(node: Node) -> None:
    chance = random.Random(7)  # noqa: S311 - moments of kills, not secrets
    with node.connect() as cluster:
        apply_schema(cluster, clustered=False)
        cluster.any_host(Query(MORE_EVENTS, {"round": 0, "events": EVENTS})).result()
    started = time.monotonic()
    compute(node, "first")
    longest = time.monotonic() - started
    cut_short = 0
    for kill in range(KILLS):
        with node.connect() as cluster:
            # New events, so that an unchanged day is not mistaken for a recomputed one.
            cluster.any_host(Query(MORE_EVENTS, {"round": kill + 1, "events": EVENTS // 20})).result()
        command = [sys.executable, "-c", WORK, str(node.port), f"killed-{kill}", *map(str, DAYS)]
        worker = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert worker.stdout is not None
        assert worker.stdout.readline() == "working\n"
        time.sleep(chance.uniform(0, longest))
        if kill % 2:
            node.kill_and_start()
        worker.kill()
        cut_short += worker.wait() != 0
        compute(node, f"again-{kill}")
        with node.connect() as cluster:
            drop_leftovers(cluster, lambda _: True)
            statement = "SELECT count() FROM system.tables WHERE startsWith(name, %(prefix)s)"
            assert cluster.any_host(Query(statement, {"prefix": STAGING_PREFIX})).result() == [(0,)]
            assert_equal_to_the_events(cluster)
    assert cut_short >= KILLS // 2, "most runs had finished before they were killed"
