"""Dictionaries over a run's own table: created, loaded and compared on every host before they are used.

The table is on every host under one name, with the same rows. The dictionary never reloads on its own, except when a
server starts, so the table must not change while the dictionary is in use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import Column, Dictionary, SchemaForm
from dags.common.clickhouse.errors import one_line
from dags.common.clickhouse.hosts import Host
from dags.common.clickhouse.query import Query, quoted

if TYPE_CHECKING:
    from clickhouse_driver import Client

STATUS_STATEMENT = """
SELECT status, last_exception FROM system.dictionaries WHERE database = currentDatabase() AND name = %(name)s
"""
COLUMNS_STATEMENT = """
SELECT name FROM system.columns WHERE database = currentDatabase() AND table = %(name)s ORDER BY position
"""


class DictionaryError(Exception):
    """A dictionary could not be loaded on some host. The message has the host and the server's reason."""


class UnequalError(Exception):
    """Hosts that must have the same rows differ. Nothing may use them."""


@dataclass(frozen=True)
class Checksum:
    """The number of rows, and the sum of their 64-bit hashes modulo 2^64, which does not depend on their order."""

    rows: int
    hash: int


def snapshot_dictionary(
    name: str, table: str, key: Sequence[Column], values: Sequence[Column], comment: str
) -> Dictionary:
    """Return a dictionary of `key` and `values` columns over a table of the cluster's database, with one row per key.

    `dictHas` returns whether it has a key. For an unknown key a value reads as its default, or that of its type.
    """
    columns = ", ".join(quoted(column.name) for column in (*key, *values))
    return Dictionary(
        name=name,
        comment=comment,
        columns=(*key, *values),
        primary_key=tuple(column.name for column in key),
        source_query=f"SELECT {columns} FROM {{database}}.{quoted(table)}",  # noqa: S608 - identifiers, quoted
        # Any number of key columns of any type.
        layout="COMPLEX_KEY_HASHED()",
        # It never reloads on its own: what was compared is what is used.
        lifetime_seconds=(0, 0),
    )


def create(cluster: ClickhouseCluster, dictionary: Dictionary) -> None:
    """Create or replace the dictionary on every host. It is not loaded yet. Raises ClusterError."""
    (statement,) = dictionary.statements(SchemaForm(cluster.database))
    cluster.map_all_hosts(Query(statement, retryable=True)).result()


def load(cluster: ClickhouseCluster, name: str, *, deadline_seconds: float) -> None:
    """Load or reload the dictionary on every host.

    Raises DictionaryError with the reason of every host that cannot load it, is too slow or does not answer.
    """
    identifier = quoted(name)

    def load_here(client: "Client") -> tuple[str, str]:
        client.execute(f"SYSTEM RELOAD DICTIONARY {identifier}")
        ((status, exception),) = client.execute(STATUS_STATEMENT, {"name": name})
        return status, exception

    loaded, failures = cluster.map_all_hosts(
        load_here, retryable=True, timeout_seconds=deadline_seconds
    ).results_and_failures()
    problems = [f"- {host}: {one_line(error)}" for host, error in failures.items()]
    problems += [
        f"- {host}: {status} {exception}".rstrip() for host, (status, exception) in loaded.items() if status != "LOADED"
    ]
    if problems:
        raise DictionaryError(
            f"Dictionary {name} is not loaded on {len(problems)} of {len(cluster.hosts)} ClickHouse hosts:\n"
            + "\n".join(problems)
        ) from next(iter(failures.values()), None)


def checksum(cluster: ClickhouseCluster, name: str, *, deadline_seconds: float = 600) -> dict[Host, Checksum]:
    """Return the checksum of all columns of the dictionary as it is in memory, by host.

    Raises ClusterError when a host does not answer or has no such dictionary.
    """

    def sum_here(client: "Client") -> Checksum:
        columns = [column for (column,) in client.execute(COLUMNS_STATEMENT, {"name": name})]
        if not columns:
            raise LookupError(f"There is no dictionary {name} in the database {cluster.database}.")
        return _checksum(client, f"dictionary({quoted(name)})", columns)

    return cluster.map_all_hosts(sum_here, retryable=True, timeout_seconds=deadline_seconds).result()


def table_checksum(
    cluster: ClickhouseCluster, table: str, columns: Sequence[str], *, deadline_seconds: float = 600
) -> dict[Host, Checksum]:
    """Return the checksum of these columns of a table, by host; equal to that of a dictionary with the same columns."""
    call = _TableChecksum(quoted(table), tuple(columns))
    return cluster.map_all_hosts(call, timeout_seconds=deadline_seconds).result()


def assert_equal_everywhere(what: str, *checksums: Mapping[Host, Checksum]) -> Checksum:
    """Return the checksum that every host of every mapping has.

    Raises UnequalError with each host's checksum when they differ, and when there is no host.
    """
    every = [(host, one) for by_host in checksums for host, one in by_host.items()]
    different = {one for _, one in every}
    if len(different) != 1 or not all(checksums):
        lines = [f"- {host}: {one.rows} rows, hash {one.hash:016x}" for host, one in every]
        raise UnequalError(f"{what} must be the same on every host, and is not:\n" + "\n".join(lines or ["- no host"]))
    return different.pop()


@dataclass(frozen=True)
class _TableChecksum:
    source: str
    columns: tuple[str, ...]
    retryable: bool = True

    def __call__(self, client: "Client") -> Checksum:
        return _checksum(client, self.source, self.columns)


def _checksum(client: "Client", source: str, columns: Sequence[str]) -> Checksum:
    # In a tuple, NULL has a hash too. A sum, because with XOR a row that is there three times looks like a single one.
    values = ", ".join(quoted(column) for column in columns)
    ((rows, hash_sum),) = client.execute(f"SELECT count(), sum(sipHash64(tuple({values}))) FROM {source}")  # noqa: S608 - identifiers, quoted
    return Checksum(rows, hash_sum)
