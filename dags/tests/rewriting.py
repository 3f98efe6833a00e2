"""Two ClickHouse nodes as two shards, with the rows that tests of squashes and deletes insert and read."""

import contextlib
import datetime as dt
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import pytest
from clickhouse_driver import Client
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Insert, Query, Rows
from dags.common.clickhouse.schema import apply_schema
from dags.common.deletion_requests import (
    RequestKind,
    apply_migrations,
    earliest_person_requests,
    request_deletion,
)
from dags.common.postgres import Postgres
from dags.common.rewrites.rewrite import Report, Rewrite
from dags.deletes.delete import DeletionResult, process_requests
from dags.deletes.web_tables import recompute_web_tables
from dags.local import ports
from dags.person_overrides.squash import SquashResult, squash

START = dt.datetime(2026, 3, 30, tzinfo=dt.UTC)
DEADLINE_SECONDS = 120.0


def at(hours: float) -> dt.datetime:
    """Return the time so many hours after `START`. Two days after `START` another month starts."""
    return START + dt.timedelta(hours=hours)


def person(number: int) -> UUID:
    """Return a person's id."""
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


def no_lock() -> None:
    """Check nothing: these tests need no lock."""


def silent(_: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class World:
    """The tables of one database on all nodes, and the deletion requests in one Postgres."""

    cluster: ClickhouseCluster
    postgres: Postgres
    assert_lock_held: Callable[[], None] = no_lock

    def add(self, events: Iterable[Event]) -> None:
        """Insert events as one part per shard. All events of a visitor are on one shard."""
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

    def request(self, kind: RequestKind, team_id: int, keys: Sequence[str], requested_at: dt.datetime) -> list[int]:
        """Request deletions; return their ids."""
        return request_deletion(self.postgres, kind, team_id, keys, requested_by="a test", requested_at=requested_at)

    def everywhere(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Rows:
        """Return the rows of all nodes, one node after the other."""
        answers = self.cluster.map_all_hosts(Query(statement, parameters)).result()
        return [row for host in self.cluster.hosts for row in answers[host]]

    def persons(self) -> dict[UUID, UUID]:
        """Return the person of each event."""
        rows = self.everywhere("SELECT uuid, person_id FROM events")
        found: dict[UUID, UUID] = dict(rows)
        assert len(rows) == len(found), "an event is there twice"
        return found

    def overrides(self) -> set[tuple[Any, ...]]:
        """Return team, distinct_id, version and is_deleted of each override, the same on every node."""
        statement = "SELECT team_id, distinct_id, version, is_deleted FROM person_distinct_id_overrides FINAL"
        first, *others = (set(rows) for rows in self.cluster.map_all_hosts(Query(statement)).result().values())
        assert all(other == first for other in others), "nodes have different overrides"
        return first

    def run_tables(self) -> list[str]:
        """Return the tables and dictionaries that runs left on any node."""
        statement = "SELECT name FROM system.tables WHERE database = currentDatabase() AND startsWith(name, 'rewrite_')"
        return [name for (name,) in self.everywhere(statement)]

    def day_changes(self) -> list[tuple[dt.date, str, str]]:
        """Return day, state and reason of the recorded changes of events, the same on every node."""
        statement = "SELECT day, state, reason FROM event_day_changes FINAL ORDER BY ALL"
        first, *others = self.cluster.map_all_hosts(Query(statement)).result().values()
        assert all(other == first for other in others), "nodes have different changes"
        return [(day, state, reason) for day, state, reason in first]

    def squash(
        self, cutoff: dt.datetime | None = None, *, dry_run: bool = False, report: Report = silent, run_id: str = "run"
    ) -> SquashResult:
        """Squash the overrides that are older than the cutoff; without it, all of them."""
        return squash(
            self._rewrite(report, run_id),
            cutoff=cutoff or at(24 * 365),
            hold_back=earliest_person_requests(self.postgres),
            dry_run=dry_run,
        )

    def delete(self, *, dry_run: bool = False, report: Report = silent, run_id: str = "run") -> DeletionResult:
        """Process the requests that are due."""
        return process_requests(
            self._rewrite(report, run_id),
            self.postgres,
            lambda days: recompute_web_tables(self.cluster, days, run_id),
            dry_run=dry_run,
        )

    def _rewrite(self, report: Report, run_id: str) -> Rewrite:
        return Rewrite.start(
            self.cluster,
            run_id,
            deadline_seconds=DEADLINE_SECONDS,
            report=report,
            assert_lock_held=self.assert_lock_held,
        )


def postgres_of(dsn: str) -> Postgres:
    """Return the Postgres that a connection string names."""
    parts = psycopg2.extensions.parse_dsn(dsn)
    return Postgres(parts["host"], int(parts["port"]), parts["user"], SecretStr(""), parts["dbname"])


def hosts_of(node_ports: Sequence[int]) -> list[Host]:
    """Return each node as a shard."""
    return [Host(ports.LOOPBACK, port, shard) for shard, port in enumerate(node_ports, start=1)]


@contextlib.contextmanager
def world_on(node_ports: Sequence[int], dsn: str) -> Iterator[World]:
    """Create a database with the schema on every node, dropped at the end, and the tables of requests in Postgres."""
    database = f"test_{uuid.uuid4().hex}"
    on_every_node(node_ports, f"CREATE DATABASE {database}")
    postgres = postgres_of(dsn)
    apply_migrations(postgres)
    with ClickhouseCluster(hosts_of(node_ports), Access(database=database)) as cluster:
        apply_schema(cluster, clustered=False)
        yield World(cluster, postgres)
    on_every_node(node_ports, f"DROP DATABASE IF EXISTS {database} SYNC")


@pytest.fixture
def world(clickhouse_cluster_ports: tuple[int, ...], postgres_dsn: str) -> Iterator[World]:
    """A new database on two shards with the schema, and an empty table of requests."""
    with world_on(clickhouse_cluster_ports, postgres_dsn) as opened:
        yield opened


def on_every_node(node_ports: Sequence[int], statement: str) -> None:
    """Run a statement on each node, outside the database of the test."""
    for port in node_ports:
        with Client(ports.LOOPBACK, port=port) as client:
            client.execute(statement)


def _insert(table: str, kind: type[Event] | type[Override], rows: Sequence[Any]) -> Insert:
    names = [column.name for column in fields(kind)]
    return Insert(table, names, [[getattr(row, name) for name in names] for row in rows])
