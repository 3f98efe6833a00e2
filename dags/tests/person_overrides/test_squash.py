import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import ClusterError
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Query
from dags.common.deletion_requests import RequestKind
from dags.common.rewrites.rewrite import PREFIX
from dags.local import ports
from dags.tests.rewriting import Event, Override, World, at, person


def test_an_override_is_written_into_the_events_of_its_distinct_id_and_removed(world: World) -> None:
    mine, others = Event(person(1)), [Event(person(1), "other"), Event(person(1), team_id=2)]
    world.add([mine, *others])
    world.override([Override(person(9))])
    squashed = world.squash()
    assert world.persons() == {mine.uuid: person(9), **{event.uuid: person(1) for event in others}}
    assert world.overrides() == set()
    assert squashed.rows_rewritten == 1
    assert world.run_tables() == []


def test_of_overrides_in_a_chain_the_latest_version_counts_and_all_are_removed(world: World) -> None:
    event = Event(person(1))
    world.add([event])
    for version, number in ((1, 5), (3, 7), (2, 6)):
        world.override([Override(person(number), version=version)])
    world.squash()
    assert world.persons() == {event.uuid: person(7)}
    assert world.overrides() == set()


def test_a_tombstone_rewrites_nothing_and_is_removed_with_the_older_override(world: World) -> None:
    event = Event(person(1))
    world.add([event])
    world.override([Override(person(5), version=1)])
    world.override([Override(person(5), version=2, is_deleted=1)])
    squashed = world.squash()
    assert world.persons() == {event.uuid: person(1)}
    assert world.overrides() == set()
    assert (squashed.overrides, squashed.tombstones, squashed.rows_rewritten) == (0, 1, 0)


def test_an_override_or_tombstone_as_young_as_the_cutoff_is_left(world: World) -> None:
    old, young, dead = Event(person(1), "old"), Event(person(1), "young"), Event(person(1), "dead")
    world.add([old, young, dead])
    world.override(
        [
            Override(person(5), "old", _timestamp=at(9)),
            Override(person(5), "young", _timestamp=at(10)),
            Override(person(5), "dead", is_deleted=1, _timestamp=at(10)),
        ]
    )
    world.squash(at(10))
    assert world.persons() == {old.uuid: person(5), young.uuid: person(1), dead.uuid: person(1)}
    assert world.overrides() == {(1, "young", 1, 0), (1, "dead", 1, 1)}


def test_an_override_written_while_a_squash_runs_is_kept_for_the_next_one(world: World) -> None:
    event = Event(person(1))
    world.add([event])
    world.override([Override(person(5), version=1)])

    def override_again(step: str) -> None:
        if step.startswith("Snapshot"):
            world.override([Override(person(6), version=2)])

    world.squash(report=override_again)
    assert world.persons() == {event.uuid: person(5)}
    assert world.overrides() == {(1, "visitor", 2, 0)}
    world.squash()
    assert world.persons() == {event.uuid: person(6)}
    assert world.overrides() == set()


def test_an_event_that_arrives_after_the_mutation_is_rewritten_in_another_round(world: World) -> None:
    early, late = Event(person(1)), Event(person(1), timestamp=at(-24 * 60))
    world.add([early])
    world.override([Override(person(5))])
    arrived: list[Event] = []

    def arrive_late(step: str) -> None:
        if step.startswith("events: rewritten") and not arrived:
            arrived.append(late)
            world.add([late])

    squashed = world.squash(report=arrive_late)
    assert world.persons() == {early.uuid: person(5), late.uuid: person(5)}
    assert squashed.rounds == 2
    assert world.overrides() == set()


def test_an_override_that_is_younger_than_a_request_for_a_person_of_its_team_waits_for_it(world: World) -> None:
    held, other_team = Event(person(1), "a"), Event(person(1), "a", team_id=2)
    world.add([held, other_team])
    world.override([Override(person(5), "a", _timestamp=at(3)), Override(person(5), "a", 2, _timestamp=at(3))])
    world.request(RequestKind.PERSON, 1, [str(person(1))], at(2))
    squashed = world.squash()
    assert world.persons() == {held.uuid: person(1), other_team.uuid: person(5)}
    assert squashed.held_teams == (1,)
    world.delete()
    assert set(world.persons()) == {other_team.uuid}


def test_a_dry_run_counts_rows_parts_and_partitions_and_changes_nothing(world: World) -> None:
    world.add([Event(person(1), "a"), Event(person(1), "a", timestamp=at(24 * 40)), Event(person(1), "b")])
    world.override([Override(person(5), "a"), Override(person(1), "b")])
    before = world.persons(), world.overrides()
    squashed = world.squash(dry_run=True)
    assert (world.persons(), world.overrides()) == before
    assert squashed.is_dry_run
    (partitions,) = squashed.matches.values()
    assert {name: (touched.rows, touched.parts) for name, touched in partitions.items()} == {
        "202603": (1, 1),
        "202605": (1, 1),
    }
    assert world.run_tables() == []


def test_partitions_without_a_row_to_rewrite_are_not_touched(world: World) -> None:
    world.add([Event(person(1), "a"), Event(person(1), "b", timestamp=at(24 * 40))])
    world.override([Override(person(5), "a")])
    world.squash()
    commands = world.everywhere(
        "SELECT command FROM system.mutations WHERE database = currentDatabase() AND table = 'events'"
    )
    assert commands
    assert all("202603" in command and "202605" not in command for (command,) in commands)


def test_squashing_again_finds_nothing_to_do(world: World) -> None:
    world.add([Event(person(1))])
    world.override([Override(person(5))])
    world.squash()
    again = world.squash()
    assert (again.overrides, again.rows_rewritten, again.mutations) == (0, 0, {})


def test_with_a_host_that_does_not_answer_no_override_is_removed(world: World) -> None:
    event = Event(person(1))
    world.add([event])
    world.override([Override(person(5))])
    hosts = [*world.cluster.hosts, Host(ports.LOOPBACK, ports.free_port(), 3)]
    with ClickhouseCluster(hosts, Access(database=world.cluster.database)) as cluster, pytest.raises(ClusterError):
        World(cluster, world.postgres).squash()
    assert world.overrides() == {(1, "visitor", 1, 0)}
    world.squash()
    assert world.persons() == {event.uuid: person(5)}


def test_a_failing_mutation_of_a_dead_run_is_killed_and_does_not_block_the_squash(world: World) -> None:
    event = Event(person(1))
    world.add([event])
    world.override([Override(person(5))])
    name = f"{PREFIX}left_by_a_dead_run"
    for statement in (
        f"CREATE TABLE {name} (one UInt8) ENGINE = MergeTree ORDER BY one",
        f"ALTER TABLE events UPDATE session_id = throwIf(1, '{name}') WHERE NOT ignore('{name}')",
    ):
        world.cluster.map_all_hosts(Query(statement, settings={"mutations_sync": 0})).result()
    world.squash()
    assert world.persons() == {event.uuid: person(5)}
    assert world.run_tables() == []


def test_the_days_of_rewritten_events_are_recorded_before_the_mutation_and_closed_after_it(world: World) -> None:
    world.add([Event(person(1)), Event(person(1), timestamp=at(24)), Event(person(1), "other", timestamp=at(48))])
    world.override([Override(person(2))])
    days = [at(0).date(), at(24).date()]
    while_open: list[object] = []

    def look(step: str) -> None:
        if ": enqueued" in step and "events" in step:
            while_open.extend(world.day_changes())

    result = world.squash(report=look)
    assert while_open == [(day, "open", "squash") for day in days]
    assert world.day_changes() == [(day, "closed", "squash") for day in days]
    assert list(result.days) == days


def test_a_squash_that_rewrites_nothing_and_a_dry_run_record_no_day(world: World) -> None:
    world.add([Event(person(2))])
    world.override([Override(person(2)), Override(person(3), "elsewhere")])
    world.squash(dry_run=True)
    world.squash()
    assert world.day_changes() == []


def test_the_next_squash_closes_what_a_dead_one_left_open(world: World) -> None:
    world.add([Event(person(1))])
    world.override([Override(person(2))])

    def die(step: str) -> None:
        if ": enqueued" in step and "events" in step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.squash(report=die, run_id="dead")
    assert world.day_changes() == [(at(0).date(), "open", "squash")]
    world.squash(dry_run=True)
    assert world.day_changes() == [(at(0).date(), "open", "squash")]
    world.squash()
    assert {state for _, state, _ in world.day_changes()} == {"closed"}
