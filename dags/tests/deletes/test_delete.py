import datetime as dt

import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import ClusterError
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Insert
from dags.common.deletion_requests import RequestKind, RequestState, list_requests, stale_days
from dags.deletes.delete import MAX_DAY_RANGES, day_ranges
from dags.local import ports
from dags.tests.rewriting import Event, Override, World, at, person
from dags.web_preaggregated.aggregate import pre_aggregate
from dags.web_preaggregated.raw import SUBJECTS, compare_with_raw


def test_the_events_of_a_person_until_the_request_are_deleted_and_later_ones_are_not(world: World) -> None:
    gone, later, other = Event(person(1)), Event(person(1), timestamp=at(2)), Event(person(2))
    other_team = Event(person(1), team_id=2)
    world.add([gone, later, other, other_team])
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(1))
    deleted = world.delete()
    assert set(world.persons()) == {later.uuid, other.uuid, other_team.uuid}
    (request,) = list_requests(world.postgres)
    assert request.state is RequestState.DONE
    assert request.finished_at is not None
    assert request.evidence is not None
    assert request.evidence["rows_before"] == {"events": 1, "person_distinct_id_overrides": 0}
    assert request.evidence["rows_after"] == {"events": 0, "person_distinct_id_overrides": 0}
    assert request.evidence["run_id"] == "run"
    assert request.evidence["mutations"]["events"]
    assert request.evidence["counted_on_hosts"] == [str(host) for host in world.cluster.hosts]
    assert deleted.rows_deleted["events"] == 1
    assert world.run_tables() == []


def test_a_late_event_that_arrives_before_the_run_is_covered(world: World) -> None:
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(1))
    world.add([Event(person(1))])
    world.delete()
    assert world.persons() == {}


def test_an_event_that_arrives_while_the_run_deletes_is_covered_with_its_day(world: World) -> None:
    world.add([Event(person(1))])
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(1))
    days: list[list[dt.date]] = []

    def arrive_late(step: str) -> None:
        if step.startswith("Recorded"):
            days.append(stale_days(world.postgres))
            if len(days) == 1:
                world.add([Event(person(1), timestamp=at(-24 * 5))])

    world.delete(report=arrive_late)
    assert world.persons() == {}
    assert days == [[at(0).date()], [at(-24 * 5).date(), at(0).date()]]


def test_a_team_is_deleted_with_its_overrides_and_rejected_lines(world: World) -> None:
    kept = Event(person(1), team_id=2)
    world.add([Event(person(1)), Event(person(2), "b"), kept])
    world.override([Override(person(9)), Override(person(9), team_id=2)])
    rejected = Insert(
        "events_rejected",
        ("team_id", "object", "line", "reason", "raw", "object_id", "run_id", "rejected_at"),
        [(team, "object", 1, "no event", "a line", 1, "a run", at(0)) for team in (1, 2)],
    )
    world.cluster.only(world.cluster.hosts[0]).any_host(rejected).result()
    world.request(RequestKind.TEAM, 1, [""], at(1))
    world.delete()
    assert set(world.persons()) == {kept.uuid}
    assert world.overrides() == {(2, "visitor", 1, 0)}
    assert world.everywhere("SELECT team_id FROM events_rejected") == [(2,)]


def test_single_events_and_events_of_a_name_are_deleted_and_others_stay(world: World) -> None:
    single, future = Event(person(1)), Event(person(1), timestamp=at(1000))
    named, kept = Event(person(1), event="it's"), Event(person(1))
    world.add([single, future, named, kept])
    keys = [str(single.uuid), str(future.uuid)]
    world.request(RequestKind.UUID, 1, keys, at(1))
    world.request(RequestKind.EVENT, 1, ["it's"], at(1))
    world.delete()
    assert set(world.persons()) == {kept.uuid}


def test_a_request_waits_while_an_override_of_the_person_is_pending_and_says_so(world: World) -> None:
    merged_into, merged_away = Event(person(1), "a"), Event(person(3), "c")
    world.add([merged_into, merged_away])
    world.override([Override(person(2), "a", _timestamp=at(0)), Override(person(4), "c", _timestamp=at(0))])
    # By the overrides the event of person 1 belongs to person 2, and that of person 3 to person 4.
    wanted = [str(person(2)), str(person(3))]
    world.request(RequestKind.PERSON, 1, wanted, at(1))
    world.delete()
    assert set(world.persons()) == {merged_into.uuid, merged_away.uuid}
    for request in list_requests(world.postgres):
        assert request.state is RequestState.PENDING
        assert "Waits for squash_person_overrides" in request.note
    world.squash()
    world.delete()
    assert set(world.persons()) == {merged_away.uuid}
    assert {(request.state, request.note) for request in list_requests(world.postgres)} == {(RequestState.DONE, "")}


def test_a_request_does_not_wait_for_an_override_that_was_written_after_it(world: World) -> None:
    event = Event(person(1))
    world.add([event])
    world.override([Override(person(2), _timestamp=at(2))])
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(1))
    world.delete()
    assert world.persons() == {}


def test_a_request_for_a_later_time_is_not_processed_before_it(world: World) -> None:
    world.add([Event(person(1))])
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    world.request(RequestKind.TEAM, 1, [""], later)
    assert world.delete().done == ()
    assert len(world.persons()) == 1


def test_a_dry_run_counts_and_changes_nothing(world: World) -> None:
    event = Event(person(1))
    world.add([event])
    (id_,) = world.request(RequestKind.PERSON, 1, [str(person(1))], at(1))
    deleted = world.delete(dry_run=True)
    assert deleted.rows_by_request == {id_: {"events": 1, "person_distinct_id_overrides": 0}}
    assert set(world.persons()) == {event.uuid}
    assert list_requests(world.postgres)[0].state is RequestState.PENDING
    assert stale_days(world.postgres) == []
    assert world.run_tables() == []


def test_with_a_host_that_does_not_answer_the_request_stays_pending(world: World) -> None:
    world.add([Event(person(1))])
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(1))
    hosts = [*world.cluster.hosts, Host(ports.LOOPBACK, ports.free_port(), 3)]
    with ClickhouseCluster(hosts, Access(database=world.cluster.database)) as cluster, pytest.raises(ClusterError):
        World(cluster, world.postgres).delete()
    assert list_requests(world.postgres)[0].state is RequestState.PENDING


def test_stale_days_of_the_web_tables_are_recomputed(world: World) -> None:
    days = [at(24 * day).date() for day in range(5)]
    world.add(
        [
            # A session over midnight, whose first day is deleted.
            Event(person(1), timestamp=at(23.5), session_id="over midnight"),
            Event(person(1), timestamp=at(24.5), session_id="over midnight"),
            Event(person(2), "b", timestamp=at(24 * 3), session_id="of another"),
        ]
    )
    pre_aggregate(world.cluster, days, run_id="before")
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(24))
    deleted = world.delete()
    assert len(world.persons()) == 2
    assert deleted.days_recomputed == tuple(days[:2])
    (request,) = list_requests(world.postgres)
    assert request.evidence is not None
    assert request.evidence["days_computed_again"] == {"count": 2, "first": str(days[0]), "last": str(days[1])}
    assert stale_days(world.postgres) == []
    for host in world.cluster.hosts:
        for subject in SUBJECTS:
            found = compare_with_raw(world.cluster.only(host), subject, days[0], days[-1])
            assert found.different == 0, "\n".join(map(str, found.listed))


def test_ranges_contain_every_day_and_close_the_smallest_gaps_first() -> None:
    first = dt.date(2026, 1, 1)
    days = [first + dt.timedelta(days=n * n) for n in range(40)]
    ranges = day_ranges(days)
    assert len(ranges) == MAX_DAY_RANGES
    assert all(any(first <= day <= last for first, last in ranges) for day in days)
    assert ranges[-1] == (days[-1], days[-1])
    assert day_ranges([]) == []
    assert day_ranges(days[:2]) == [(days[0], days[1])]


def test_the_days_that_lose_events_are_open_while_the_run_deletes_and_closed_before_it_recomputes(
    world: World,
) -> None:
    world.add([Event(person(1)), Event(person(1), timestamp=at(-24 * 5)), Event(person(2), timestamp=at(-24 * 3))])
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(1))
    days = [at(-24 * 5).date(), at(0).date()]
    states: dict[str, object] = {}

    def look(step: str) -> None:
        if step.startswith(("Recorded", "Recomputed")):
            states[step.split(maxsplit=1)[0]] = world.day_changes()

    world.delete(report=look)
    assert states == {
        "Recorded": [(day, "open", "delete") for day in days],
        "Recomputed": [(day, "closed", "delete") for day in days],
    }


def test_the_next_run_closes_what_a_dead_one_left_open(world: World) -> None:
    world.add([Event(person(1))])
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(1))

    def die(step: str) -> None:
        if step.startswith("Recorded"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.delete(report=die, run_id="dead")
    assert world.day_changes() == [(at(0).date(), "open", "delete")]
    world.delete()
    assert {state for _, state, _ in world.day_changes()} == {"closed"}
