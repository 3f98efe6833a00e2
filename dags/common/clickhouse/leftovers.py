"""Drop the tables and dictionaries that runs of this platform left behind, on every host."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import quoted

if TYPE_CHECKING:
    from clickhouse_driver import Client

# Dictionaries first: the server keeps a table that a dictionary reads.
LEFTOVERS_STATEMENT = """
SELECT name, engine = 'Dictionary', dateDiff('second', metadata_modification_time, now()) FROM system.tables
WHERE database = currentDatabase() AND startsWith(name, %(prefix)s) ORDER BY 2 DESC, 1
"""


@dataclass(frozen=True)
class Leftover:
    """A table or dictionary whose name starts with the prefix of a run's tables, as one host has it."""

    name: str
    is_dictionary: bool
    age_seconds: int


def drop_leftovers(
    cluster: ClickhouseCluster,
    prefix: str,
    should_drop: Callable[[Leftover], bool] = lambda _: True,
    *,
    sync: bool = True,
) -> list[str]:
    """Drop the tables and dictionaries with the prefix that `should_drop` accepts, on every host; return their names.

    Without `sync` a table whose statement still runs is dropped at once, and its files go when the statement has ended.
    """
    wait = " SYNC" if sync else ""

    def drop(client: "Client") -> list[str]:
        found = [Leftover(*row) for row in client.execute(LEFTOVERS_STATEMENT, {"prefix": prefix})]
        dropped = [leftover for leftover in found if should_drop(leftover)]
        for leftover in dropped:
            kind = "DICTIONARY" if leftover.is_dictionary else "TABLE"
            client.execute(f"DROP {kind} IF EXISTS {quoted(leftover.name)}{wait}")
        return [leftover.name for leftover in dropped]

    found_by_host = cluster.map_all_hosts(drop, retryable=True).result()
    return sorted({name for names in found_by_host.values() for name in names})
