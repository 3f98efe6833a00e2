"""One day's exchange rates as a value: its rules, its JSON form, and its summary as a table."""

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

from dags.common.markdown import markdown_table

BASE_CURRENCY = "USD"

# Quoted by the European Central Bank on every publication day since 1999, so a day without one of them is a gap.
MAIN_CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CHF", "CAD", "AUD", "NZD", "SEK", "NOK", "DKK", "HKD", "SGD", "ZAR")

# The column is Decimal64(10): 18 digits, 10 of them after the point.
RATE_DECIMAL_PLACES = 10
RATE_UPPER_BOUND = Decimal(10) ** 8

# The bank's longest pause since 1999 is five days (Easter, Christmas). Older rates mean a gap, not a holiday.
MAX_CARRY_DAYS = 7

_RATE_STEP = Decimal(1).scaleb(-RATE_DECIMAL_PLACES)
_CURRENCY_CODE = re.compile(r"[A-Z][A-Z0-9_]{2,9}")


class RatesRejectedError(Exception):
    """Rates that break a rule, so nothing was stored. The message lists every invalid rate, the rule and the remedy."""


@dataclass(frozen=True)
class Rates:
    """Units of each currency for one US dollar, on one day (UTC).

    `figures` are exact, as the source gives them, and are rounded to 10 decimal places when stored. `published_on` is
    the day of their publication; if it is before `date`, they are carried forward, as over a weekend or a holiday.
    `published_at` is the time of publication, if the source says it.
    """

    date: dt.date
    published_on: dt.date
    source: str
    figures: Mapping[str, Decimal]
    published_at: dt.datetime | None = None

    @property
    def carried_forward(self) -> bool:
        """Whether the source published nothing on `date`, so that these are an earlier day's rates."""
        return self.published_on < self.date

    def rounded(self) -> dict[str, Decimal]:
        """Return each currency's rate as the table stores it: with 10 decimal places, rounded half to even."""
        return {currency: round_rate(figure) for currency, figure in self.figures.items()}


def round_rate(figure: Decimal) -> Decimal:
    """Return `figure` with the 10 decimal places of the column, rounded half to even."""
    with localcontext(prec=50):
        return figure.quantize(_RATE_STEP, rounding=ROUND_HALF_EVEN)


def shown(figure: Decimal) -> str:
    """Return `figure` as text for messages, without an exponent and without trailing zeros."""
    return f"{figure.normalize():f}"


def check_rates(rates: Rates, minimum_currencies: int) -> None:
    """Raise `RatesRejectedError`, naming every invalid rate, unless `rates` are valid.

    Valid rates are published on their day or at most a week before, for at least `minimum_currencies`. Every code is a
    currency code. Every figure is finite, above zero, and in the range of the column. USD is quoted at exactly 1.
    """
    problems = [
        problem for currency, figure in sorted(rates.figures.items()) if (problem := _problem(currency, figure))
    ]
    if rates.figures.get(BASE_CURRENCY) != 1:
        given = rates.figures.get(BASE_CURRENCY, "absent")
        problems.append(f"{BASE_CURRENCY} is {given}: rates are units of a currency for 1 USD, so it must be 1")
    if len(rates.figures) < minimum_currencies:
        problems.append(f"{len(rates.figures)} currencies: at least {minimum_currencies} are expected of this source")
    if not 0 <= (rates.date - rates.published_on).days <= MAX_CARRY_DAYS:
        problems.append(
            f"published on {rates.published_on}: rates of a day are published on it or, carried forward, at most "
            f"{MAX_CARRY_DAYS} days before"
        )
    if problems:
        raise RatesRejectedError(
            f"{rates.source}, {rates.date}: the rates are not valid, so none was stored:\n- "
            + "\n- ".join(problems)
            + "\nThe source's response is wrong or partial: check it, and run the partition again when it is fixed."
        )


def _problem(currency: str, figure: Decimal) -> str | None:
    if not _CURRENCY_CODE.fullmatch(currency):
        return f"{currency[:20]!r} is not a currency code (capitals and digits, 3 to 10 of them)"
    if not figure.is_finite():
        return f"{currency} is {figure}: a rate must be a finite number"
    if figure <= 0:
        return f"{currency} is {figure}: a rate must be above 0"
    if figure >= RATE_UPPER_BOUND or round_rate(figure) >= RATE_UPPER_BOUND:
        return f"{currency} is {figure}: the column holds rates below {RATE_UPPER_BOUND:,}"
    if round_rate(figure) == 0:
        return f"{currency} is {figure}: it is 0 at the column's {RATE_DECIMAL_PLACES} decimal places"
    return None


def rates_to_json(rates: Rates) -> dict[str, Any]:
    """Return the JSON object of one partition. Figures are strings, since JSON numbers are not decimals."""
    return {
        "date": rates.date.isoformat(),
        "published_on": rates.published_on.isoformat(),
        "published_at": rates.published_at.isoformat() if rates.published_at else None,
        "source": rates.source,
        "base": BASE_CURRENCY,
        "rates": {currency: f"{rates.figures[currency]:f}" for currency in sorted(rates.figures)},
    }


def rates_from_json(value: Mapping[str, Any]) -> Rates:
    """Return the rates that `rates_to_json` wrote.

    Raises `RatesRejectedError` when the object has another structure, naming the field.
    """
    try:
        published_at = value["published_at"]
        return Rates(
            date=dt.date.fromisoformat(value["date"]),
            published_on=dt.date.fromisoformat(value["published_on"]),
            source=str(value["source"]),
            figures={str(currency): Decimal(figure) for currency, figure in value["rates"].items()},
            published_at=dt.datetime.fromisoformat(published_at) if published_at else None,
        )
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise RatesRejectedError(
            f"The stored object of the upstream asset is not one day's rates ({type(error).__name__}: {error}). "
            "Materialize the upstream partition again."
        ) from error


def main_currencies_table(rates: Rates) -> str:
    """Return the main currencies as a Markdown table."""
    rows = [
        [currency, f"{round_rate(rates.figures[currency]):f}"]
        for currency in MAIN_CURRENCIES
        if currency in rates.figures
    ]
    return markdown_table(["currency", "units for 1 USD"], "lr", rows)
