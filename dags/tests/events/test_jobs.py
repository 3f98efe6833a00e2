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
    world: World, instance: dg.DagsterInstance, cursor: str = "", limits: TickLimits | None = None
) -> dg.SensorResult:
    return evaluate_tick(instance, cursor, world.s3, world.cluster, world.storage.bucket, limits or TickLimits())


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


def test_a_batch_whose_run_failed_is_requested_again_a_limited_number_of_times(
    world: World, instance: dg.DagsterInstance
) -> None:
    put(world, "a.jsonl")
    run_keys = []
    for _ in range(3):
        (request,) = tick(world, instance).run_requests or []
        run_keys.append(request.run_key)
        start(instance, request, dg.DagsterRunStatus.FAILURE)
    assert len(set(run_keys)) == 3
    (version,) = list_all(world.s3, world.storage.bucket, "events/")
    assert instance.get_runs_count(dg.RunsFilter(tags={BATCH_TAG: batch_hash([version])})) == 3
    given_up = tick(world, instance)
    assert not given_up.run_requests
    assert "run load_events_job manually" in str(given_up.skip_reason)


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
