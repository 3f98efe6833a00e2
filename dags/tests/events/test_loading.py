import datetime as dt
import gzip
import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.locks import LockLostError, lock_number
from dags.events.loading import lock_name
from dags.events.manifest import Entry, ObjectState
from dags.events.objects import ObjectVersion, current_versions
from dags.events.publishing import Publisher
from dags.tests.events.world import World, event, lines, log_line

ROOT = Path(__file__).parents[3]


def many(first: int, count: int) -> bytes:
    return lines([event(number) for number in range(first, first + count)])


def numbers(world: World) -> list[int]:
    """Return the numbers of all events in the table, including duplicates."""
    return sorted(value.int - 1 for value in world.column("uuid"))


@pytest.fixture
def unmerged(world: World) -> World:
    """A table that keeps the duplicates of an event visible."""
    # Not SYSTEM STOP MERGES, which would block deletions too.
    world.rows(
        "ALTER TABLE events MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1, "
        "max_bytes_to_merge_at_min_space_in_pool = 1"
    )
    return world


def test_an_object_is_loaded_once_however_often_it_is_requested(unmerged: World) -> None:
    key = unmerged.put("a.jsonl", many(0, 50))
    first = unmerged.load(key, key)
    assert [(entry.key, entry.rows, entry.state) for entry in first.loaded] == [(key, 50, "loaded")]
    second = unmerged.load(key)
    assert (second.loaded, second.already_loaded, second.problems) == ((), 1, [])
    assert numbers(unmerged) == list(range(50))
    assert unmerged.tables() == []


def test_many_objects_of_a_format_are_read_by_one_statement(world: World) -> None:
    for number in range(40):
        world.put(f"{number:03d}.jsonl", many(number * 10, 10), team=1 + number % 3)
    world.put("a.log", f"{log_line('/a')}\n".encode())
    result = world.load(run_id="one run")
    assert (len(result.loaded), result.problems) == (41, [])
    assert len(numbers(world)) == 401
    world.rows("SYSTEM FLUSH LOGS")
    ((inserts, statements),) = world.rows(
        "SELECT countIf(query_kind = 'Insert' AND query LIKE '%%FROM s3(%%'), count() FROM system.query_log "
        "WHERE type = 'QueryFinish' AND is_initial_query AND current_database = currentDatabase() "
        "AND query LIKE '%%events_load_%%' AND query NOT LIKE '%%query_log%%'"
    )
    assert inserts == 2
    assert statements < 20


def test_changed_content_of_a_key_replaces_the_old_content(unmerged: World) -> None:
    key = unmerged.put("a.jsonl", lines([*(event(number) for number in range(10)), "bad"]))
    unmerged.load()
    unmerged.put("a.jsonl", many(5, 10))
    result = unmerged.load()
    assert [(entry.key, entry.rows) for entry in result.loaded] == [(key, 10)]
    assert numbers(unmerged) == list(range(5, 15))
    assert unmerged.rows("SELECT count() FROM events_rejected") == [(0,)]
    assert sorted(unmerged.states().values()) == ["loaded", "replaced"]

    unmerged.put("a.jsonl", lines([*(event(number) for number in range(10)), "bad"]))
    unmerged.load()
    assert numbers(unmerged) == list(range(10))


def test_an_unreadable_object_is_named_and_the_others_are_loaded(unmerged: World) -> None:
    whole = gzip.compress(many(100, 5000))
    bad = {
        unmerged.put("02-cut.jsonl.zst", whole[:50]),
        unmerged.put("04-no-parquet.parquet", b"PAR1 and nothing else" * 9),
        unmerged.put("06-text.jsonl", b"<html>\n<body>502</body>\n</html>\n"),
        unmerged.put("08-text.log", b"no log\n"),
    }
    cut = "events/team=1/03-cut.jsonl.gz"
    unmerged.s3.put_object(Bucket=unmerged.storage.bucket, Key=cut, Body=whole[: len(whole) // 2])
    for number in (1, 5, 7, 9):
        unmerged.put(f"{number:02d}.jsonl.gz", many(number * 10, 10))
    result = unmerged.load()
    assert len(result.loaded) == 4
    assert {problem.key for problem in result.problems} == {*bad, cut}
    assert all(problem.is_unreadable for problem in result.problems)
    reasons = {problem.key: problem.reason for problem in result.problems}
    assert "inflate failed" in reasons[cut]
    assert "Not a Parquet file" in reasons["events/team=1/04-no-parquet.parquet"]
    assert "none of its 3 lines can be read: not JSON" in reasons["events/team=1/06-text.jsonl"]
    assert numbers(unmerged) == sorted(number * 10 + one for number in (1, 5, 7, 9) for one in range(10))
    assert sorted(unmerged.states().values()) == ["failed"] * 5 + ["loaded"] * 4
    assert unmerged.tables() == []

    again = unmerged.load()
    assert (again.loaded, again.already_loaded, again.problems) == ((), 9, [])
    assert {problem.key for problem in unmerged.load(retry_unreadable=True).problems} == {*bad, cut}


def test_an_unreadable_object_is_loaded_after_its_content_is_fixed(world: World) -> None:
    key = world.put("a.jsonl", b"no json\n")
    assert [problem.key for problem in world.load().problems] == [key]
    world.put("a.jsonl", many(0, 3))
    assert [entry.rows for entry in world.load().loaded] == [3]


def test_a_missing_object_is_named_and_the_others_are_loaded(world: World) -> None:
    key = world.put("a.jsonl", many(0, 3))
    result = world.load(key, "events/team=1/gone.jsonl")
    assert len(result.loaded) == 1
    assert [(problem.key, problem.is_unreadable) for problem in result.problems] == [
        ("events/team=1/gone.jsonl", False)
    ]


def test_an_empty_object_is_loaded_with_no_rows(world: World) -> None:
    world.put("a.jsonl", b"")
    world.put("b.log", b"")
    world.put("c.jsonl", many(0, 2))
    result = world.load()
    assert [entry.rows for entry in result.loaded] == [0, 0, 2]
    assert world.load().already_loaded == 3


@pytest.mark.parametrize("moment", [1, 2])
def test_an_object_that_is_replaced_while_it_is_read_is_detected_and_leaves_no_rows(
    unmerged: World, moment: int
) -> None:
    unmerged.put("a.jsonl", many(0, 10))
    unmerged.put("b.jsonl", many(50, 10))
    listings = 0

    def list_versions(keys: Sequence[str]) -> Mapping[str, ObjectVersion]:
        nonlocal listings
        listings += 1
        if listings == 2 and moment == 2:
            # Already read: the last listing of the bucket shows the change.
            unmerged.put("a.jsonl", many(0, 12))
        found = current_versions(unmerged.s3, unmerged.storage.bucket, keys)
        if listings == 1 and moment == 1:
            # Already listed: ClickHouse reads other content.
            unmerged.put("a.jsonl", many(0, 12))
        return found

    result = unmerged.load(list_versions=list_versions)
    assert [(problem.key, problem.is_unreadable) for problem in result.problems] == [("events/team=1/a.jsonl", False)]
    assert "while it was read" in result.problems[0].reason
    assert numbers(unmerged) == list(range(50, 60))
    assert "events/team=1/a.jsonl" not in str(unmerged.states())
    unmerged.load()
    assert numbers(unmerged) == [*range(12), *range(50, 60)]


def test_concurrent_loads_load_each_object_once(unmerged: World) -> None:
    for number in range(6):
        unmerged.put(f"{number}.jsonl", many(number * 100, 100))
    start = threading.Barrier(3)

    def load(_: int) -> int:
        start.wait()
        return len(unmerged.load().loaded)

    with ThreadPoolExecutor(3) as executor:
        loaded = list(executor.map(load, range(3)))
    assert sorted(loaded) == [0, 0, 6]
    assert numbers(unmerged) == list(range(600))


def test_a_load_that_has_lost_its_lock_writes_nothing(world: World) -> None:
    world.put("a.jsonl", many(0, 10))
    listings = 0

    def list_versions(keys: Sequence[str]) -> Mapping[str, ObjectVersion]:
        nonlocal listings
        listings += 1
        if listings == 2:
            with world.postgres.connection() as connection, connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted "
                    "AND (classid::bigint << 32) + objid::bigint = (%s::bit(64)::bigint)",
                    (format(lock_number(lock_name(world.cluster)) % 2**64, "064b"),),
                )
        return current_versions(world.s3, world.storage.bucket, keys)

    with pytest.raises(LockLostError):
        world.load(list_versions=list_versions)
    assert listings == 2
    assert numbers(world) == []
    world.load()
    assert numbers(world) == list(range(10))


def test_events_of_many_months_are_loaded_by_one_insert(world: World) -> None:
    found = [
        event(number, timestamp=f"{2012 + number // 12}-{1 + number % 12:02d}-01T00:00:00Z") for number in range(130)
    ]
    world.put("a.jsonl", lines(found))
    assert [entry.rows for entry in world.load().loaded] == [130]
    assert len(world.column("DISTINCT toYYYYMM(timestamp)")) == 130


def test_a_load_works_on_two_hosts_without_replication(world: World, clickhouse_cluster_ports: tuple[int, ...]) -> None:
    from dags.common.clickhouse.query import Query, quoted
    from dags.common.clickhouse.schema import apply_schema

    hosts = [Host("127.0.0.1", port, shard) for shard, port in enumerate(clickhouse_cluster_ports, start=1)]
    database = world.cluster.database
    with ClickhouseCluster(hosts) as outside:
        outside.map_all_hosts(Query(f"CREATE DATABASE {quoted(database)}")).result()
        try:
            with ClickhouseCluster(hosts, Access(database=database)) as connected:
                apply_schema(connected, clustered=False)
                both = World(connected, world.postgres, world.s3, world.storage)
                for number in range(6):
                    both.put("a.jsonl", many(0, 10 + number))
                    assert len(both.load().loaded) == 1
                    assert both.load().already_loaded == 1
                counts = connected.map_all_hosts(Query("SELECT count() FROM events")).result()
                assert sum(rows[0][0] for rows in counts.values()) == 15
        finally:
            outside.map_all_hosts(Query(f"DROP DATABASE {quoted(database)} SYNC")).result()


def test_the_manifest_has_the_rows_by_day_before_any_row_is_inserted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put("a.jsonl", lines([event(0), event(1), event(1, uuid=str(uuid.UUID(int=99))), "bad"]))
    world.put("b.log", f"{log_line('/')}\n{log_line('/', agent='Googlebot/2.1')}\n{log_line('/a.png')}\n".encode())
    days = {"2026-10-01": 1, "2026-10-02": 2}

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "insert", fail)
        with pytest.raises(ConnectionError):
            world.load()
    by_object = "SELECT rows_by_day FROM ingested_objects FINAL WHERE state = %(state)s ORDER BY object"
    expected = [({dt.date.fromisoformat(day): rows for day, rows in days.items()},), ({dt.date(2026, 10, 1): 1},)]
    assert world.rows(by_object, state="loading") == expected
    assert numbers(world) == []
    world.load()
    assert world.rows(by_object, state="loaded") == expected


def test_the_days_of_rows_that_a_dead_load_left_stay_in_the_manifest_until_they_are_removed() -> None:
    day, other = dt.date(2026, 10, 1), dt.date(2026, 10, 5)
    time = dt.datetime(2026, 10, 1, tzinfo=dt.UTC)
    one = Entry("a", "1", 3, 7, 1, "json lines", ObjectState.LOADING, rows=2, rows_by_day={day: 2})
    one = replace(one, first_timestamp=time, last_timestamp=time)
    left = replace(one, rows=4, rows_by_day={day: 3, other: 1}, last_timestamp=time + dt.timedelta(days=4))
    found = one.covering(left)
    assert found.rows_by_day == {day: 2, other: 0}
    assert (found.first_timestamp, found.last_timestamp) == (time, time + dt.timedelta(days=4))
    assert replace(one, rows=0, rows_by_day={}).covering(left).last_timestamp == time + dt.timedelta(days=4)
    assert one.covering(None) is one


class Killed:
    """A worker that dies at a given statement, on tables that keep duplicates visible."""

    def __init__(self, world: World, s3_port: int) -> None:
        self.world = world
        self.options: dict[str, Any] = {
            "clickhouse_port": world.cluster.hosts[0].port,
            "s3_port": s3_port,
            "postgres_port": world.postgres.port,
            "postgres_database": world.postgres.database,
            "database": world.cluster.database,
            "bucket": world.storage.bucket,
        }

    def work(self, die_at: int, *, in_flight: bool) -> int | None:
        """Run a worker; return its number of statements, or None when it was killed."""
        options = json.dumps({**self.options, "die_at": die_at, "in_flight": in_flight})
        command = [sys.executable, "-m", "dags.tests.events.worker", options]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=ROOT)
        if done.returncode == -9:
            return None
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])


def fill(world: World) -> None:
    """Upload objects of two formats, one changed since it was loaded, one unreadable."""
    world.load(world.put("0-replaced.jsonl", many(0, 20)))
    world.put("0-replaced.jsonl", many(10, 20))
    world.put("1.jsonl.gz", lines([*(event(number) for number in range(100, 300)), "bad", ""]))
    world.put("2.jsonl", many(300, 100), team=2)
    views = [log_line(f"/{number}", address=f"203.0.113.{number % 5}") for number in range(60)]
    world.put("3.log", "".join(f"{line}\n" for line in [*views, "bad"]).encode(), team=3)
    world.put("4-cut.jsonl.gz", b"")
    world.s3.put_object(Bucket=world.storage.bucket, Key="events/team=1/4-cut.jsonl.gz", Body=b"no gzip at all")


def everything(world: World) -> list[Any]:
    return [
        world.rows("SELECT team_id, uuid, event, distinct_id, session_id, timestamp FROM events ORDER BY ALL"),
        world.rows("SELECT object, line, reason FROM events_rejected ORDER BY ALL"),
        world.rows("SELECT object, etag, state, rows, rejected_rows FROM ingested_objects FINAL ORDER BY ALL"),
        world.tables(),
    ]


def converges(killed: Killed, die_at: int, *, in_flight: bool) -> bool:
    """Kill a worker, load again, and compare; return False when the worker finished before the kill."""
    world = killed.world
    for table in ("events", "events_rejected", "ingested_objects"):
        world.rows(f"TRUNCATE TABLE {table}")
    fill(world)
    was_killed = killed.work(die_at, in_flight=in_flight) is None
    world.load()
    rows, rejected, manifest, tables = everything(world)
    assert len(rows) == 20 + 200 + 100 + 60, f"died at {die_at}"
    assert len({row[1] for row in rows}) == len(rows), f"died at {die_at}"
    assert len({row[4] for row in rows if row[0] == 3}) == 5
    assert [(key.rsplit("/", 1)[1], line) for key, line, _ in rejected] == [("1.jsonl.gz", 201), ("3.log", 61)]
    assert sorted(state for _, _, state, _, _ in manifest) == [
        "failed",
        "loaded",
        "loaded",
        "loaded",
        "loaded",
        "replaced",
    ]
    assert tables == []
    return was_killed


@pytest.mark.parametrize(("die_at", "in_flight"), [(9, True), (20, True), (21, False), (22, True)])
def test_the_next_load_recovers_from_a_killed_worker(
    unmerged: World, s3_port: int, die_at: int, *, in_flight: bool
) -> None:
    assert converges(Killed(unmerged, s3_port), die_at, in_flight=in_flight)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_next_load_recovers_from_a_kill_before_or_during_any_statement(unmerged: World, s3_port: int) -> None:
    killed = Killed(unmerged, s3_port)
    fill(unmerged)
    statements = killed.work(0, in_flight=False)
    assert statements is not None
    assert statements > 15
    deaths = sum(
        converges(killed, die_at, in_flight=in_flight)
        for die_at in range(1, statements + 1)
        for in_flight in (False, True)
    )
    assert deaths == 2 * statements
