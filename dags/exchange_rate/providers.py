"""The interface of a source of exchange rates, and its errors. `resource.py` chooses the source of a deployment."""

import datetime as dt
from typing import Protocol

from dags.exchange_rate.rates import Rates


class ExchangeRatesError(Exception):
    """A source does not have the rates, and a retry cannot help. The message gives the reason and the remedy."""


class ExchangeRatesUnavailableError(ExchangeRatesError):
    """A source did not answer any of several requests. A later run may succeed."""


class ExchangeRatesProvider(Protocol):
    """A source of exchange rates against the US dollar."""

    @property
    def name(self) -> str:
        """The name of the source, for messages."""

    @property
    def intraday(self) -> bool:
        """Whether `latest_rates` changes within a day."""

    @property
    def minimum_currencies(self) -> int:
        """Fewer currencies in one response mean that the response is partial."""

    def why_not_covered(self, date: dt.date) -> str | None:
        """Return None if the source has rates of `date`, else its range and the remedy in one sentence."""

    def daily_rates(self, date: dt.date) -> Rates:
        """Return the final rates of `date` (UTC).

        Raises `ExchangeRatesError` if the source does not cover `date` or rejects the request, and
        `ExchangeRatesUnavailableError` if it does not answer.
        """

    def latest_rates(self) -> Rates:
        """Return the newest rates that the source has. Raises as `daily_rates` does."""
