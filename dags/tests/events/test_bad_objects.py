"""One bad object never stops the others: each kind of bad object, beside an object of another team."""

import gzip
import io
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dags.events import staging
from dags.events.objects import ObjectProblem
from dags.tests.events.world import World, event, lines, log_line


def with_two_columns_of_a_name() -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = [pa.array([value]) for value in ("$pageview", "$pageview", "visitor", "2026-10-01T00:00:00Z")]
    target = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, names=["event", "event", "distinct_id", "timestamp"]), target)
    return target.getvalue()


EVENTS = lines([event(7)])
BAD_OBJECTS = {
    "a double slash in the key": ("b//a.jsonl", EVENTS, "Invalid S3 key"),
    "an archive in the key": ("b.zip::a.jsonl", EVENTS, "ClickHouse does not find an object of this name"),
    "two columns of a name": ("b.parquet", with_two_columns_of_a_name(), "multiple columns with name `event`"),
    "an archive": ("b.tar.jsonl", b"a.jsonl\0" * 90, "not JSON"),
    "a broken compression": ("b.jsonl.zst", gzip.compress(EVENTS), "ZSTD"),
    "a cut compression": ("b.log.gz", zlib.compress(EVENTS)[:10], "inflate"),
}
# Names with a meaning elsewhere, and none for ClickHouse.
ODD_NAMES = ("b::a.jsonl", "b.tar/a.jsonl", "b.zip.jsonl", "b@c+d=e:f.jsonl", "..b.jsonl")


def load_beside_good_objects(world: World, name: str, body: bytes) -> Sequence[ObjectProblem]:
    """Load an object of team 2 in one batch with objects of three other teams, and return the problems."""
    key = f"events/team=2/{name}"
    world.s3.put_object(Bucket=world.storage.bucket, Key=key, Body=body)
    world.put("a.jsonl", lines([event(1)]), team=1)
    world.put("c.jsonl.gz", lines([event(2), event(3)]), team=3)
    world.put("d.log", f"{log_line('/')}\n".encode(), team=4)
    problems = world.load().problems
    loaded = "SELECT team_id, count() FROM events WHERE team_id != 2 GROUP BY team_id ORDER BY team_id"
    assert world.rows(loaded) == [(1, 1), (3, 2), (4, 1)]
    assert world.tables() == []
    return problems


def reasons(world: World) -> list[str]:
    return [reason for (reason,) in world.rows("SELECT reason FROM ingested_objects FINAL WHERE state = 'failed'")]


@pytest.mark.parametrize("kind", BAD_OBJECTS)
def test_a_bad_object_fails_with_its_reason_and_the_other_objects_are_loaded(world: World, kind: str) -> None:
    name, body, reason = BAD_OBJECTS[kind]
    (problem,) = load_beside_good_objects(world, name, body)
    assert (problem.key, problem.is_unreadable) == (f"events/team=2/{name}", True)
    assert reasons(world) == [problem.reason]
    assert reason in problem.reason
    # It is not tried again.
    assert (world.load().problems, world.load().already_loaded) == ([], 4)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_object_with_an_odd_name_is_loaded(world: World, name: str) -> None:
    assert load_beside_good_objects(world, name, EVENTS) == []
    assert world.rows("SELECT count() FROM events WHERE team_id = 2") == [(1,)]


def test_a_decompression_bomb_of_many_lines_fails_and_the_other_objects_are_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "MIN_READING_SECONDS", 1)
    monkeypatch.setattr(staging, "MIN_STORED_BYTES_PER_SECOND", 10**9)
    (problem,) = load_beside_good_objects(world, "b.jsonl.gz", gzip.compress(EVENTS * 1_500_000, 1))
    assert "TIMEOUT_EXCEEDED" in problem.reason
    assert reasons(world) == [problem.reason]


def test_a_decompression_bomb_of_one_line_fails_and_the_other_objects_are_loaded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "SETTINGS", {**staging.SETTINGS, "max_memory_usage": 300 * 1024**2})
    (problem,) = load_beside_good_objects(world, "b.jsonl.gz", gzip.compress(b"x" * 400 * 1024**2, 1))
    assert "memory limit exceeded" in problem.reason.lower()
    assert reasons(world) == [problem.reason]


def test_an_answer_that_every_object_gets_is_an_outage_and_marks_no_object(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clickhouse_driver.errors import ServerException

    world.put("a.jsonl", EVENTS)
    world.put("b.log", f"{log_line('/')}\n".encode())
    monkeypatch.setattr("dags.events.product_events.rows_statement", lambda *_: "SELECT no_such_function()")
    monkeypatch.setattr("dags.events.access_logs.rows_statement", lambda: "SELECT no_such_function()")
    with pytest.raises(ServerException, match="no_such_function"):
        world.load()
    assert world.states() == {}
    monkeypatch.undo()
    assert len(world.load().loaded) == 2


class Refusing(BaseHTTPRequestHandler):
    """Object storage that refuses the access key."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, *_: object) -> None:
        """Write nothing to the output of the tests."""


@pytest.fixture
def refusing_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_refused_credentials_mark_no_object(world: World, refusing_port: int) -> None:
    world.put("a.jsonl", EVENTS)
    world.put("b.jsonl", lines([event(8)]))
    refused = replace(world.storage, bucket_url=f"http://127.0.0.1:{refusing_port}/{world.storage.bucket}")
    problems = world.load(storage=refused).problems
    assert [problem.is_unreadable for problem in problems] == [False, False]
    assert world.states() == {}
    assert len(world.load().loaded) == 2
