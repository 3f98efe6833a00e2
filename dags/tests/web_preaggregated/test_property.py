"""Random events, compared with the model in plain Python and with the raw events."""

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.tests.web_preaggregated.events import (
    DAY,
    Event,
    Override,
    Web,
    at,
    modelled_accounting,
    modelled_entries,
    modelled_pages,
    modelled_rows,
    person,
    sessions_of,
)
from dags.web_preaggregated.raw import SUBJECTS, compare_with_raw

FIRST, LAST = DAY - dt.timedelta(days=1), DAY + dt.timedelta(days=1)
MIDNIGHT = at("00:00:00")
MICROSECOND = dt.timedelta(microseconds=1)

# Round moments, so that sessions meet midnights and the 24 hours to the microsecond, and other ones.
moments = st.one_of(
    st.builds(
        lambda hours, microseconds: MIDNIGHT + dt.timedelta(hours=hours, microseconds=microseconds),
        st.integers(-49, 73),
        st.integers(-1, 1),
    ),
    st.integers(-48 * 3600 * 10**6, 72 * 3600 * 10**6).map(lambda n: MIDNIGHT + n * MICROSECOND),
)
odd_texts = st.sampled_from(["", "/", "a", "b\0", "\x01z", "\x01e", "\0", "é ' \\"])


@dataclass(frozen=True)
class Case:
    """Rows in the order of insertion, each batch a part of its own."""

    batches: Sequence[Sequence[Event]]
    overrides: Sequence[Sequence[Override]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    teams = st.integers(1, 2)
    visitors = st.sampled_from(["d1", "d2", "d\0"])
    sessions = st.sampled_from(["", "s1", "s2", "s3"])
    event = st.builds(
        Event,
        timestamp=moments,
        session_id=sessions,
        pathname=odd_texts,
        event=st.sampled_from(["$pageview", "$pageview", "$screen", "custom"]),
        team_id=teams,
        distinct_id=visitors,
        person_id=st.integers(0, 3).map(person),
        uuid=st.integers(0, 2**128 - 1).map(lambda n: uuid.UUID(int=n)),
        host=odd_texts,
        browser=st.sampled_from(["Firefox", "Safari"]),
        utm_source=odd_texts,
        viewport_width=st.sampled_from([-1, 0, 1920]),
        city=odd_texts,
        has_gclid=st.integers(0, 1),
    )
    events = draw(st.lists(event, max_size=14))
    # With equal second halves of their uuids, two events at the same time have no order.
    events = list({event.uuid.int & (2**64 - 1): event for event in events}.values())
    again = draw(st.lists(st.tuples(st.sampled_from(events), sessions, odd_texts), max_size=4)) if events else []
    late = dt.datetime(2026, 4, 2, tzinfo=dt.UTC)
    duplicates = [
        Event(**{**vars(one), "session_id": session, "pathname": path, "inserted_at": late + n * MICROSECOND})
        for n, (one, session, path) in enumerate(again)
    ]
    cut = draw(st.integers(0, len(events)))
    override = st.builds(
        Override, visitors, st.integers(0, 3).map(person), st.just(0), teams, st.sampled_from([0, 0, 1])
    )
    found = draw(st.lists(override, max_size=6))
    versions = draw(st.permutations(range(len(found))))
    overrides = [[Override(**{**vars(one), "version": version})] for one, version in zip(found, versions, strict=True)]
    return Case([events[:cut], events[cut:], *([one] for one in duplicates)], overrides)


def assert_equal_to_the_model(web: Web, case: Case, team_ids: Sequence[int] | None, max_events_per_pass: int) -> None:
    for table in ("events", "person_distinct_id_overrides"):
        web.rows(f"TRUNCATE TABLE {table}")
    for batch in case.batches:
        web.add(*batch)
    for overrides in case.overrides:
        web.override(*overrides)
    days = [FIRST, DAY, LAST]
    web.compute(*days, team_ids=team_ids, max_events_per_pass=max_events_per_pass)
    events = [event for batch in case.batches for event in batch]
    overrides = [override for batch in case.overrides for override in batch]
    expected = [one for one in sessions_of(events, overrides, team_ids) if FIRST <= one.start.date() <= LAST]
    assert web.sessions() == modelled_rows(expected)
    assert web.entries() == modelled_entries(expected)
    assert web.pages() == modelled_pages(expected)
    accounting = modelled_accounting(events, overrides, team_ids)
    assert web.accounting() == {day: rules for day, rules in accounting.items() if day in days}


def assert_any_case_equals_the_model(web: Web, cluster: ClickhouseCluster, examples: int) -> None:
    web.rows("SYSTEM STOP MERGES events")

    # One database for all examples: each truncates its inputs and replaces every day.
    @settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=examples < 100
    )
    @given(
        case=cases(),
        team_ids=st.sampled_from([None, None, [1]]),
        max_events_per_pass=st.sampled_from([1, 1000]),
    )
    def holds(case: Case, team_ids: Sequence[int] | None, max_events_per_pass: int) -> None:
        assert_equal_to_the_model(web, case, team_ids, max_events_per_pass)
        for subject in SUBJECTS:
            found = compare_with_raw(cluster, subject, FIRST, LAST, team_ids)
            assert found.different == 0, "\n".join(map(str, found.listed))

    holds()


def test_tables_of_random_events_equal_the_model(web: Web, cluster: ClickhouseCluster) -> None:
    assert_any_case_equals_the_model(web, cluster, examples=25)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_tables_of_many_random_events_equal_the_model(web: Web, cluster: ClickhouseCluster) -> None:
    assert_any_case_equals_the_model(web, cluster, examples=1000)
