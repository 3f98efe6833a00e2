"""Random histories of events, merges of persons and requests, and a model in plain Python of what must become of them.

Several histories go through one squash or delete together, each as a team of its own: teams must not touch each other.
"""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from dags.common.deletion_requests import RequestKind, RequestState, ask, requests
from dags.tests.rewriting import Event, Override, World, at, person

HOURS = 24
PERSONS = 4
VISITORS = ("a", "b", "c\0'")
NAMES = ("$pageview", "signed up")


@dataclass(frozen=True)
class Asked:
    """A request of a history. `number` is the person, or counts the events of the team."""

    kind: RequestKind
    number: int
    at: dt.datetime


@dataclass(frozen=True)
class Written:
    """An override of a history, the version of which comes from its place; no person for a tombstone."""

    distinct_id: str
    person: int | None
    at: dt.datetime


@dataclass(frozen=True)
class Stretch:
    """What happens in one team before a job runs, in hours of its own: events may come late, up to two days."""

    events: Sequence[Event]
    overrides: Sequence[Written]
    asked: Sequence[Asked]


@dataclass(frozen=True)
class History:
    """Stretches of all teams, by time, and after each the job that runs: a squash with a cutoff so many hours back."""

    stretches: Sequence[Sequence[Stretch]]
    jobs: Sequence[int | None]


@st.composite
def stretches(draw: st.DrawFn, number: int, team_id: int) -> Stretch:
    begin = number * HOURS
    moments = st.integers(0, HOURS * 4 - 1).map(lambda quarter: at(begin + quarter / 4))
    late = st.integers(-48 * 4, HOURS * 4).map(lambda quarter: at(begin + quarter / 4))
    events = st.builds(
        Event,
        person_id=st.integers(0, PERSONS - 1).map(person),
        distinct_id=st.sampled_from(VISITORS),
        team_id=st.just(team_id),
        timestamp=late,
        event=st.sampled_from(NAMES),
        uuid=st.uuids(version=4),
    )
    written = st.builds(Written, st.sampled_from(VISITORS), st.one_of(st.integers(0, PERSONS - 1), st.none()), moments)
    asked = st.builds(
        Asked,
        st.sampled_from([RequestKind.PERSON] * 5 + [RequestKind.UUID, RequestKind.EVENT, RequestKind.TEAM]),
        st.integers(0, PERSONS - 1),
        moments,
    )
    return Stretch(
        draw(st.lists(events, max_size=6)),
        sorted(draw(st.lists(written, max_size=4)), key=lambda one: one.at),
        draw(st.lists(asked, max_size=2)),
    )


@st.composite
def histories(draw: st.DrawFn, jobs: int, teams: int) -> History:
    """So many jobs, and before each a stretch of so many teams."""
    return History(
        [[draw(stretches(number, team)) for team in range(1, teams + 1)] for number in range(jobs)],
        draw(st.lists(st.one_of(st.integers(0, 30), st.none()), min_size=jobs, max_size=jobs)),
    )


@dataclass
class ModelRequest:
    """A request as the model knows it."""

    kind: RequestKind
    team_id: int
    key: str
    at: dt.datetime
    is_done: bool = False


@dataclass
class Model:
    """What the tables must hold: events by uuid, the latest override by team and distinct_id, requests by id."""

    events: dict[UUID, Event] = field(default_factory=dict)
    overrides: dict[tuple[int, str], list[Override]] = field(default_factory=dict)
    requests: dict[int, ModelRequest] = field(default_factory=dict)

    def squash(self, cutoff: dt.datetime) -> None:
        """The latest override of each distinct_id counts, if it is older than the cutoff and nobody asked before it."""
        for key, rows in list(self.overrides.items()):
            latest = rows[-1]
            asked = [
                one.at
                for one in self.requests.values()
                if not one.is_done and one.kind is RequestKind.PERSON and one.team_id == key[0]
            ]
            if latest.written_at >= cutoff or any(latest.written_at > moment for moment in asked):
                continue
            del self.overrides[key]
            for uuid, event in self.events.items():
                if (event.team_id, event.distinct_id) == key and not latest.is_deleted:
                    self.events[uuid] = dataclasses.replace(event, person_id=latest.person_id)

    def delete(self) -> None:
        """Requests are done that need not wait; what they cover goes."""
        pending = {id_: one for id_, one in self.requests.items() if not one.is_done}
        runnable = [one for one in pending.values() if not self._waits(one, list(pending.values()))]
        self.events = {
            uuid: event for uuid, event in self.events.items() if not any(covers(one, event) for one in runnable)
        }
        for key, rows in list(self.overrides.items()):
            kept = [row for row in rows if not any(covers_override(one, row) for one in runnable)]
            if kept:
                self.overrides[key] = kept
            else:
                del self.overrides[key]
        for one in runnable:
            one.is_done = True

    def _waits(self, asked: ModelRequest, pending: Sequence[ModelRequest]) -> bool:
        """While an override is pending that was there when the request was made, and is about the person's events."""
        if asked.kind is not RequestKind.PERSON:
            return False
        same = [one for one in pending if (one.kind, one.team_id, one.key) == (asked.kind, asked.team_id, asked.key)]
        visitors = {event.distinct_id for event in self.events.values() if any(covers(one, event) for one in same)}
        for (team_id, distinct_id), rows in self.overrides.items():
            latest = rows[-1]
            if team_id != asked.team_id or latest.written_at > asked.at:
                continue
            is_own = str(latest.person_id) == asked.key
            if is_own or (distinct_id in visitors and not latest.is_deleted):
                return True
        return False


def covers(asked: ModelRequest, event: Event) -> bool:
    """Whether the request is about the event as it is."""
    if asked.kind is RequestKind.UUID:
        return (event.team_id, str(event.uuid)) == (asked.team_id, asked.key)
    named = {RequestKind.PERSON: str(event.person_id), RequestKind.TEAM: "", RequestKind.EVENT: event.event}[asked.kind]
    return (event.team_id, named) == (asked.team_id, asked.key) and event.timestamp <= asked.at


def covers_override(asked: ModelRequest, row: Override) -> bool:
    """Whether the request is about the override."""
    named = {RequestKind.PERSON: str(row.person_id), RequestKind.TEAM: ""}.get(asked.kind)
    return (row.team_id, named) == (asked.team_id, asked.key) and row.written_at <= asked.at


def play(history: History, world: World) -> Model:
    """Run the history in the world and in the model, and compare them after each job."""
    model = Model()
    version = 0
    for number, (stretch_by_team, job) in enumerate(zip(history.stretches, history.jobs, strict=True)):
        events = [event for stretch in stretch_by_team for event in stretch.events]
        world.add(events)
        model.events |= {event.uuid: event for event in events}
        rows = []
        for team_id, stretch in enumerate(stretch_by_team, start=1):
            for one in stretch.overrides:
                version += 1
                rows.append(_row(team_id, one, version))
            _ask(world, model, team_id, stretch.asked)
        for row in rows:
            model.overrides.setdefault((row.team_id, row.distinct_id), []).append(row)
        # Parts of their own, so that rows of one distinct_id are merged by the server, or not yet.
        for part in (rows[::2], rows[1::2]):
            world.override(part)
        if job is None:
            world.delete(run_id=f"run-{number}")
            model.delete()
        else:
            cutoff = at((number + 1) * HOURS - job)
            world.squash(cutoff, run_id=f"run-{number}")
            model.squash(cutoff)
        compare(world, model)
    return model


def compare(world: World, model: Model) -> None:
    """The tables hold what the model says, and nothing of a run is left."""
    assert world.persons() == {uuid: event.person_id for uuid, event in model.events.items()}
    assert world.overrides() == {
        (team_id, distinct_id, rows[-1].version, rows[-1].is_deleted)
        for (team_id, distinct_id), rows in model.overrides.items()
    }
    states = {one.id: one.state for one in requests(world.postgres)}
    assert states == {
        id_: RequestState.DONE if one.is_done else RequestState.PENDING for id_, one in model.requests.items()
    }
    assert world.run_tables() == []


def _row(team_id: int, written: Written, version: int) -> Override:
    return Override(
        person_id=person(written.person or 0),
        distinct_id=written.distinct_id,
        team_id=team_id,
        version=version,
        is_deleted=int(written.person is None),
        _timestamp=written.at,
    )


def _ask(world: World, model: Model, team_id: int, asked: Sequence[Asked]) -> None:
    for one in asked:
        key = _key(one, model, team_id)
        if key is not None:
            (id_,) = ask(world.postgres, one.kind, team_id, [key], requested_by="a test", requested_at=one.at)
            model.requests[id_] = ModelRequest(one.kind, team_id, key, one.at)


def _key(asked: Asked, model: Model, team_id: int) -> str | None:
    if asked.kind is RequestKind.UUID:
        known: list[Any] = sorted(uuid for uuid, event in model.events.items() if event.team_id == team_id)
        return str(known[asked.number % len(known)]) if known else None
    return {
        RequestKind.PERSON: str(person(asked.number)),
        RequestKind.TEAM: "",
        RequestKind.EVENT: NAMES[asked.number % 2],
    }[asked.kind]
