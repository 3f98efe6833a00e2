import datetime as dt

import dagster as dg
import pytest

from dags.common.event_log import reading
from dags.common.event_log.reading import OVERLAP, Position, overlap_start, read_chunks
from dags.tests.alerts.world import World, op_job

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)
FAILURES = (dg.DagsterEventType.RUN_FAILURE,)


def test_reading_starts_at_the_newest_position_that_is_older_than_the_overlap() -> None:
    positions = [Position(NOW - 3 * OVERLAP, 10), Position(NOW - OVERLAP, 20), Position(NOW - OVERLAP + SECOND, 30)]
    assert overlap_start(positions, NOW) == 20


def test_a_reader_that_began_within_the_overlap_starts_at_its_first_position() -> None:
    assert overlap_start([Position(NOW - SECOND, 10), Position(NOW, 20)], NOW) == 10


def test_without_events_there_is_one_empty_chunk_and_everything_is_known(world: World) -> None:
    (chunk,) = read_chunks(world.instance, FAILURES, 0, world, world.now)
    assert (list(chunk.heads), chunk.known_until) == ([], world.now)


def test_chunks_follow_each_other_and_the_last_one_is_not_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_EVENTS_PER_CHUNK", 2)
    runs = [world.fail(op_job("plain")) for _ in range(5)]
    chunks = list(read_chunks(world.instance, FAILURES, 0, world, world.now + SECOND))
    assert [len(chunk.heads) for chunk in chunks] == [2, 2, 1]
    assert [head.run_id for chunk in chunks for head in chunk.heads] == runs
    assert chunks[-1].known_until == world.now


def test_reading_stops_at_its_time_and_knows_only_what_came_before_the_chunk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_EVENTS_PER_CHUNK", 2)
    started = world.now
    for _ in range(5):
        world.fail(op_job("plain"))
        world.forward(10)
    (chunk,) = read_chunks(world.instance, FAILURES, 0, world, world.now)
    assert chunk.known_until == started
