"""What a completed deletion request covers does not come back through a load."""

import datetime as dt
import uuid

import psycopg2
import pytest

from dags.common import deletion_requests
from dags.common.deletion_requests import RequestKind
from dags.common.locks import LockTimeoutError
from dags.tests.events.world import World, event, lines

PERSON = "018f3c1e-0000-4000-8000-000000000001"
NOON = dt.datetime(2026, 10, 1, 12, tzinfo=dt.UTC)


def complete(world: World, kind: RequestKind, key: str = "", team: int = 1, until: dt.datetime = NOON) -> int:
    """Request a deletion and mark it as done."""
    deletion_requests.apply_migrations(world.postgres)
    keys = [key]
    (number,) = deletion_requests.request_deletion(
        world.postgres, kind, team, keys, requested_by="a test", requested_at=until
    )
    deletion_requests.mark_done(world.postgres, {number: {"rows_after": {}}})
    return number


def put(world: World, name: str = "a.jsonl", *, team: int = 1) -> str:
    """Upload an event of the person before noon, one of the person after noon, and one of another person."""
    found = [
        event(1, person_id=PERSON, timestamp="2026-10-01T11:00:00Z"),
        event(2, person_id=PERSON, timestamp="2026-10-01T13:00:00Z"),
        event(3, event="purchase", timestamp="2026-10-01T11:00:00Z"),
    ]
    return world.put(name, lines(found), team=team)


def numbers(world: World) -> list[int]:
    return sorted(value.int - 1 for value in world.column("uuid"))


def test_an_object_that_is_loaded_after_a_person_was_deleted_has_no_event_of_the_person(world: World) -> None:
    complete(world, RequestKind.PERSON, PERSON)
    put(world)
    put(world, "b.jsonl", team=2)
    first, _ = world.load().loaded
    assert (first.rows, dict(first.skipped_rows)) == (2, {"deleted on request": 1})
    assert first.rows_by_day == {dt.date(2026, 10, 1): 2}
    assert numbers(world) == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("kind", "key", "left"),
    [
        (RequestKind.TEAM, "", [2]),
        (RequestKind.EVENT, "purchase", [1, 2]),
        (RequestKind.UUID, str(uuid.UUID(int=3)), [1, 3]),
    ],
)
def test_every_kind_of_request_is_respected(world: World, kind: RequestKind, key: str, left: list[int]) -> None:
    complete(world, kind, key)
    put(world)
    world.load()
    assert numbers(world) == left


def test_a_deleted_person_does_not_come_back_through_a_replaced_object(world: World) -> None:
    put(world)
    world.load()
    world.rows("DELETE FROM events WHERE person_id = %(person)s AND timestamp <= '2026-10-01 12:00:00'", person=PERSON)
    complete(world, RequestKind.PERSON, PERSON)
    world.put("a.jsonl", lines([event(1, person_id=PERSON, timestamp="2026-10-01T11:00:00Z"), event(4)]))
    world.load()
    assert numbers(world) == [4]


def test_pending_and_refused_requests_skip_nothing(world: World) -> None:
    deletion_requests.apply_migrations(world.postgres)
    one, _ = (
        deletion_requests.request_deletion(world.postgres, RequestKind.TEAM, 1, [""], requested_by="a test")[0]
        for _ in range(2)
    )
    deletion_requests.refuse(world.postgres, one, "a test")
    put(world)
    world.load()
    assert numbers(world) == [1, 2, 3]


def test_without_postgres_nothing_is_loaded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put(world)

    def fail(*_: object) -> None:
        raise psycopg2.OperationalError

    with monkeypatch.context() as patched:
        patched.setattr(deletion_requests, "completed_requests", fail)
        with pytest.raises(psycopg2.OperationalError):
            world.load()
    assert (numbers(world), world.states(), world.tables()) == ([], {}, [])
    world.load()
    assert numbers(world) == [1, 2, 3]


def test_a_load_waits_while_requests_are_being_marked_as_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from dags.common.locks import exclusive

    put(world)
    monkeypatch.setattr("dags.events.loading.COMPLETION_WAIT_SECONDS", 0.2)
    with exclusive(world.postgres, deletion_requests.COMPLETION_LOCK, 1), pytest.raises(LockTimeoutError):
        world.load()
    assert numbers(world) == []
