import datetime as dt
import itertools
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import ClusterError
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.query import Insert, Query
from dags.exchange_rate.rates import Rates
from dags.exchange_rate.storage import (
    FINAL_GRADE,
    JumpLimits,
    Key,
    Quote,
    RatesJumpedError,
    ReadBackError,
    StoredRate,
    find_jumps,
    plan_rows,
    store_rates,
)

DAY = dt.date(2026, 10, 22)
NO_LIMITS = JumpLimits(maximum_change_percent=10**9)


def quote_of(date: dt.date, grade: int = FINAL_GRADE, **figures: str) -> Quote:
    return Quote(Rates(date, date, "test", {currency: Decimal(figure) for currency, figure in figures.items()}), grade)


def stored_of(rate: str, grade: int = FINAL_GRADE, corrections: int = 0) -> StoredRate:
    return StoredRate(Decimal(rate), grade * 1_000_000 + corrections)


def store(cluster: ClickhouseCluster, *quotes: Quote, limits: JumpLimits = NO_LIMITS, run_id: str = "run") -> list[int]:
    outcomes = store_rates(cluster, quotes, limits, run_id=run_id, read_back_timeout_seconds=0)
    return [outcome.rows_written for outcome in outcomes]


def rows_on(cluster: ClickhouseCluster) -> dict[Host, list[tuple[object, ...]]]:
    query = Query("SELECT date, currency, rate, version FROM exchange_rate FINAL ORDER BY ALL")
    return cluster.map_all_hosts(query).result()


@pytest.mark.parametrize(
    ("stored", "grade", "rate", "written"),
    [
        (None, FINAL_GRADE, "2", stored_of("2")),
        (None, 0, "2", StoredRate(Decimal(2), 0)),
        (stored_of("2"), FINAL_GRADE, "2", None),
        (stored_of("2"), FINAL_GRADE, "3", stored_of("3", corrections=1)),
        (stored_of("2", corrections=6), FINAL_GRADE, "3", stored_of("3", corrections=7)),
        (stored_of("2", grade=5), 6, "2", None),
        (stored_of("2", grade=5), 6, "3", stored_of("3", grade=6)),
        (stored_of("2", grade=5), 5, "3", stored_of("3", grade=5, corrections=1)),
        (stored_of("2", grade=5), 4, "3", None),
        # A final rate takes its grade even where the value is the same, or a late hourly run could replace it.
        (stored_of("2", grade=23), FINAL_GRADE, "2", stored_of("2")),
        (stored_of("2"), 23, "3", None),
    ],
)
def test_a_row_is_written_when_it_is_new_or_differs_and_is_not_outranked(
    stored: StoredRate | None, grade: int, rate: str, written: StoredRate | None
) -> None:
    key = (DAY, "EUR")
    plan = plan_rows([quote_of(DAY, grade, EUR=rate)], [{key: stored} if stored else {}])
    assert plan.rows == ({key: written} if written else {})
    assert plan.expected == {key: written or stored}


def test_the_numbers_of_written_unchanged_and_superseded_rows_add_up_to_the_currencies() -> None:
    view = {(DAY, "EUR"): stored_of("2"), (DAY, "GBP"): stored_of("2"), (DAY, "JPY"): stored_of("2")}
    final, hourly = plan_rows(
        [quote_of(DAY, EUR="2", GBP="3", CHF="4"), quote_of(DAY, 7, JPY="5")],
        [view],
    ).outcomes
    assert (final.rows_written, final.rows_unchanged, final.rows_superseded) == (2, 1, 0)
    assert (hourly.rows_written, hourly.rows_unchanged, hourly.rows_superseded) == (0, 0, 1)


rates = st.sampled_from(["1.5", "2", "3"])
quotes = st.builds(
    lambda day, grade, eur, gbp: quote_of(DAY + dt.timedelta(days=day), grade, EUR=eur, GBP=gbp),
    st.integers(0, 1),
    st.sampled_from([0, 13, 23, FINAL_GRADE]),
    rates,
    rates,
)


def apply(view: dict[Key, StoredRate], rows: dict[Key, StoredRate]) -> dict[Key, StoredRate]:
    """What ReplacingMergeTree keeps."""
    kept = dict(view)
    for key, row in rows.items():
        if key not in kept or row.version >= kept[key].version:
            kept[key] = row
    return kept


@given(st.lists(st.lists(quotes, min_size=1, max_size=4), max_size=4), st.lists(quotes, min_size=1, max_size=4))
def test_whatever_hosts_hold_a_plan_brings_all_to_the_same_rates_and_a_second_plan_is_empty(
    pasts: list[list[Quote]], wanted: list[Quote]
) -> None:
    views: list[dict[Key, StoredRate]] = [{}]
    for past in pasts:
        views.append(apply(views[-1], dict(plan_rows(past, [views[-1]]).rows)))
    # Hosts that stopped at different points of the same past.
    plan = plan_rows(wanted, views)
    after = [apply(view, dict(plan.rows)) for view in views]
    for key, expected in plan.expected.items():
        assert [view[key] for view in after] == [expected] * len(after)
    for key, stored in views[-1].items():
        assert after[-1][key].version >= stored.version
    finals = {
        (quote.rates.date, currency) for quote in wanted if quote.grade == FINAL_GRADE for currency in ("EUR", "GBP")
    }
    assert all(plan.expected[key].version >= FINAL_GRADE * 1_000_000 for key in finals)
    again = plan_rows([quote for quote in wanted if quote.grade == FINAL_GRADE][-1:] or wanted[-1:], after)
    outranked = {key for key in again.expected if again.expected[key] != plan.expected[key]}
    assert set(again.rows) == outranked


def jumps_of(quotes: list[Quote], stored: dict[Key, StoredRate], limits: JumpLimits) -> list[tuple[str, dt.date]]:
    return [(jump.currency, jump.date) for jump in find_jumps(quotes, stored, limits)]


def test_a_rate_is_compared_with_the_last_one_stored_before_it() -> None:
    stored = {(DAY - dt.timedelta(days=days), "EUR"): stored_of(rate) for days, rate in ((3, "1"), (9, "9"))}
    limits = JumpLimits(50)
    assert jumps_of([quote_of(DAY, EUR="1.5")], stored, limits) == []
    assert jumps_of([quote_of(DAY, EUR="1.51")], stored, limits) == [("EUR", DAY)]
    assert jumps_of([quote_of(DAY, EUR="0.66")], stored, limits) == [("EUR", DAY)]
    assert jumps_of([quote_of(DAY, EUR="1.51")], stored, JumpLimits(50, frozenset({"EUR"}))) == []


def test_the_days_of_one_range_are_compared_with_each_other() -> None:
    days = [DAY + dt.timedelta(days=days) for days in range(3)]
    quotes = [quote_of(day, EUR=rate) for day, rate in zip(days, ("1", "2", "4"), strict=True)]
    for ordered in itertools.permutations(quotes):
        assert jumps_of(list(ordered), {}, JumpLimits(50)) == [("EUR", days[1]), ("EUR", days[2])]


def test_a_rate_is_not_compared_with_one_of_long_ago_nor_with_nothing() -> None:
    stored = {(DAY - dt.timedelta(days=11), "EUR"): stored_of("1")}
    assert jumps_of([quote_of(DAY, EUR="9", GBP="9")], stored, JumpLimits(50)) == []


def test_a_final_rate_is_compared_with_the_day_before_and_an_hourly_one_with_its_own_day() -> None:
    stored = {(DAY - dt.timedelta(days=1), "EUR"): stored_of("1"), (DAY, "EUR"): stored_of("9", grade=3)}
    assert jumps_of([quote_of(DAY, EUR="1.1")], stored, JumpLimits(50)) == []
    assert jumps_of([quote_of(DAY, 4, EUR="1.1")], stored, JumpLimits(50)) == [("EUR", DAY)]


def test_a_stored_rate_is_not_a_jump() -> None:
    stored = {(DAY - dt.timedelta(days=1), "EUR"): stored_of("1"), (DAY, "EUR"): stored_of("9")}
    assert jumps_of([quote_of(DAY, EUR="9")], stored, JumpLimits(50)) == []


def test_a_jump_is_rejected_with_both_rates_and_the_limit_and_nothing_is_written(cluster: ClickhouseCluster) -> None:
    store(cluster, quote_of(DAY, EUR="1", USD="1"))
    before = rows_on(cluster)
    with pytest.raises(RatesJumpedError, match=r"more than 20 percent[^$]*EUR on 2026-10-23 is 1\.3") as caught:
        store(cluster, quote_of(DAY + dt.timedelta(days=1), EUR="1.3", USD="1"), limits=JumpLimits(20))
    assert caught.value.currencies == ["EUR"]
    assert rows_on(cluster) == before


def test_rates_are_stored_to_the_last_decimal_place_and_read_back_through_the_dictionary(
    cluster: ClickhouseCluster,
) -> None:
    exact = {"EUR": "0.8950948801", "IDR": "99999999.9999999999", "XAU": "0.0000000001"}
    assert store(cluster, quote_of(DAY, FINAL_GRADE, **exact)) == [3]
    for currency, rate in exact.items():
        query = Query(
            "SELECT dictGet('exchange_rate_dict', 'rate', %(currency)s, toDate(%(date)s))",
            {"currency": currency, "date": DAY},
        )
        assert cluster.any_host(query).result() == [(Decimal(rate),)]


def test_a_dictionary_with_another_rate_is_an_error_with_host_and_both_rates(cluster: ClickhouseCluster) -> None:
    statement = """
        CREATE OR REPLACE DICTIONARY exchange_rate_dict
        (currency String, start_date Date, end_date Nullable(Date), rate Nullable(Decimal64(10)) DEFAULT NULL)
        PRIMARY KEY currency
        SOURCE(CLICKHOUSE(QUERY 'SELECT ''EUR'', toDate(''2020-01-01''), NULL, toDecimal64(3, 10)'))
        LAYOUT(COMPLEX_KEY_RANGE_HASHED()) LIFETIME(0) RANGE(MIN start_date MAX end_date)
    """
    cluster.any_host(Query(statement)).result()
    with pytest.raises(ReadBackError) as caught:
        store(cluster, quote_of(DAY, EUR="2", JPY="150"))
    message = str(caught.value)
    assert f"{cluster.hosts[0]}: EUR on 2026-10-22 is 3, 2 was written" in message
    assert "JPY on 2026-10-22 is unknown to the dictionary, 150 was written" in message


def test_the_same_insert_sent_twice_is_stored_once(cluster: ClickhouseCluster) -> None:
    insert = Insert("exchange_rate", ("currency", "date", "rate", "version"), [("EUR", DAY, Decimal(2), 1)], "token")
    for _ in range(2):
        cluster.any_host(insert).result()
    assert cluster.any_host(Query("SELECT count() FROM exchange_rate")).result() == [(1,)]


def test_rates_are_stored_on_every_host_and_missing_rates_are_added(
    two_hosts: ClickhouseCluster,
) -> None:
    assert store(two_hosts, quote_of(DAY, EUR="2", GBP="3")) == [2]
    first, second = rows_on(two_hosts).values()
    assert first == second
    assert len(first) == 2

    with ClickhouseCluster([two_hosts.hosts[1]], Access(database=two_hosts.database)) as alone:
        alone.any_host(Query("TRUNCATE TABLE exchange_rate")).result()
        store(alone, quote_of(DAY, EUR="5"))
        store(alone, quote_of(DAY, EUR="6"))
    assert store(two_hosts, quote_of(DAY, EUR="2", GBP="3")) == [2]
    first, second = rows_on(two_hosts).values()
    assert first == second
    assert [(currency, rate) for _, currency, rate, _ in first] == [("EUR", 2), ("GBP", 3)]
    assert store(two_hosts, quote_of(DAY, EUR="2", GBP="3")) == [0]


def test_a_host_whose_dictionary_lags_is_named(two_hosts: ClickhouseCluster) -> None:
    with ClickhouseCluster([two_hosts.hosts[1]], Access(database=two_hosts.database)) as alone:
        alone.any_host(Query("DROP DICTIONARY exchange_rate_dict")).result()
    with pytest.raises(ClusterError, match=str(two_hosts.hosts[1])) as caught:
        store(two_hosts, quote_of(DAY, EUR="2"))
    assert list(caught.value.errors) == [two_hosts.hosts[1]]
