import datetime as dt
from decimal import Decimal

import pytest

from dags.exchange_rate.rates import (
    Rates,
    RatesRejectedError,
    check_rates,
    main_currencies_table,
    rates_from_json,
    rates_to_json,
    round_rate,
)

DAY = dt.date(2026, 10, 23)
GOOD = Rates(DAY, DAY, "a source", {"USD": Decimal(1), "EUR": Decimal("0.86"), "JPY": Decimal("152.7")})


def with_figures(**figures: str) -> Rates:
    return Rates(DAY, DAY, "a source", {currency: Decimal(figure) for currency, figure in figures.items()})


def test_good_rates_pass() -> None:
    check_rates(GOOD, minimum_currencies=3)


@pytest.mark.parametrize(
    ("figure", "problem"),
    [
        ("0", "EUR is 0: a rate must be above 0"),
        ("-0.86", "EUR is -0.86: a rate must be above 0"),
        ("NaN", "EUR is NaN: a rate must be a finite number"),
        ("Infinity", "EUR is Infinity: a rate must be a finite number"),
        ("100000000", "the column holds rates below 100,000,000"),
        ("99999999.99999999999", "the column holds rates below 100,000,000"),
        ("0.00000000004", "it is 0 at the column's 10 decimal places"),
    ],
)
def test_a_figure_that_is_not_a_rate_or_does_not_fit_the_column_is_named(figure: str, problem: str) -> None:
    with pytest.raises(RatesRejectedError) as caught:
        check_rates(with_figures(USD="1", EUR=figure), minimum_currencies=1)
    assert problem in str(caught.value)


@pytest.mark.parametrize("figures", [{"EUR": "0.86"}, {"EUR": "0.86", "USD": "1.0001"}])
def test_rates_that_are_not_against_the_dollar_are_rejected(figures: dict[str, str]) -> None:
    with pytest.raises(RatesRejectedError, match="so it must be 1"):
        check_rates(with_figures(**figures), minimum_currencies=1)


def test_too_few_currencies_and_invalid_codes_are_named_in_one_message() -> None:
    with pytest.raises(RatesRejectedError) as caught:
        check_rates(with_figures(USD="1", eur="0.86"), minimum_currencies=3)
    assert "'eur' is not a currency code" in str(caught.value)
    assert "2 currencies: at least 3" in str(caught.value)


@pytest.mark.parametrize("days", [8, -1])
def test_rates_of_more_than_a_week_before_or_of_a_later_day_are_rejected(days: int) -> None:
    rates = Rates(DAY, DAY - dt.timedelta(days=days), "a source", GOOD.figures)
    with pytest.raises(RatesRejectedError, match="at most 7 days before"):
        check_rates(rates, minimum_currencies=1)


def test_rates_survive_json_to_the_digit() -> None:
    published_at = dt.datetime(2026, 10, 23, 14, 5, tzinfo=dt.UTC)
    rates = Rates(DAY, DAY, "a source", {"USD": Decimal(1), "EUR": Decimal(1) / Decimal("1.1721")}, published_at)
    assert rates_from_json(rates_to_json(rates)) == rates
    assert rates_from_json(rates_to_json(GOOD)) == GOOD


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"date": "2026-10-23"},
        rates_to_json(GOOD) | {"date": "yesterday"},
        rates_to_json(GOOD) | {"rates": []},
        rates_to_json(GOOD) | {"rates": {"EUR": "much"}},
    ],
)
def test_a_stored_object_of_another_structure_is_an_error_with_the_remedy(value: dict[str, object]) -> None:
    with pytest.raises(RatesRejectedError, match="Materialize the upstream partition again"):
        rates_from_json(value)


def test_a_rate_is_rounded_half_to_even_at_the_tenth_place() -> None:
    assert round_rate(Decimal("0.00000000005")) == 0
    assert round_rate(Decimal("0.00000000015")) == Decimal("0.0000000002")
    assert round_rate(Decimal("12345678.12345678905")) == Decimal("12345678.1234567890")


def test_the_markdown_table_has_the_main_currencies_that_are_quoted() -> None:
    assert main_currencies_table(GOOD).splitlines()[2:] == [
        "| USD | 1.0000000000 |",
        "| EUR | 0.8600000000 |",
        "| JPY | 152.7000000000 |",
    ]
