"""After any history of objects, overrides, squashes, deletions and selections, every day is exact once it settles."""

import datetime as dt
import json
import uuid
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from dags.common.clickhouse.query import Query
from dags.common.deletion_requests import RequestKind, apply_migrations, earliest_person_requests, request_deletion
from dags.common.rewrites.rewrite import Rewrite
from dags.deletes.delete import process_requests
from dags.deletes.web_tables import recompute_web_tables
from dags.person_overrides.squash import squash
from dags.tests.events.world import World
from dags.tests.rewriting import DEADLINE_SECONDS, no_lock, silent
from dags.tests.web_preaggregated.events import DAY, Override, Web, at, person
from dags.web_preaggregated.aggregate import pre_aggregate
from dags.web_preaggregated.override_days import record_override_days
from dags.web_preaggregated.raw import SUBJECTS, compare_with_raw
from dags.web_preaggregated.stale_days import stale_days
from dags.web_preaggregated.teams import select_teams, selected_teams

FIRST, LAST = DAY - dt.timedelta(days=2), DAY + dt.timedelta(days=5)
TABLES = (
    "events",
    "events_rejected",
    "ingested_objects",
    "person_distinct_id_overrides",
    "event_day_changes",
    "web_pre_aggregated_teams",
    "web_sessions",
    "web_session_days",
)
TIME_ZONES = ("UTC", "Asia/Kolkata", "Etc/GMT+8")
EVENTS_PER_GROUP = 8
MAX_ROUNDS = 3
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

RAW_PAGES = """
SELECT team_id, toDate(timestamp, %(zone)s) AS day, toString(host), toString(pathname), count(), uniqExact(session_id)
FROM events FINAL WHERE event = '$pageview' AND (%(all)s OR team_id IN %(teams)s) GROUP BY ALL ORDER BY ALL
"""
STORED_PAGES = """
SELECT team_id, toDate(page.at, %(zone)s) AS day, toString(page.host), toString(page.pathname), count(),
    uniqExact(session_id)
FROM web_sessions ARRAY JOIN pages AS page GROUP BY ALL ORDER BY ALL
"""

Step = Callable[[World], None]


def event(number: int, team: int) -> str:
    """Return an event as JSON. Groups of events are two days apart, and most sessions of a group pass midnight."""
    group, place = divmod(number, EVENTS_PER_GROUP)
    time = at("21:30", day=2 * group) + dt.timedelta(minutes=47 * place)
    visitor = f"visitor-{number % 3}"
    return json.dumps(
        {
            "uuid": str(uuid.UUID(int=1000 * team + number + 1)),
            "event": "$pageview" if number % 5 else "order_placed",
            "distinct_id": visitor,
            "timestamp": time.isoformat(),
            "properties": {
                "$host": f"{number % 2}.example.com",
                "$pathname": f"/{number % 4}",
                "$session_id": f"{visitor}-{group}",
            },
        }
    )


def put(name: str, team: int, numbers: Sequence[int]) -> Step:
    """Upload an object, or new content of it, and load it."""

    def step(world: World) -> None:
        body = "".join(f"{event(number, team)}\n" for number in numbers).encode()
        world.load(world.put(f"{name}.jsonl", body, team=team))

    return step


def override(visitor: int, team: int, number: int, version: int, is_deleted: int) -> Step:
    rows = Override(f"visitor-{visitor}", person(number), version=version, team_id=team, is_deleted=is_deleted)
    return lambda world: Web(world.cluster).override(rows)


def run_squash(world: World) -> None:
    held = earliest_person_requests(world.postgres)
    in_a_year = dt.datetime.now(dt.UTC) + dt.timedelta(days=365)
    squash(_rewrite(world), cutoff=in_a_year, hold_back=held, dry_run=False)


def delete(team: int, number: int) -> Step:
    """Request the deletion of one of the persons, and process what is due."""

    def step(world: World) -> None:
        statement = "SELECT DISTINCT toString(person_id) AS id FROM events WHERE team_id = %(team)s ORDER BY id"
        found = [one for (one,) in world.rows(statement, team=team)]
        if found:
            key = found[number % len(found)]
            request_deletion(world.postgres, RequestKind.PERSON, team, [key], requested_by="a test")
        process_requests(
            _rewrite(world),
            world.postgres,
            lambda days: recompute_web_tables(world.cluster, days, "deletes"),
            dry_run=False,
        )

    return step


def select(*teams: int) -> Step:
    def step(world: World) -> None:
        select_teams(world.cluster, teams)

    return step


def settle(world: World) -> None:
    """Do what the sensor and its jobs do, until no day is stale."""
    record_override_days(world.cluster, "overrides")
    today = dt.datetime.now(dt.UTC).date()
    for _ in range(MAX_ROUNDS):
        teams = selected_teams(world.cluster)
        stale = [one.day for one in stale_days(world.cluster, teams, today, dt.date(2015, 1, 1))]
        if not stale:
            return
        pre_aggregate(world.cluster, stale, run_id=uuid.uuid4().hex, team_ids=teams)
    raise AssertionError(f"still stale after {MAX_ROUNDS} rounds: {stale}")


def _rewrite(world: World) -> Rewrite:
    return Rewrite.start(
        world.cluster, "run", deadline_seconds=DEADLINE_SECONDS, report=silent, assert_lock_held=no_lock
    )


numbers = st.lists(st.integers(0, 2 * EVENTS_PER_GROUP - 1), min_size=1, max_size=10, unique=True)
steps = st.one_of(
    st.builds(put, st.sampled_from("ab"), st.integers(1, 2), numbers),
    st.builds(put, st.sampled_from("ab"), st.integers(1, 2), numbers),
    st.builds(override, st.integers(0, 2), st.integers(1, 2), st.integers(0, 2), st.integers(1, 4), st.integers(0, 1)),
    st.builds(delete, st.integers(1, 2), st.integers(0, 5)),
    st.sampled_from([run_squash, settle, select(), select(1), select(1, 2)]),
)


def play(world: World, history: Sequence[Step]) -> None:
    for table in TABLES:
        world.cluster.map_all_hosts(Query(f"TRUNCATE TABLE {table} SYNC", retryable=True)).result()
    apply_migrations(world.postgres)
    with world.postgres.connection() as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM deletion_requests")
        cursor.execute("DELETE FROM deletion_days")
    for step in history:
        step(world)
    settle(world)
    teams = selected_teams(world.cluster)
    for subject in SUBJECTS:
        found = compare_with_raw(world.cluster, subject, FIRST, LAST, teams)
        assert found.different == 0, (subject, [str(one) for one in found.listed])
    for zone in TIME_ZONES:
        raw = world.rows(RAW_PAGES, zone=zone, all=int(teams is None), teams=teams or (0,))
        assert world.rows(STORED_PAGES, zone=zone) == raw, zone


def test_late_replaced_and_overlapping_objects_overrides_and_deletions_are_followed(world: World) -> None:
    everything = range(2 * EVENTS_PER_GROUP)
    play(
        world,
        [
            put("a", 1, range(EVENTS_PER_GROUP)),
            settle,
            put("b", 1, [*everything]),
            put("a", 2, [1, 2, 3]),
            settle,
            override(1, 1, 7, version=1, is_deleted=0),
            settle,
            run_squash,
            settle,
            put("b", 1, [1, 2, 9]),
            select(1),
            settle,
            delete(1, 0),
            select(),
        ],
    )
    assert {team for (team,) in world.rows("SELECT DISTINCT team_id FROM web_sessions")} == {1, 2}


@settings(max_examples=5, deadline=None, suppress_health_check=SUPPRESSED, phases=(Phase.explicit, Phase.generate))
@given(history=st.lists(steps, min_size=2, max_size=5))
def test_after_any_history_every_day_is_exact_when_it_settles(world: World, history: list[Step]) -> None:
    play(world, history)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=150, deadline=None, suppress_health_check=SUPPRESSED)
@given(history=st.lists(steps, min_size=2, max_size=14))
def test_after_long_histories_every_day_is_exact_when_it_settles(world: World, history: list[Step]) -> None:
    play(world, history)
