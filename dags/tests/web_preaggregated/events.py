"""Test events, the numbers of the web tables, and the same numbers from a model in plain Python."""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields
from uuid import UUID, uuid4

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert, Query, Rows
from dags.web_preaggregated.aggregate import AggregationOutcome, pre_aggregate
from dags.web_preaggregated.statements import (
    AFTER_24_HOURS,
    MAX_EVENTS_PER_PASS,
    NO_SESSION_ID,
    TEAM_NOT_SELECTED,
)

DAY = dt.date(2026, 3, 11)
LONGEST_SESSION = dt.timedelta(hours=24)
PAGEVIEWS = ("$pageview", "$screen")
DIMENSIONS = ("browser", "utm_source", "viewport_width", "city", "has_gclid")


def at(clock: str, day: int = 0) -> dt.datetime:
    """Return a time (UTC) of `DAY`, or of a day relative to it: `at("23:59:59.999999", day=-1)`."""
    time = dt.time.fromisoformat(clock)
    return dt.datetime.combine(DAY + dt.timedelta(days=day), time, tzinfo=dt.UTC)


def person(number: int) -> UUID:
    """Return the id of a person."""
    return UUID(int=number + 1)


@dataclass(frozen=True)
class Event:
    """A row of `events`."""

    timestamp: dt.datetime
    session_id: str = "session"
    pathname: str = "/"
    event: str = "$pageview"
    team_id: int = 1
    distinct_id: str = "visitor"
    person_id: UUID = field(default_factory=lambda: person(0))
    uuid: UUID = field(default_factory=uuid4)
    inserted_at: dt.datetime = dt.datetime(2026, 4, 1, tzinfo=dt.UTC)
    host: str = "example.com"
    browser: str = "Firefox"
    utm_source: str = ""
    viewport_width: int = 0
    city: str = ""
    has_gclid: int = 0

    @property
    def sorting_key(self) -> tuple[object, ...]:
        """The sorting key, which identifies an event."""
        return self.team_id, self.timestamp.date(), self.event, self.distinct_id, self.uuid


@dataclass(frozen=True)
class Override:
    """A row of `person_distinct_id_overrides`."""

    distinct_id: str
    person_id: UUID
    version: int = 1
    team_id: int = 1
    is_deleted: int = 0


@dataclass(frozen=True)
class Numbers:
    """The numbers of a group of sessions or pageviews."""

    pageviews: int = 0
    sessions: int = 0
    visitors: int = 0
    bounces: int = 0
    seconds: int = 0


@dataclass(frozen=True)
class Session:
    """A session of the model."""

    team_id: int
    session_id: str
    start: dt.datetime
    end: dt.datetime
    person_id: UUID
    pages: tuple[Event, ...]


def sessions_of(
    events: Iterable[Event], overrides: Iterable[Override], team_ids: Collection[int] | None = None
) -> list[Session]:
    """Return every session that has a pageview, by the documented rules."""
    persons = overriding_persons(overrides)
    by_id: dict[tuple[int, str], list[Event]] = defaultdict(list)
    for event in without_duplicates(events):
        if event.session_id and (team_ids is None or event.team_id in team_ids):
            by_id[event.team_id, event.session_id].append(event)
    sessions = []
    for (team_id, session_id), members in by_id.items():
        for piece in cut_at_pauses(members):
            inside = [event for event in piece if event.timestamp - piece[0].timestamp <= LONGEST_SESSION]
            pages = tuple(event for event in inside if event.event in PAGEVIEWS)
            if pages:
                owner = persons.get((team_id, pages[0].distinct_id), pages[0].person_id)
                sessions.append(Session(team_id, session_id, inside[0].timestamp, inside[-1].timestamp, owner, pages))
    return sessions


def without_duplicates(events: Iterable[Event]) -> Iterable[Event]:
    """Return the last inserted row of each sorting key."""
    newest: dict[tuple[object, ...], Event] = {}
    for event in events:
        kept = newest.get(event.sorting_key)
        if kept is None or event.inserted_at >= kept.inserted_at:
            newest[event.sorting_key] = event
    return newest.values()


def overriding_persons(overrides: Iterable[Override]) -> dict[tuple[int, str], UUID]:
    """Return the person of each team and distinct_id whose newest override is not deleted."""
    latest: dict[tuple[int, str], Override] = {}
    for override in overrides:
        key = (override.team_id, override.distinct_id)
        if key not in latest or override.version >= latest[key].version:
            latest[key] = override
    return {key: override.person_id for key, override in latest.items() if not override.is_deleted}


def cut_at_pauses(events: Iterable[Event]) -> list[list[Event]]:
    """Return the events in order, split at pauses that are longer than a session can be."""
    pieces: list[list[Event]] = []
    for event in sorted(events, key=lambda one: (one.timestamp, second_half(one.uuid))):
        if not pieces or event.timestamp - pieces[-1][-1].timestamp > LONGEST_SESSION:
            pieces.append([])
        pieces[-1].append(event)
    return pieces


def second_half(value: UUID) -> int:
    """Return the second half of the uuid as a number."""
    return value.int & (2**64 - 1)


def seconds_of(session: Session) -> int:
    """The duration in whole clock seconds."""
    return int(session.end.replace(microsecond=0).timestamp() - session.start.replace(microsecond=0).timestamp())


def counted(sessions: Sequence[Session], pageviews: int) -> Numbers:
    """Return the numbers of a group of sessions with the given number of pageviews."""
    return Numbers(
        pageviews=pageviews,
        sessions=len(sessions),
        visitors=len({session.person_id for session in sessions}),
        bounces=sum(len(session.pages) == 1 for session in sessions),
        seconds=sum(map(seconds_of, sessions)),
    )


def modelled_pages(sessions: Iterable[Session]) -> dict[tuple[object, ...], Numbers]:
    """Return the expected numbers of pages by team, day, dimensions of the session, host and path of the page."""
    groups: dict[tuple[object, ...], list[tuple[Session, int]]] = defaultdict(list)
    for session in sessions:
        pages = [(page.host, page.pathname) for page in session.pages]
        for page in set(pages):
            key = (session.team_id, session.start.date(), *dimensions_of(session), *page)
            groups[key].append((session, pages.count(page)))
    numbers = {}
    for key, found in groups.items():
        both = counted([session for session, _ in found], sum(count for _, count in found))
        numbers[key] = Numbers(both.pageviews, both.sessions, both.visitors)
    return numbers


def modelled_entries(sessions: Iterable[Session]) -> dict[tuple[object, ...], Numbers]:
    """Return the expected numbers of sessions by team, day and dimensions of the session."""
    groups: dict[tuple[object, ...], list[Session]] = defaultdict(list)
    for session in sessions:
        groups[session.team_id, session.start.date(), *dimensions_of(session)].append(session)
    return {key: counted(found, sum(len(one.pages) for one in found)) for key, found in groups.items()}


def modelled_rows(sessions: Iterable[Session]) -> list[tuple[object, ...]]:
    """Return the expected rows of the table, in order: team, id, person, start, duration, dimensions and pages."""
    return sorted(
        (
            session.team_id,
            session.session_id,
            session.person_id,
            session.start,
            seconds_of(session),
            *dimensions_of(session),
            [(page.host, page.pathname, page.timestamp) for page in session.pages],
        )
        for session in sessions
    )


def modelled_accounting(
    events: Iterable[Event], overrides: Iterable[Override], team_ids: Collection[int] | None = None
) -> dict[dt.date, dict[str, int]]:
    """Return the pageviews of each day by the rule that leaves them out; those in a session have an empty rule."""
    found = list(without_duplicates(events))
    inside = {page.uuid for session in sessions_of(found, overrides, team_ids) for page in session.pages}
    days: dict[dt.date, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for event in found:
        if event.event in PAGEVIEWS:
            rule = (
                TEAM_NOT_SELECTED
                if team_ids is not None and event.team_id not in team_ids
                else NO_SESSION_ID
                if not event.session_id
                else ""
                if event.uuid in inside
                else AFTER_24_HOURS
            )
            days[event.timestamp.date()][rule] += 1
    return {day: dict(rules) for day, rules in days.items()}


def dimensions_of(session: Session) -> tuple[object, ...]:
    """Return entry and exit page, and the dimensions of the first pageview that tests vary."""
    first, last = session.pages[0], session.pages[-1]
    return (
        first.host,
        first.pathname,
        last.host,
        last.pathname,
        *(getattr(first, name) for name in DIMENSIONS),
    )


DIMENSION_COLUMNS = ", ".join(("entry_host", "entry_pathname", "exit_host", "exit_pathname", *DIMENSIONS))


@dataclass
class Web:
    """The raw tables and the web tables of one database."""

    cluster: ClickhouseCluster

    def add(self, *events: Event) -> None:
        """Insert events as one part: duplicates within a call are merged, duplicates across calls are not."""
        names = [column.name for column in fields(Event)]
        rows = [[getattr(event, name) for name in names] for event in events]
        if rows:
            self.cluster.any_host(Insert("events", names, rows)).result()

    def override(self, *overrides: Override) -> None:
        """Insert overrides."""
        names = [column.name for column in fields(Override)]
        rows = [[getattr(override, name) for name in names] for override in overrides]
        if rows:
            self.cluster.any_host(Insert("person_distinct_id_overrides", names, rows)).result()

    def compute(
        self,
        *days: dt.date,
        team_ids: Sequence[int] | None = None,
        max_events_per_pass: int = MAX_EVENTS_PER_PASS,
    ) -> AggregationOutcome:
        """Compute these days, or `DAY` by default."""
        return pre_aggregate(
            self.cluster,
            days or (DAY,),
            run_id=str(uuid4()),
            team_ids=team_ids,
            max_events_per_pass=max_events_per_pass,
        )

    def rows(self, statement: str, **parameters: object) -> Rows:
        """Return the rows of a SELECT."""
        return self.cluster.any_host(Query(statement, parameters)).result()

    def sessions(self) -> list[tuple[object, ...]]:
        """Return the rows of the table, like `modelled_rows`."""
        rows = self.rows(
            f"SELECT team_id, session_id, person_id, started_at, duration_seconds, {DIMENSION_COLUMNS}, pages "  # noqa: S608 - names of this module
            "FROM web_sessions"
        )
        return sorted(rows)

    def pages(self) -> dict[tuple[object, ...], Numbers]:
        """Return the numbers of pages, keyed like `modelled_pages`."""
        keys = f"team_id, toDate(started_at), {DIMENSION_COLUMNS}, page.host, page.pathname"
        rows = self.rows(
            f"SELECT {keys}, count(), uniqExact(session_id), uniqExact(person_id) "  # noqa: S608 - names of this module
            f"FROM web_sessions ARRAY JOIN pages AS page GROUP BY {keys}"
        )
        return {tuple(row[:-3]): Numbers(*row[-3:]) for row in rows}

    def entries(self) -> dict[tuple[object, ...], Numbers]:
        """Return the numbers of sessions, keyed like `modelled_entries`."""
        keys = f"team_id, toDate(started_at), {DIMENSION_COLUMNS}"
        rows = self.rows(
            f"SELECT {keys}, sum(pageviews), uniqExact(session_id), uniqExact(person_id), sum(is_bounce), "  # noqa: S608 - names of this module
            f"sum(duration_seconds), count() FROM web_sessions GROUP BY {keys}"
        )
        assert all(row[-1] == row[-5] for row in rows), "a session is counted twice"
        return {tuple(row[:-6]): Numbers(*row[-6:-1]) for row in rows}

    def accounting(self) -> dict[dt.date, dict[str, int]]:
        """Return the recorded pageviews of each day by rule, like `modelled_accounting`."""
        rows = self.rows("SELECT day, raw_pageviews, left_out FROM web_session_days FINAL WHERE raw_pageviews > 0")
        found = {}
        for day, total, left_out in rows:
            inside = total - sum(left_out.values())
            found[day] = {**left_out, **({"": inside} if inside else {})}
        return found

    def totals(self, day: dt.date = DAY, team_id: int = 1) -> Numbers:
        """Return the numbers of a team and day from the sessions and from their pages, which must agree."""
        ((pageviews, sessions, visitors),) = self.rows(
            "SELECT count(), uniqExact(session_id), uniqExact(person_id) FROM web_sessions ARRAY JOIN pages AS page "
            "WHERE team_id = %(team)s AND toDate(started_at) = %(day)s",
            team=team_id,
            day=day,
        )
        ((*numbers,),) = self.rows(
            "SELECT sum(pageviews), count(), uniqExact(person_id), sum(is_bounce), sum(duration_seconds) "
            "FROM web_sessions WHERE team_id = %(team)s AND toDate(started_at) = %(day)s",
            team=team_id,
            day=day,
        )
        found = Numbers(*numbers)
        assert (pageviews, sessions, visitors) == (found.pageviews, found.sessions, found.visitors)
        return found
