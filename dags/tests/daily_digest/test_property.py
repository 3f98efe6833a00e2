"""Random orders and pageviews, against the same digests in plain Python."""

import datetime as dt
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dags.daily_digest.digest import write_digests
from dags.tests.daily_digest.platform import NOTHING, Order, Platform, digests_of
from dags.tests.web_preaggregated.events import DAY, Event, at, person, sessions_of

RATES = {"USD": "1", "EUR": "0.8625000001", "JPY": "152.37", "IDR": "16603.0000000007"}
DAYS = [DAY + dt.timedelta(days=n) for n in (-1, 0, 1)]
MIDNIGHT = at("00:00:00")

moments = st.builds(
    lambda hours, microseconds: MIDNIGHT + dt.timedelta(hours=hours, microseconds=microseconds),
    st.integers(-24, 47),
    st.integers(-1, 1),
)
amounts = st.one_of(
    st.decimals(-(10**6), 10**6, places=2).map(str),
    st.decimals(-(10**12), 10**12, places=9).map(lambda one: f"{one:f}"),
    st.integers(-(10**13), 10**13),
    st.sampled_from(
        ["", "e5", "1.5.5", " 5", "1,5", "NaN", ".5", "5.", "+7", NOTHING, None, True, [1], {}, "999999999999.9999999"]
    ),
)
orders = st.builds(
    Order,
    revenue=amounts,
    currency=st.sampled_from(["USD", "EUR", "eur", "JPY", "IDR", "GBP", "XYZ", "", "€", NOTHING, None, 7]),
    team_id=st.integers(1, 3),
    timestamp=moments,
    event=st.sampled_from(["order_placed", "order_placed", "order_placed", "order_canceled"]),
    distinct_id=st.sampled_from(["a", "b"]),
)
events = st.builds(
    Event,
    timestamp=moments,
    session_id=st.sampled_from(["", "s1", "s2", "s3"]),
    pathname=st.sampled_from(["/", "/a", "/b", "/c", "/d", "/e", "/f"]),
    team_id=st.integers(1, 2),
    person_id=st.integers(0, 2).map(person),
    host=st.sampled_from(["example.com", "example.org"]),
)


def assert_any_case_equals_the_model(platform: Platform, examples: int) -> None:
    platform.rows("SYSTEM STOP MERGES events")
    platform.rates(RATES, DAYS[0])

    # One database for all examples: each first clears the tables that it reads, and replaces every day.
    @settings(
        max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=examples < 100
    )
    @given(visited=st.lists(events, max_size=20), placed=st.lists(orders, max_size=12), again=st.integers(0, 3))
    def case(visited: Sequence[Event], placed: Sequence[Order], again: int) -> None:
        platform.rows("TRUNCATE TABLE events")
        platform.web.add(*visited)
        platform.order(*placed)
        platform.order(*placed[:again])
        platform.web.compute(*DAYS)
        write_digests(platform.cluster, DAYS, "run")
        sessions = sessions_of(visited, [])
        expected = {key: one for day in DAYS for key, one in digests_of(day, sessions, placed, RATES).items()}
        assert platform.digests() == expected

    case()


def test_digests_of_random_days_equal_the_model(platform: Platform) -> None:
    assert_any_case_equals_the_model(platform, 8)


@pytest.mark.slow
def test_digests_of_many_random_days_equal_the_model(platform: Platform) -> None:
    assert_any_case_equals_the_model(platform, 100)
