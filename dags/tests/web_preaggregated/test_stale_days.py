import datetime as dt
from collections.abc import Mapping, Sequence

import pytest

from dags.common import event_days
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert
from dags.common.event_days import ChangeReason
from dags.web_preaggregated.stale_days import input_fingerprints

DAY = dt.date(2026, 3, 11)
TODAY = DAY + dt.timedelta(days=10)


def day(number: int) -> dt.date:
    return DAY + dt.timedelta(days=number)


def put(
    cluster: ClickhouseCluster,
    object_id: int,
    rows_by_day: Mapping[dt.date, int],
    *,
    state: str = "loaded",
    version: int = 1,
    team_id: int = 1,
) -> None:
    columns = ("object", "etag", "object_id", "version", "team_id", "state", "rows", "rows_by_day")
    row = (
        f"events/{object_id}",
        "etag",
        object_id,
        version,
        team_id,
        state,
        sum(rows_by_day.values()),
        dict(rows_by_day),
    )
    cluster.any_host(Insert("ingested_objects", columns, [row])).result()


def fingerprints(
    cluster: ClickhouseCluster, team_ids: Sequence[int] | None = None, today: dt.date = TODAY
) -> dict[int, int]:
    """Return the fingerprints of some days, by their distance from DAY."""
    days = [day(number) for number in range(-4, 5)]
    found = cluster.any_host(lambda client: input_fingerprints(client, days, team_ids, today)).result()
    return {(one - DAY).days: value for one, value in found.items()}


def changed(before: Mapping[int, int], after: Mapping[int, int]) -> list[int]:
    return [number for number in before if before[number] != after[number]]


def test_an_object_changes_the_fingerprint_of_its_days_and_of_their_neighbors(cluster: ClickhouseCluster) -> None:
    assert set(fingerprints(cluster).values()) == {0}
    put(cluster, 7, {day(0): 3})
    one = fingerprints(cluster)
    assert changed(dict.fromkeys(one, 0), one) == [-1, 0, 1]
    put(cluster, 8, {day(-2): 1, day(2): 1})
    assert changed(one, fingerprints(cluster)) == [-3, -2, -1, 1, 2, 3]


def test_each_new_state_of_an_object_changes_the_fingerprint(cluster: ClickhouseCluster) -> None:
    seen = set()
    for version, state in enumerate(("loading", "loaded", "replaced"), start=1):
        put(cluster, 7, {day(0): 3}, state=state, version=version)
        seen.add(fingerprints(cluster)[0])
    assert len(seen) == 3


def test_the_order_of_objects_does_not_matter(cluster: ClickhouseCluster) -> None:
    put(cluster, 7, {day(0): 3})
    put(cluster, 8, {day(0): 2})
    before = fingerprints(cluster)
    put(cluster, 8, {day(0): 2})
    assert fingerprints(cluster) == before


def test_a_day_that_has_not_ended_is_no_input_until_it_has(cluster: ClickhouseCluster) -> None:
    put(cluster, 7, {day(1): 3})
    assert changed(fingerprints(cluster, today=day(1)), fingerprints(cluster, today=day(2))) == [0, 1, 2]
    assert set(fingerprints(cluster, today=day(1)).values()) == {0}


def test_an_entry_without_days_counts_from_its_first_to_its_last_event(cluster: ClickhouseCluster) -> None:
    columns = ("object", "object_id", "version", "state", "rows", "first_timestamp", "last_timestamp")
    first, last = (dt.datetime.combine(day(n), dt.time(23, 59), tzinfo=dt.UTC) for n in (0, 1))
    cluster.any_host(Insert("ingested_objects", columns, [("events/1", 1, 1, "loaded", 2, first, last)])).result()
    one = fingerprints(cluster)
    assert changed(dict.fromkeys(one, 0), one) == [-1, 0, 1, 2]


def test_the_selection_changes_only_days_of_the_teams_that_were_added_or_removed(cluster: ClickhouseCluster) -> None:
    put(cluster, 7, {day(-3): 1}, team_id=1)
    put(cluster, 8, {day(3): 1}, team_id=2)
    everyone = fingerprints(cluster)
    assert fingerprints(cluster, [1, 2, 3]) == everyone
    assert changed(everyone, fingerprints(cluster, [1])) == [2, 3, 4]


@pytest.mark.parametrize("reason", list(ChangeReason))
def test_a_change_counts_when_it_is_opened_and_again_when_it_is_closed(
    cluster: ClickhouseCluster, reason: ChangeReason
) -> None:
    before = fingerprints(cluster)
    event_days.record_open(cluster, [day(0)], "change", reason, "run")
    opened = fingerprints(cluster)
    assert changed(before, opened) == [-1, 0, 1]
    event_days.record_closed(cluster, [day(0)], "change", reason, "run")
    closed = fingerprints(cluster)
    assert changed(opened, closed) == [-1, 0, 1]
    event_days.record_open(cluster, [day(0)], "change", reason, "run")
    assert fingerprints(cluster) == closed


def test_the_next_run_closes_what_a_dead_run_of_its_kind_left_open(cluster: ClickhouseCluster) -> None:
    event_days.record_open(cluster, [day(0), day(1)], "dead", ChangeReason.SQUASH, "dead run")
    event_days.record_open(cluster, [day(2)], "other", ChangeReason.DELETE, "other run")
    event_days.record_open(cluster, [day(3)], "own", ChangeReason.SQUASH, "run")
    assert event_days.close_leftovers(cluster, ChangeReason.SQUASH, "run", own="own") == [day(0), day(1)]
    assert event_days.close_leftovers(cluster, ChangeReason.SQUASH, "run", own="own") == []
    assert event_days.days_of_change(cluster, "own") == [day(3)]
