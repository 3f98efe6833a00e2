import datetime as dt
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from dags.web_preaggregated.recompute import (
    BATCH_IN_PROGRESS,
    DEBOUNCED,
    IN_PROGRESS,
    MAX_DAYS_PER_TICK,
    NEXT_TICK,
    NIGHTLY,
    RecomputePlan,
    WorkInProgress,
    plan_recompute,
)
from dags.web_preaggregated.stale_days import StaleDay

NOW = dt.datetime(2026, 3, 20, 12, 30, tzinfo=dt.UTC)
TODAY = NOW.date()


def ago(days: int) -> dt.date:
    return TODAY - dt.timedelta(days=days)


def stale(*days_ago: int, minutes: float = 1440) -> list[StaleDay]:
    """Return stale days that were computed so many minutes ago."""
    return [StaleDay(ago(days), NOW - dt.timedelta(minutes=minutes)) for days in days_ago]


def plan(
    days: Iterable[StaleDay], in_progress: WorkInProgress | None = None, now: dt.datetime = NOW, per_run: int = 14
) -> RecomputePlan:
    return plan_recompute(list(days), in_progress or WorkInProgress(), now, per_run)


def test_consecutive_days_are_one_range_and_the_newest_range_comes_first() -> None:
    assert plan(stale(9, 3, 4, 5, 10)).ranges == [(ago(5), ago(3)), (ago(10), ago(9))]


def test_a_range_has_at_most_the_days_of_a_run() -> None:
    assert plan(stale(*range(2, 9)), per_run=3).ranges == [(ago(4), ago(2)), (ago(7), ago(5)), (ago(8), ago(8))]


def test_a_tick_requests_at_most_31_days_and_counts_the_others() -> None:
    found = plan(stale(*range(1, 1501)))
    assert found.days == MAX_DAYS_PER_TICK
    assert found.ranges[0][1] == ago(1)
    assert found.remaining == {NEXT_TICK: 1500 - MAX_DAYS_PER_TICK}


def test_days_that_were_computed_or_requested_less_than_an_hour_ago_wait() -> None:
    lately = WorkInProgress(days_requested_lately=[ago(6)])
    found = plan([*stale(4, minutes=59), *stale(5, minutes=61), *stale(6)], lately)
    assert found.ranges == [(ago(5), ago(5))]
    assert found.remaining == {DEBOUNCED: 2}


def test_days_that_were_never_computed_do_not_wait() -> None:
    assert plan([StaleDay(ago(4))]).days == 1


def test_days_of_unfinished_runs_and_backfills_wait() -> None:
    found = plan(stale(4, 5), WorkInProgress(days=[ago(5)]))
    assert (found.ranges, found.remaining) == ([(ago(4), ago(4))], {IN_PROGRESS: 1})


def test_nothing_is_requested_until_the_runs_of_the_tick_before_have_finished() -> None:
    found = plan(stale(4, 5), WorkInProgress(has_own_runs=True))
    assert (found.ranges, found.remaining) == ([], {BATCH_IN_PROGRESS: 2})


def test_the_days_of_the_nightly_run_are_left_to_it_until_it_has_computed_them_or_is_three_hours_late() -> None:
    midnight = dt.datetime.combine(TODAY, dt.time(), tzinfo=dt.UTC)
    before = [StaleDay(ago(days), midnight - dt.timedelta(hours=9)) for days in (1, 2, 3)]
    for minutes in (1, 61, 239):
        found = plan(before, now=midnight + dt.timedelta(minutes=minutes))
        assert (found.ranges, found.remaining) == ([(ago(3), ago(3))], {NIGHTLY: 2})
    assert plan(before, now=midnight + dt.timedelta(minutes=241)).days == 3
    computed = [StaleDay(ago(days), midnight + dt.timedelta(minutes=70)) for days in (1, 2)]
    assert plan(computed, now=midnight + dt.timedelta(minutes=140)).days == 2


def test_without_a_nightly_schedule_no_day_is_left_to_it() -> None:
    midnight = dt.datetime.combine(TODAY, dt.time(), tzinfo=dt.UTC)
    found = plan([StaleDay(ago(1))], WorkInProgress(nightly_is_on=False), now=midnight + dt.timedelta(minutes=61))
    assert found.days == 1


def test_the_message_says_what_is_requested_and_what_remains() -> None:
    assert plan([]).message() == "No day is stale."
    assert plan([*stale(3, 4, 9), *stale(5, minutes=5)]).message() == (
        "Requested 3 stale days: 2026-03-16 to 2026-03-17, 2026-03-11. "
        "1 stale days were computed or requested less than an hour ago."
    )


@given(
    days=st.sets(st.integers(1, 80)),
    busy=st.sets(st.integers(1, 80)),
    lately=st.sets(st.integers(1, 80)),
    per_run=st.integers(1, 20),
)
def test_every_stale_day_is_either_requested_once_or_counted(
    days: set[int], busy: set[int], lately: set[int], per_run: int
) -> None:
    in_progress = WorkInProgress([ago(one) for one in busy], [ago(one) for one in lately])
    found = plan(stale(*days), in_progress, per_run=per_run)
    requested = [(TODAY - first).days - n for first, last in found.ranges for n in range((last - first).days + 1)]
    assert len(set(requested)) == len(requested) == found.days <= MAX_DAYS_PER_TICK
    assert set(requested) <= days - busy - lately
    assert found.days + sum(found.remaining.values()) == len(days)
    assert all((last - first).days < per_run for first, last in found.ranges)


def test_a_flood_of_1500_days_drains_in_order_in_49_batches() -> None:
    left = {one.day for one in stale(*range(1, 1501))}
    ticks = 0
    while left:
        found = plan([StaleDay(day) for day in left])
        for first, last in found.ranges:
            left -= {first + dt.timedelta(days=n) for n in range((last - first).days + 1)}
            assert not left or max(left) < last
        ticks += 1
    assert ticks == 49
