"""Two ClickHouse nodes as two shards, and what tests of squashes and deletes put into them and read from them.

Belongs here: rows, and the two jobs as a test calls them. Not here: what must come out (the models of the tests).
"""

import contextlib
import datetime as dt
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from uuid import UUID, uuid4

import psycopg2
from clickhouse_driver import Client
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Insert, Query, Rows
from dags.common.clickhouse.rewrites import Job, Report, new_job
from dags.common.clickhouse.schema import apply_schema
from dags.common.deletion_requests import earliest_person_requests, prepare
from dags.common.postgres import Postgres
from dags.deletes.delete import Deleted, delete_requested
from dags.deletes.web_tables import compute_web_tables_again
from dags.local import ports
from dags.person_overrides.squash import Squashed, squash

START = dt.datetime(2026, 3, 30, tzinfo=dt.UTC)
DEADLINE_SECONDS = 120.0


def at(hours: float) -> dt.datetime:
    """A moment so many hours after `START`; two days after it another month begins."""
    return START + dt.timedelta(hours=hours)


def person(number: int) -> UUID:
    """A person's id."""
    return UUID(int=number + 1)


@dataclass(frozen=True)
class Event:
    """A row of `events`."""

    person_id: UUID
    distinct_id: str = "visitor"
    team_id: int = 1
    timestamp: dt.datetime = START
    event: str = "$pageview"
    session_id: str = "session"
    uuid: UUID = field(default_factory=uuid4)


@dataclass(frozen=True)
class Override:
    """A row of `person_distinct_id_overrides`."""

    person_id: UUID
    distinct_id: str = "visitor"
    team_id: int = 1
    version: int = 1
    is_deleted: int = 0
    _timestamp: dt.datetime = START

    @property
    def written_at(self) -> dt.datetime:
        """When the row was written."""
        return self._timestamp


def nothing() -> None:
    """Holds no lock, and has none to lose."""


def silent(_: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class World:
    """The tables of one database on all nodes, and the requests in one Postgres."""

    cluster: ClickhouseCluster
    postgres: Postgres
    still_ours: Callable[[], None] = nothing

    def add(self, events: Iterable[Event]) -> None:
        """Insert events as one part of each shard: all of a visitor on one shard."""
        by_host: dict[Host, list[Event]] = {}
        for event in events:
            number = zlib.crc32(event.distinct_id.encode()) % len(self.cluster.hosts)
            by_host.setdefault(self.cluster.hosts[number], []).append(event)
        for host, rows in by_host.items():
            self.cluster.only(host).any_host(_insert("events", Event, rows)).result()

    def override(self, overrides: Iterable[Override]) -> None:
        """Insert overrides on every node, as one part."""
        rows = list(overrides)
        if rows:
            self.cluster.map_all_hosts(_insert("person_distinct_id_overrides", Override, rows)).result()

    def everywhere(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Rows:
        """The rows of all nodes, one after the other."""
        answers = self.cluster.map_all_hosts(Query(statement, parameters)).result()
        return [row for host in self.cluster.hosts for row in answers[host]]

    def persons(self) -> dict[UUID, UUID]:
        """The person of each event."""
        rows = self.everywhere("SELECT uuid, person_id FROM events")
        found: dict[UUID, UUID] = dict(rows)
        assert len(rows) == len(found), "an event is there twice"
        return found

    def overrides(self) -> set[tuple[Any, ...]]:
        """Team, distinct_id, version and whether it is a tombstone of each override, the same on every node."""
        statement = "SELECT team_id, distinct_id, version, is_deleted FROM person_distinct_id_overrides FINAL"
        first, *others = (set(rows) for rows in self.cluster.map_all_hosts(Query(statement)).result().values())
        assert all(other == first for other in others), "nodes have different overrides"
        return first

    def run_tables(self) -> list[str]:
        """Tables and dictionaries that a run has left on any node."""
        statement = "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, 'rewrite_')"
        return [name for (name,) in self.everywhere(statement)]

    def squash(
        self, cutoff: dt.datetime | None = None, *, dry_run: bool = False, report: Report = silent, run_id: str = "run"
    ) -> Squashed:
        """Squash what is older than the cutoff; without one, everything."""
        job = self._job(report, run_id)
        return squash(
            job,
            cutoff=cutoff or at(24 * 365),
            hold_back=earliest_person_requests(self.postgres),
            dry_run=dry_run,
        )

    def delete(self, *, dry_run: bool = False, report: Report = silent, run_id: str = "run") -> Deleted:
        """Do the requests that are due."""
        job = self._job(report, run_id)
        return delete_requested(
            job,
            self.postgres,
            lambda days: compute_web_tables_again(self.cluster, days, run_id),
            dry_run=dry_run,
        )

    def _job(self, report: Report, run_id: str) -> Job:
        return new_job(
            self.cluster,
            run_id,
            deadline_seconds=DEADLINE_SECONDS,
            report=report,
            still_ours=self.still_ours,
        )


def postgres_of(dsn: str) -> Postgres:
    """The Postgres that a connection string names."""
    parts = psycopg2.extensions.parse_dsn(dsn)
    return Postgres(parts["host"], int(parts["port"]), parts["user"], SecretStr(""), parts["dbname"])


def hosts_of(node_ports: Sequence[int]) -> list[Host]:
    """Each node as a shard."""
    return [Host(ports.LOOPBACK, port, shard) for shard, port in enumerate(node_ports, start=1)]


@contextlib.contextmanager
def world_on(node_ports: Sequence[int], dsn: str) -> Iterator[World]:
    """A new database with the schema on every node, dropped at the end, and the tables of requests in Postgres."""
    database = f"test_{uuid.uuid4().hex}"
    on_every_node(node_ports, f"CREATE DATABASE {database}")
    postgres = postgres_of(dsn)
    prepare(postgres)
    with ClickhouseCluster(hosts_of(node_ports), Access(database=database)) as cluster:
        apply_schema(cluster, clustered=False)
        yield World(cluster, postgres)
    on_every_node(node_ports, f"DROP DATABASE IF EXISTS {database} SYNC")


def on_every_node(node_ports: Sequence[int], statement: str) -> None:
    """Run a statement on each node, outside any database of a test."""
    for port in node_ports:
        with Client(ports.LOOPBACK, port=port) as client:
            client.execute(statement)


def _insert(table: str, kind: type[Event] | type[Override], rows: Sequence[Any]) -> Insert:
    names = [column.name for column in fields(kind)]
    return Insert(table, names, [[getattr(row, name) for name in names] for row in rows])
