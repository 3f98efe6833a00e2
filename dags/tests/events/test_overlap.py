"""An event that several objects contain stays for as long as one of them does."""

from collections.abc import Callable

import pytest

from dags.events.manifest import Entry
from dags.events.publishing import Publisher
from dags.tests.events.world import World, event, lines


def put(world: World, name: str, *numbers: int) -> str:
    return world.put(name, lines([event(number, timestamp="2026-10-01T10:00:00Z") for number in numbers]))


def merge(world: World) -> None:
    world.rows("OPTIMIZE TABLE events FINAL")


def numbers(world: World) -> list[int]:
    return [value.int - 1 for (value,) in world.rows("SELECT uuid FROM events FINAL ORDER BY uuid")]


def test_an_event_of_two_objects_stays_when_one_of_them_is_replaced_after_a_merge(world: World) -> None:
    world.load(put(world, "a.jsonl", 1, 2))
    world.load(put(world, "b.jsonl", 2, 3))
    merge(world)
    assert numbers(world) == [1, 2, 3]
    world.load(put(world, "b.jsonl", 3))
    assert numbers(world) == [1, 2, 3]
    merge(world)
    assert numbers(world) == [1, 2, 3]
    # The last object that has it is replaced too.
    world.load(put(world, "a.jsonl", 1))
    merge(world)
    assert numbers(world) == [1, 3]
    assert world.tables() == []


def test_events_that_no_other_object_has_go_with_the_replaced_content(world: World) -> None:
    world.load(put(world, "a.jsonl", 1), put(world, "b.jsonl", 2, 3))
    world.load(put(world, "b.jsonl", 3))
    assert numbers(world) == [1, 3]


def test_objects_of_other_teams_and_days_are_not_read_again(world: World) -> None:
    world.load(world.put("a.jsonl", lines([event(2, timestamp="2026-10-05T10:00:00Z")])))
    world.load(world.put("b.jsonl", lines([event(2)]), team=2))
    world.load(put(world, "c.jsonl", 2, 3))
    world.load(put(world, "c.jsonl", 3))
    world.rows("SYSTEM FLUSH LOGS")
    assert world.rows(
        "SELECT count() FROM system.query_log WHERE query LIKE 'INSERT%%restored%%' "
        "AND current_database = currentDatabase()"
    ) == [(0,)]
    assert numbers(world) == [2, 2, 3]


@pytest.mark.parametrize("replaced_meanwhile", [False, True])
@pytest.mark.parametrize("step", ["restore", "_remove", "insert"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_shared_event_stays_when_a_load_dies(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, when: str, *, replaced_meanwhile: bool
) -> None:
    world.load(put(world, "a.jsonl", 1, 2))
    world.load(put(world, "b.jsonl", 2, 3))
    merge(world)
    put(world, "b.jsonl", 2, 3, 4)
    original: Callable[..., None] = getattr(Publisher, step, lambda *_: None)

    def die(publisher: Publisher, *arguments: object, **named: object) -> None:
        if when == "after":
            original(publisher, *arguments, **named)
        raise ConnectionError

    with monkeypatch.context() as patched:
        if step == "restore":
            patched.setattr("dags.events.loading._restore", die)
        else:
            patched.setattr(Publisher, step, die)
        with pytest.raises(ConnectionError):
            world.load()
    merge(world)
    if replaced_meanwhile:
        put(world, "b.jsonl", 3, 4)
    world.load()
    merge(world)
    assert numbers(world) == [1, 2, 3, 4]
    assert sorted(world.states().values()).count("loaded") == 2


def test_a_new_load_of_a_dead_one_keeps_what_the_dead_rows_replaced_in_a_merge(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.load(put(world, "a.jsonl", 1, 2))
    put(world, "b.jsonl", 2, 3)

    remove, removals = Publisher._remove, 0

    def die_at_second_removal(publisher: Publisher, entries: list[Entry]) -> None:
        nonlocal removals
        removals += 1
        if removals == 2:
            raise ConnectionError
        remove(publisher, entries)

    def die_after_removal(publisher: Publisher, entries: list[Entry]) -> None:
        remove(publisher, entries)
        raise ConnectionError

    # The first load of b dies after its rows are inserted, the second after these are removed.
    for step in (die_at_second_removal, die_after_removal):
        with monkeypatch.context() as patched:
            patched.setattr(Publisher, "_remove", step)
            with pytest.raises(ConnectionError):
                world.load()
        merge(world)
    put(world, "b.jsonl", 3)
    world.load()
    merge(world)
    assert numbers(world) == [1, 2, 3]
