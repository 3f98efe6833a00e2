import datetime as dt
import itertools
from typing import Any

from dags.tests.events.world import World, event, lines

START = dt.datetime(2026, 10, 1, 10, tzinfo=dt.UTC)
NUMBERS = itertools.count(1)


def visit_event(minutes: float, *, visitor: str = "a visitor", **changes: Any) -> dict[str, Any]:
    """Return an event of a visitor without a session, so many minutes after START."""
    at = START + dt.timedelta(minutes=minutes)
    given = {"distinct_id": visitor, "timestamp": at.isoformat(), "properties": {"$pathname": f"/{minutes}"}}
    return event(next(NUMBERS), **{**given, **changes})


def visits(world: World, team: int = 1) -> list[list[str]]:
    """Return the paths of the events of each session."""
    return [
        list(paths)
        for (paths,) in world.rows(
            "SELECT groupArray(pathname) FROM (SELECT * FROM events WHERE team_id = %(team)s ORDER BY timestamp) "
            "GROUP BY distinct_id, session_id ORDER BY min(timestamp), distinct_id",
            team=team,
        )
    ]


def test_events_without_a_session_get_one_that_ends_after_30_minutes_without_an_event(world: World) -> None:
    world.put("a.jsonl", lines([visit_event(minutes) for minutes in (50.5, 0, 20, 101)]))
    world.put("b.jsonl", lines([visit_event(0)]), team=2)
    assert all(entry.rows for entry in world.load().loaded)
    assert visits(world) == [["/0", "/20"], ["/50.5"], ["/101"]]
    assert visits(world, team=2) == [["/0"]]
    assert len(world.column("DISTINCT session_id")) == 4
    assert world.rows("SELECT count() FROM events WHERE session_id = ''") == [(0,)]


def test_a_visit_of_product_events_continues_across_objects(world: World) -> None:
    world.load(world.put("a.jsonl", lines([visit_event(0), visit_event(5, visitor="another")])))
    world.load(world.put("b.jsonl", lines([visit_event(25), visit_event(70)])))
    assert visits(world) == [["/0", "/25"], ["/5"], ["/70"]]
    world.load(world.put("c.jsonl", lines([visit_event(-10)])))
    assert visits(world)[0] == ["/-10", "/0", "/25"]


def test_a_visit_of_product_events_ends_after_24_hours(world: World) -> None:
    world.put("a.jsonl", lines([visit_event(minutes) for minutes in range(0, 25 * 60, 20)]))
    world.load()
    assert [len(paths) for paths in visits(world)] == [72, 3]


def test_a_session_that_the_source_sent_stays_and_is_not_continued(world: World) -> None:
    sent = "0199a001-9200-7000-8000-000000000001"
    world.load(world.put("a.jsonl", lines([visit_event(0, properties={"$session_id": sent, "$pathname": "/sent"})])))
    world.load(world.put("b.jsonl", lines([visit_event(1), visit_event(2)])))
    assert visits(world) == [["/sent"], ["/1", "/2"]]
    assert sent in world.column("session_id")


def test_the_visits_of_an_object_are_the_same_after_its_content_is_loaded_again(world: World) -> None:
    found = [visit_event(minutes) for minutes in (0, 10, 90)]
    world.load(world.put("a.jsonl", lines(found)))
    before = world.column("(uuid, session_id)")
    world.load(world.put("a.jsonl", lines([*found, visit_event(200)])))
    assert set(before) < set(world.column("(uuid, session_id)"))
