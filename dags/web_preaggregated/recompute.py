"""Which stale days to ask for: a plan from values, without Dagster and without a clock."""

import datetime as dt
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dags.web_preaggregated.stale_days import ONE_DAY, StaleDay

MAX_DAYS_PER_TICK = 31
# A day that keeps receiving objects is recomputed once in this time, and so is a day whose runs fail.
DEBOUNCE = dt.timedelta(hours=1)
# The nightly schedule computes yesterday and the day before at 01:00 UTC. After three hours it is late.
NIGHTLY_START = dt.time(1, tzinfo=dt.UTC)
NIGHTLY_GRACE = dt.timedelta(hours=3)

IN_PROGRESS = "are in an unfinished run or backfill"
NIGHTLY = "are left to the nightly run"
DEBOUNCED = "were computed or requested less than an hour ago"
BATCH_IN_PROGRESS = "wait until the runs that were requested before have finished"
NEXT_TICK = "wait for the next tick"


@dataclass(frozen=True)
class WorkInProgress:
    """What other runs do: the days of unfinished runs and backfills, and those requested in the last hour.

    `has_own_runs` is whether a run that an earlier plan requested has not finished. `nightly_is_on` is whether the
    nightly schedule requests runs.
    """

    days: Collection[dt.date] = ()
    days_requested_lately: Collection[dt.date] = ()
    has_own_runs: bool = False
    nightly_is_on: bool = True


@dataclass(frozen=True)
class RecomputePlan:
    """The days to request, as ranges with the newest first, and the number of the other stale days by reason."""

    ranges: Sequence[tuple[dt.date, dt.date]] = ()
    remaining: Mapping[str, int] = field(default_factory=dict)

    @property
    def days(self) -> int:
        """The number of days to request."""
        return sum((last - first).days + 1 for first, last in self.ranges)

    def message(self) -> str:
        """Return what is requested and what remains, for the tick."""
        ranges = ", ".join(f"{first} to {last}" if first != last else str(first) for first, last in self.ranges)
        sentences = [f"Requested {self.days} stale days: {ranges}."] if self.ranges else []
        sentences += [f"{count} stale days {reason}." for reason, count in self.remaining.items()]
        return " ".join(sentences) or "No day is stale."


def plan_recompute(
    stale: Sequence[StaleDay], in_progress: WorkInProgress, now: dt.datetime, max_days_per_run: int
) -> RecomputePlan:
    """Choose at most MAX_DAYS_PER_TICK days, the newest first, in ranges of at most `max_days_per_run` days."""
    remaining: Counter[str] = Counter()
    chosen: list[dt.date] = []
    for one in sorted(stale, key=lambda one: one.day, reverse=True):
        reason = _reason_to_wait(one, in_progress, now)
        if reason is None and len(chosen) == MAX_DAYS_PER_TICK:
            reason = NEXT_TICK
        if reason is None:
            chosen.append(one.day)
        else:
            remaining[reason] += 1
    return RecomputePlan(list(_ranges(chosen, max_days_per_run)), remaining)


def _reason_to_wait(one: StaleDay, in_progress: WorkInProgress, now: dt.datetime) -> str | None:
    if one.day in in_progress.days:
        return IN_PROGRESS
    if in_progress.nightly_is_on and _is_left_to_the_nightly_run(one, now):
        return NIGHTLY
    if now - one.computed_at < DEBOUNCE or one.day in in_progress.days_requested_lately:
        return DEBOUNCED
    if in_progress.has_own_runs:
        return BATCH_IN_PROGRESS
    return None


def _is_left_to_the_nightly_run(one: StaleDay, now: dt.datetime) -> bool:
    """Return whether the nightly run of today computes the day, has not done so, and is not late."""
    today = now.astimezone(dt.UTC).date()
    starts_at = dt.datetime.combine(today, NIGHTLY_START)
    return one.day >= today - 2 * ONE_DAY and one.computed_at < starts_at and now < starts_at + NIGHTLY_GRACE


def _ranges(days: Sequence[dt.date], max_days: int) -> Iterator[tuple[dt.date, dt.date]]:
    """Yield ranges of consecutive days, from days in descending order."""
    first = last = None
    for day in days:
        if first is not None and last is not None and first - day == ONE_DAY and (last - day).days < max_days:
            first = day
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = day
    if first is not None and last is not None:
        yield first, last
