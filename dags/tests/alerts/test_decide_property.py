"""The rules over random histories: messages depend on the events alone.

A history is run with a tick at each moment, where events arrive in any order and repeatedly, and again with one tick
at the end. A plain loop over the history computes the expected incidents.
"""

import contextlib
import datetime as dt
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dags.alerts import store, tables
from dags.alerts.apply_outcomes import apply_outcomes
from dags.alerts.decide import incident_key
from dags.alerts.enqueue_updates import enqueue_updates
from dags.alerts.queries import incidents, outcomes
from dags.alerts.values import (
    Attempt,
    AttemptState,
    AttemptStatus,
    ClassifiedAttempt,
    ExecutionOutcome,
    Failure,
    Operation,
    Policy,
)

START = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
MINUTES = 400
JOBS = ("once", "twice", "thrice")
OWNERS = ("team-a", "team-b", None)
THRESHOLDS = {"twice": 2, "thrice": 3}
POLICY = Policy({"team-a": "#a", "team-b": "#b"}, "#default", THRESHOLDS)


@dataclass(frozen=True)
class End:
    """An ended run of a job."""

    run_id: str
    job: str
    owners: tuple[str | None, ...]
    minute: int
    failed: bool
    muted: bool

    @property
    def at(self) -> dt.datetime:
        return START + dt.timedelta(minutes=self.minute)

    def classified(self) -> ClassifiedAttempt:
        """Return the end of the run as `classify` would."""
        failure = Failure(self.run_id, self.at, "web", self.job)
        outcomes = [
            ExecutionOutcome(
                self.run_id,
                self.run_id,
                f"web/{self.job}/automated",
                failed=self.failed,
                at=self.at,
                owner=owner,
                failure=failure if self.failed else None,
                muted_by="a tag" if self.muted and self.failed else None,
            )
            for owner in (self.owners if self.failed else (None,))
        ]
        status = AttemptStatus.FAILED if self.failed else AttemptStatus.SUCCEEDED
        return ClassifiedAttempt(
            Attempt(self.run_id, "", status, 0, self.at, self.job, AttemptState.NEW), outcomes=outcomes
        )


@st.composite
def histories(draw: st.DrawFn) -> list[End]:
    ends = st.tuples(
        st.sampled_from(JOBS),
        st.sets(st.sampled_from(OWNERS), min_size=1),
        st.integers(0, MINUTES),
        st.sampled_from([True, True, False]),
        st.sampled_from([False, False, False, True]),
    )
    return [
        End(f"run_{number:02}", job, tuple(sorted(owners, key=str)), minute, failed, muted)
        for number, (job, owners, minute, failed, muted) in enumerate(draw(st.lists(ends, max_size=18)))
    ]


def expected(history: Sequence[End]) -> dict[str, tuple[int, bool]]:
    """Return the expected incidents with their failures and whether they are resolved."""
    found: dict[str, tuple[int, bool]] = {}
    for job in JOBS:
        for owner in OWNERS:
            streak: list[str] = []
            key = ""
            for end in sorted(history, key=lambda one: (one.minute, one.run_id)):
                if end.job != job or (end.failed and (end.muted or owner not in end.owners)):
                    continue
                if end.failed:
                    streak.append(end.run_id)
                    if len(streak) == THRESHOLDS.get(job, 1):
                        key = incident_key(end.run_id, owner)
                    if key:
                        found[key] = (len(streak), False)
                else:
                    if key:
                        found[key] = (len(streak), True)
                    streak, key = [], ""
    return found


def failing_last(history: Sequence[End]) -> set[tuple[str, str | None]]:
    """Return the jobs and owners whose last run failed, without muted ones."""
    last: dict[tuple[str, str | None], bool] = {}
    for end in sorted(history, key=lambda one: (one.minute, one.run_id)):
        for owner in OWNERS:
            if not end.failed or (not end.muted and owner in end.owners):
                last[end.job, owner] = end.failed
    return {key for key, failed in last.items() if failed}


class Router:
    """The deciding half of the router, on its own store."""

    def __init__(self, engine: sa.Engine, instance: dg.DagsterInstance) -> None:
        self.engine, self.instance = engine, instance
        self.successes: dict[str, End] = {}

    def tick(self, ends: Sequence[End], horizon: dt.datetime) -> None:
        # As in a tick: a late failure brings back the skipped successes after it.
        self.successes |= {end.run_id: end for end in ends if not end.failed}
        failed = [end for end in ends if end.failed]
        again = [
            success
            for success in self.successes.values()
            if success not in ends and any(one.job == success.job and one.at <= success.at for one in failed)
        ]
        with store.transaction(self.engine) as connection:
            apply_outcomes(connection, [end.classified() for end in [*ends, *again]], POLICY)
        enqueue_updates(self.instance, self.engine, POLICY, horizon, horizon, ())

    def notified(self) -> dict[str, tuple[int, bool]]:
        with store.reading(self.engine) as connection:
            found = incidents.find(connection)
            return {one.key: (one.failures, one.resolved_at is not None) for one in found if one.posted}

    def posts(self) -> set[str]:
        with store.reading(self.engine) as connection:
            query = sa.select(tables.outbox.c.key).where(tables.outbox.c.operation == Operation.POST)
            return set(connection.execute(query).scalars())

    def open(self) -> set[tuple[str, str | None]]:
        """Return the jobs and owners with an open incident."""
        with store.reading(self.engine) as connection:
            found = incidents.find(connection, tables.incidents.c.resolved_at.is_(None))
            return {
                (outcome.failure.job_name, outcome.owner)
                for one in found
                for outcome in outcomes.failures_of(connection, one.key)
                if outcome.failure is not None
            }

    def dispositions(self) -> dict[tuple[str, str], str]:
        with store.reading(self.engine) as connection:
            rows = connection.execute(sa.select(tables.outcomes).where(tables.outcomes.c.failed))
            return {(row.run_id, row.owner): row.disposition for row in rows}

    def kinds(self, thread: str) -> list[str]:
        with store.reading(self.engine) as connection:
            query = sa.select(tables.outbox.c.kind).where(tables.outbox.c.thread == thread)
            return list(connection.execute(query.order_by(tables.outbox.c.id)).scalars())


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@contextlib.contextmanager
def router(instance: dg.DagsterInstance) -> Iterator[Router]:
    memory = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        engine = store.open_store(Path(path) / f"{uuid.uuid4().hex}.sqlite")
        try:
            yield Router(engine, instance)
        finally:
            engine.dispose()


ticks = st.lists(st.integers(0, MINUTES), max_size=8)
BOUNDED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
THOROUGH = settings(BOUNDED, max_examples=400)


def check_in_order(instance: dg.DagsterInstance, history: list[End], minutes: list[int], data: st.DataObject) -> None:
    with router(instance) as once:
        once.tick(history, START + dt.timedelta(minutes=MINUTES))
        notified, posts, dispositions = once.notified(), once.posts(), once.dispositions()
    assert notified == expected(history)
    with router(instance) as many:
        known = -1
        for minute in [*sorted(minutes), MINUTES]:
            new = [end for end in history if known < end.minute <= minute]
            replayed = [end for end in history if end.minute <= known]
            again = data.draw(st.lists(st.sampled_from(replayed), max_size=4)) if replayed else []
            many.tick(data.draw(st.permutations([*new, *again])), START + dt.timedelta(minutes=minute))
            known = max(known, minute)
        assert many.notified() == notified
        assert many.posts() == posts
        assert many.dispositions() == dispositions
        for thread in posts:
            kinds = many.kinds(thread)
            assert kinds[0] in {"failing", "failed and resolved"}
            assert kinds.count("resolved") in {0, 2}


def check_late(instance: dg.DagsterInstance, history: list[End], minutes: list[int], data: st.DataObject) -> None:
    with router(instance) as late:
        left = data.draw(st.permutations(history))
        for minute in [*sorted(minutes), MINUTES]:
            count = len(left) if minute == MINUTES else data.draw(st.integers(0, len(left)))
            late.tick(left[:count], START + dt.timedelta(minutes=minute))
            left = left[count:]
        dispositions = late.dispositions()
        assert None not in dispositions.values()
        should = {(failed.run_id, owner or "") for failed in history if failed.failed for owner in failed.owners}
        assert set(dispositions) == should
        with router(instance) as once:
            once.tick(history, START + dt.timedelta(minutes=MINUTES))
            assert once.open() <= late.open() <= failing_last(history)
            notified_in_order = {
                key for key, disposition in once.dispositions().items() if disposition.startswith("notified")
            }
        assert notified_in_order <= {
            key for key, disposition in dispositions.items() if disposition.startswith("notified")
        }


@BOUNDED
@given(histories(), ticks, st.data())
def test_messages_depend_on_the_events_and_not_on_ticks_order_or_replays(
    instance: dg.DagsterInstance, history: list[End], minutes: list[int], data: st.DataObject
) -> None:
    check_in_order(instance, history, minutes, data)


@BOUNDED
@given(histories(), ticks, st.data())
def test_events_that_arrive_late_in_any_order_lose_nothing(
    instance: dg.DagsterInstance, history: list[End], minutes: list[int], data: st.DataObject
) -> None:
    check_late(instance, history, minutes, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@THOROUGH
@given(histories(), ticks, st.data())
def test_messages_depend_on_the_events_alone_in_many_histories(
    instance: dg.DagsterInstance, history: list[End], minutes: list[int], data: st.DataObject
) -> None:
    check_in_order(instance, history, minutes, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@THOROUGH
@given(histories(), ticks, st.data())
def test_late_events_lose_nothing_in_many_histories(
    instance: dg.DagsterInstance, history: list[End], minutes: list[int], data: st.DataObject
) -> None:
    check_late(instance, history, minutes, data)
