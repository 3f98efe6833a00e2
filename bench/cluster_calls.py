"""The overhead of a call through the cluster over a call with a bare client. Run: `python bench/cluster_calls.py`.

Takes seconds. Ends with one line per figure: `name value unit aim AIM ok|short`. `bench/rewrite.py` measures it too.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from measuring import Figures, node  # isort: skip - makes `dags` importable

from clickhouse_driver import Client

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Host
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.query_tags import QueryTags

CALLS = 1000
WARM_UP_CALLS = 50
MAX_MILLISECONDS = 1


def measure_calls(figures: Figures) -> None:
    """Measure the median of 1,000 calls of each kind, in turns, so that other load affects all kinds alike."""
    query = Query("SELECT 1")
    with (
        tempfile.TemporaryDirectory(prefix="bench-calls-") as name,
        node(Path(name) / "one") as (first, _),
        node(Path(name) / "two") as (second, _),
        Client("127.0.0.1", port=first) as bare,
        ClickhouseCluster([Host("127.0.0.1", first), Host("127.0.0.1", second, 2)]) as untagged,
    ):
        cluster = untagged.tagged(QueryTags(run_id="run", job="job", step="step", owner="team-clickhouse"))
        one_host = cluster.only(cluster.hosts[0])
        kinds: dict[str, Callable[[], Any]] = {
            "bare": lambda: bare.execute("SELECT 1"),
            "one": lambda: one_host.any_host(query).result(),
            "two": lambda: cluster.map_one_host_per_shard(query).result(),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(WARM_UP_CALLS + CALLS):
            for kind, call in kinds.items():
                start = perf_counter()
                call()
                if number >= WARM_UP_CALLS:
                    seconds[kind].append(perf_counter() - start)
    milliseconds = {kind: median(values) * 1000 for kind, values in seconds.items()}
    over = milliseconds["one"] - milliseconds["bare"]
    over_two = milliseconds["two"] / 2 - milliseconds["bare"]
    figures.add("calls: bare client", milliseconds["bare"], "ms")
    figures.add("calls: overhead of a call on one host", over, "ms", at_most=MAX_MILLISECONDS)
    figures.add("calls: overhead of a call on two shards, by host", over_two, "ms", at_most=MAX_MILLISECONDS)


if __name__ == "__main__":
    measured = Figures()
    measure_calls(measured)
    measured.print_all()
