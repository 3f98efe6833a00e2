import datetime as dt
import uuid
from collections.abc import Iterator

import dagster as dg
import pytest

from dags.events.batches import BatchLimits, batch_hash
from dags.events.discovery import TickLimits
from dags.events.jobs import BATCH_TAG, evaluate_tick
from dags.events.objects import list_all
from dags.tests.events.world import World, event, lines


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def tick(
    world: World,
    instance: dg.DagsterInstance,
    cursor: str = "",
    limits: TickLimits | None = None,
    *,
    after: dt.timedelta = dt.timedelta(0),
    reported: list[str] | None = None,
) -> dg.SensorResult:
    """Evaluate a tick at a time so long after now."""
    return evaluate_tick(
        instance,
        cursor,
        world.s3,
        world.cluster,
        world.storage.bucket,
        limits or TickLimits(),
        now=dt.datetime.now(dt.UTC) + after,
        report=([] if reported is None else reported).append,
    )


def keys_of(result: dg.SensorResult) -> list[list[str]]:
    return [
        [one["key"].rsplit("/", 1)[1] for one in request.run_config["ops"]["events"]["config"]["objects"]]
        for request in result.run_requests or []
    ]


def put(world: World, *names: str) -> None:
    for number, name in enumerate(names):
        world.put(name, lines([event(number)]))


def start(instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus) -> str:
    """Add a run to the instance as the daemon does for a request."""
    run = dg.DagsterRun(
        job_name="load_events_job",
        run_id=str(uuid.uuid4()),
        run_config=request.run_config,
        tags=dict(request.tags),
        status=status,
    )
    return instance.add_run(run).run_id


def test_new_objects_are_requested_in_bounded_batches(world: World, instance: dg.DagsterInstance) -> None:
    put(world, *(f"{number}.jsonl" for number in range(5)))
    result = tick(world, instance, limits=TickLimits(batch=BatchLimits(max_objects=2)))
    assert keys_of(result) == [["0.jsonl", "1.jsonl"], ["2.jsonl", "3.jsonl"], ["4.jsonl"]]
    assert result.cursor == ""
    size = len(lines([event(0)]))
    result = tick(world, instance, limits=TickLimits(batch=BatchLimits(max_bytes=3 * size + 10)))
    assert [len(batch) for batch in keys_of(result)] == [3, 2]


def test_a_tick_requests_a_bounded_number_of_runs_and_the_next_tick_continues_there(
    world: World, instance: dg.DagsterInstance
) -> None:
    put(world, *(f"{number}.jsonl" for number in range(5)))
    limits = TickLimits(max_runs=2, batch=BatchLimits(max_objects=1))
    first = tick(world, instance, limits=limits)
    assert keys_of(first) == [["0.jsonl"], ["1.jsonl"]]
    second = tick(world, instance, first.cursor or "", limits)
    assert keys_of(second) == [["2.jsonl"], ["3.jsonl"]]
    third = tick(world, instance, second.cursor or "", limits)
    assert keys_of(third) == [["4.jsonl"]]
    assert third.cursor == ""


def test_a_tick_lists_a_bounded_part_and_the_cursor_moves_on(
    world: World, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dags.events.objects.MAX_PAGE_OBJECTS", 3)
    put(world, *(f"{number}.jsonl" for number in range(7)))
    cursor, seen = "", []
    for _ in range(3):
        result = tick(world, instance, cursor, TickLimits(max_pages=1))
        seen += keys_of(result)
        cursor = result.cursor or ""
    assert seen == [["0.jsonl", "1.jsonl", "2.jsonl"], ["3.jsonl", "4.jsonl", "5.jsonl"], ["6.jsonl"]]
    assert cursor == ""


def test_loaded_and_unreadable_objects_are_not_requested_even_when_the_cursor_is_lost(
    world: World, instance: dg.DagsterInstance
) -> None:
    put(world, "a.jsonl", "b.jsonl")
    world.put("c.jsonl", b"no json\n")
    world.load()
    for cursor in ("", "events/team=1/a.jsonl", "a cursor from elsewhere"):
        assert tick(world, instance, cursor).run_requests in (None, [])
    skipped = tick(world, instance)
    assert skipped.skip_reason is not None
    assert "3 objects scanned: 3 already loaded or unreadable." in str(skipped.skip_reason.skip_message)


def test_changed_content_is_requested_with_another_run_key(world: World, instance: dg.DagsterInstance) -> None:
    put(world, "a.jsonl")
    before = tick(world, instance).run_requests or []
    world.load()
    world.put("a.jsonl", lines([event(7)]))
    after = tick(world, instance).run_requests or []
    assert keys_of(tick(world, instance)) == [["a.jsonl"]]
    assert before[0].run_key != after[0].run_key
    # The old content again: it was replaced, so the table no longer has it.
    world.load()
    world.put("a.jsonl", lines([event(0)]))
    assert keys_of(tick(world, instance)) == [["a.jsonl"]]


def test_the_same_batch_has_the_same_run_key_and_is_not_requested_while_its_run_is_in_progress(
    world: World, instance: dg.DagsterInstance
) -> None:
    put(world, "a.jsonl", "b.jsonl")
    (request,) = tick(world, instance).run_requests or []
    (again,) = tick(world, instance).run_requests or []
    assert request.run_key == again.run_key
    start(instance, request, dg.DagsterRunStatus.STARTED)
    waiting = tick(world, instance)
    assert not waiting.run_requests
    assert "2 will be loaded by a run that is still in progress" in str(waiting.skip_reason)
    put(world, "c.jsonl")
    assert keys_of(tick(world, instance)) == [["c.jsonl"]]


def test_a_batch_whose_runs_fail_is_requested_again_less_and_less_often_and_for_ever(
    world: World, instance: dg.DagsterInstance
) -> None:
    put(world, "a.jsonl")
    run_keys = []
    for attempt in range(12):
        wait = dt.timedelta(0) if attempt == 0 else min(dt.timedelta(minutes=2 ** (attempt - 1)), dt.timedelta(hours=1))
        if attempt:
            waiting = tick(world, instance, after=wait - dt.timedelta(seconds=30))
            assert not waiting.run_requests
            assert f"1 wait after failed runs, since {dt.datetime.now(dt.UTC):%Y-%m-%d} " in str(waiting.skip_reason)
            assert "events/team=1/a.jsonl" in str(waiting.skip_reason)
        (request,) = tick(world, instance, after=wait).run_requests or []
        run_keys.append(request.run_key)
        start(instance, request, dg.DagsterRunStatus.FAILURE)
    assert len(set(run_keys)) == 12
    (version,) = list_all(world.s3, world.storage.bucket, "events/")
    assert instance.get_runs_count(dg.RunsFilter(tags={BATCH_TAG: batch_hash([version])})) == 12


def test_an_object_that_ends_every_run_is_soon_alone_and_new_objects_do_not_wait_for_it(
    world: World, instance: dg.DagsterInstance
) -> None:
    put(world, *(f"{number}.jsonl" for number in range(4)))
    limits = TickLimits(batch=BatchLimits(max_objects=4))
    sizes = []
    for _ in range(3):
        requests = tick(world, instance, limits=limits, after=dt.timedelta(hours=2)).run_requests or []
        sizes.append([len(one.run_config["ops"]["events"]["config"]["objects"]) for one in requests])
        for request in requests:
            start(instance, request, dg.DagsterRunStatus.FAILURE)
    assert sizes == [[4], [2, 2], [1, 1, 1, 1]]
    put(world, "new.jsonl")
    reported: list[str] = []
    assert keys_of(tick(world, instance, limits=limits, reported=reported)) == [["new.jsonl"]]
    assert "4 wait after failed runs" in reported[0]


def test_keys_that_cannot_be_loaded_are_reported_and_folder_markers_are_not(
    world: World, instance: dg.DagsterInstance
) -> None:
    for key in ("events/readme.txt", "events/team=1/", "events/team=1/a.csv"):
        world.s3.put_object(Bucket=world.storage.bucket, Key=key, Body=b"x")
    reason = str(tick(world, instance).skip_reason)
    assert "2 cannot be loaded: events/readme.txt names no team" in reason
    assert "a.csv has no known suffix" in reason


def test_an_empty_bucket_is_skipped_with_a_reason(world: World, instance: dg.DagsterInstance) -> None:
    assert "There are no objects under s3://" in str(tick(world, instance).skip_reason)
