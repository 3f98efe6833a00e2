"""Random histories of events, merges of persons and deletion requests, with a model in plain Python of the result.

Several histories go through the same squashes and deletes, each as a team of its own: teams must not affect each other.
"""

import dataclasses
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from dags.common.deletion_requests import RequestKind, RequestState, list_requests, request_deletion
from dags.tests.rewriting import Event, Override, World, at, person

HOURS = 24
PERSONS = 4
VISITORS = ("a", "b", "c\0'")
NAMES = ("$pageview", "signed up")


@dataclass(frozen=True)
class HistoryRequest:
    """A request of a history. `number` is the person, or counts the events of the team."""

    kind: RequestKind
    number: int
    at: dt.datetime


@dataclass(frozen=True)
class HistoryOverride:
    """An override of a history; its version follows from its place. A tombstone has no person."""

    distinct_id: str
    person: int | None
    at: dt.datetime


@dataclass(frozen=True)
class Stretch:
    """What happens in one team before a job runs, in hours of its own; late events are up to two days older."""

    events: Sequence[Event]
    overrides: Sequence[HistoryOverride]
    requests: Sequence[HistoryRequest]


@dataclass(frozen=True)
class History:
    """Stretches of all teams, and after each a job: a squash with a cutoff so many hours back, or None for deletes."""

    stretches: Sequence[Sequence[Stretch]]
    jobs: Sequence[int | None]


@st.composite
def stretches(draw: st.DrawFn, number: int, team_id: int) -> Stretch:
    start = number * HOURS
    times = st.integers(0, HOURS * 4 - 1).map(lambda quarter: at(start + quarter / 4))
    late = st.integers(-48 * 4, HOURS * 4).map(lambda quarter: at(start + quarter / 4))
    events = st.builds(
        Event,
        person_id=st.integers(0, PERSONS - 1).map(person),
        distinct_id=st.sampled_from(VISITORS),
        team_id=st.just(team_id),
        timestamp=late,
        event=st.sampled_from(NAMES),
        uuid=st.uuids(version=4),
    )
    written = st.builds(
        HistoryOverride, st.sampled_from(VISITORS), st.one_of(st.integers(0, PERSONS - 1), st.none()), times
    )
    requests = st.builds(
        HistoryRequest,
        st.sampled_from([RequestKind.PERSON] * 5 + [RequestKind.UUID, RequestKind.EVENT, RequestKind.TEAM]),
        st.integers(0, PERSONS - 1),
        times,
    )
    return Stretch(
        draw(st.lists(events, max_size=6)),
        sorted(draw(st.lists(written, max_size=4)), key=lambda one: one.at),
        draw(st.lists(requests, max_size=2)),
    )


@st.composite
def histories(draw: st.DrawFn, jobs: int, teams: int) -> History:
    """Draw a history of so many jobs, and before each a stretch of so many teams."""
    return History(
        [[draw(stretches(number, team)) for team in range(1, teams + 1)] for number in range(jobs)],
        draw(st.lists(st.one_of(st.integers(0, 30), st.none()), min_size=jobs, max_size=jobs)),
    )


@dataclass
class ModelRequest:
    """A request in the model."""

    kind: RequestKind
    team_id: int
    key: str
    at: dt.datetime
    is_done: bool = False


@dataclass
class Model:
    """The expected tables: events by uuid, overrides by team and distinct_id, requests by id."""

    events: dict[UUID, Event] = field(default_factory=dict)
    overrides: dict[tuple[int, str], list[Override]] = field(default_factory=dict)
    requests: dict[int, ModelRequest] = field(default_factory=dict)

    def squash(self, cutoff: dt.datetime) -> None:
        """Apply the latest override of each distinct_id that is older than the cutoff and every pending request."""
        for key, rows in list(self.overrides.items()):
            latest = rows[-1]
            request_times = [
                one.at
                for one in self.requests.values()
                if not one.is_done and one.kind is RequestKind.PERSON and one.team_id == key[0]
            ]
            if latest.written_at >= cutoff or any(latest.written_at > time for time in request_times):
                continue
            del self.overrides[key]
            for uuid, event in self.events.items():
                if (event.team_id, event.distinct_id) == key and not latest.is_deleted:
                    self.events[uuid] = dataclasses.replace(event, person_id=latest.person_id)

    def delete(self) -> None:
        """Process the requests that need not wait: delete what they cover."""
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

    def _waits(self, request: ModelRequest, pending: Sequence[ModelRequest]) -> bool:
        """Return whether an override of the person's events is pending that is older than the request."""
        if request.kind is not RequestKind.PERSON:
            return False
        same = [
            one for one in pending if (one.kind, one.team_id, one.key) == (request.kind, request.team_id, request.key)
        ]
        visitors = {event.distinct_id for event in self.events.values() if any(covers(one, event) for one in same)}
        for (team_id, distinct_id), rows in self.overrides.items():
            latest = rows[-1]
            if team_id != request.team_id or latest.written_at > request.at:
                continue
            is_own = str(latest.person_id) == request.key
            if is_own or (distinct_id in visitors and not latest.is_deleted):
                return True
        return False


def covers(request: ModelRequest, event: Event) -> bool:
    """Return whether the request covers the event."""
    if request.kind is RequestKind.UUID:
        return (event.team_id, str(event.uuid)) == (request.team_id, request.key)
    named = {RequestKind.PERSON: str(event.person_id), RequestKind.TEAM: "", RequestKind.EVENT: event.event}[
        request.kind
    ]
    return (event.team_id, named) == (request.team_id, request.key) and event.timestamp <= request.at


def covers_override(request: ModelRequest, row: Override) -> bool:
    """Return whether the request covers the override."""
    named = {RequestKind.PERSON: str(row.person_id), RequestKind.TEAM: ""}.get(request.kind)
    return (row.team_id, named) == (request.team_id, request.key) and row.written_at <= request.at


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
            _request(world, model, team_id, stretch.requests)
        for row in rows:
            model.overrides.setdefault((row.team_id, row.distinct_id), []).append(row)
        # In several parts, so that the server may or may not have merged the rows of one distinct_id.
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
    """Assert that the tables equal the model, and that no table of a run is left."""
    assert world.persons() == {uuid: event.person_id for uuid, event in model.events.items()}
    assert world.overrides() == {
        (team_id, distinct_id, rows[-1].version, rows[-1].is_deleted)
        for (team_id, distinct_id), rows in model.overrides.items()
    }
    states = {one.id: one.state for one in list_requests(world.postgres)}
    assert states == {
        id_: RequestState.DONE if one.is_done else RequestState.PENDING for id_, one in model.requests.items()
    }
    assert world.run_tables() == []


def _row(team_id: int, written: HistoryOverride, version: int) -> Override:
    return Override(
        person_id=person(written.person or 0),
        distinct_id=written.distinct_id,
        team_id=team_id,
        version=version,
        is_deleted=int(written.person is None),
        _timestamp=written.at,
    )


def _request(world: World, model: Model, team_id: int, requests: Sequence[HistoryRequest]) -> None:
    for one in requests:
        key = _key(one, model, team_id)
        if key is not None:
            (id_,) = request_deletion(
                world.postgres, one.kind, team_id, [key], requested_by="a test", requested_at=one.at
            )
            model.requests[id_] = ModelRequest(one.kind, team_id, key, one.at)


def _key(request: HistoryRequest, model: Model, team_id: int) -> str | None:
    if request.kind is RequestKind.UUID:
        known: list[Any] = sorted(uuid for uuid, event in model.events.items() if event.team_id == team_id)
        return str(known[request.number % len(known)]) if known else None
    return {
        RequestKind.PERSON: str(person(request.number)),
        RequestKind.TEAM: "",
        RequestKind.EVENT: NAMES[request.number % 2],
    }[request.kind]
