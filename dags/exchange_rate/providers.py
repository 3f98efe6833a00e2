"""What a source of exchange rates is: the interface and its errors.

Not here: the sources (`open_exchange_rates.py`, `european_central_bank.py`), nor which one a deployment uses
(`resource.py`).
"""

import datetime as dt
from typing import Protocol

from dags.exchange_rate.rates import Rates


class ExchangeRatesError(Exception):
    """A source cannot give the rates, and asking again will not help. The message says why and the remedy."""


class ExchangeRatesUnavailableError(ExchangeRatesError):
    """A source gave no answer although it was asked several times. A later run may succeed."""


class ExchangeRatesProvider(Protocol):
    """A source of exchange rates against the US dollar."""

    @property
    def name(self) -> str:
        """Name of the source, as people write it."""

    @property
    def intraday(self) -> bool:
        """Whether `latest_rates` changes in the course of a day."""

    @property
    def minimum_currencies(self) -> int:
        """Fewer currencies than this in one answer mean that the answer is partial."""

    def why_not_covered(self, date: dt.date) -> str | None:
        """Return None where the source has rates of `date`, else one sentence: its range and the remedy."""

    def daily_rates(self, date: dt.date) -> Rates:
        """Return the final rates of `date` (UTC).

        Raises `ExchangeRatesError` where the source does not cover `date` or refuses,
        `ExchangeRatesUnavailableError` where it does not answer.
        """

    def latest_rates(self) -> Rates:
        """Return the newest rates that the source has. Raises as `daily_rates` does."""
