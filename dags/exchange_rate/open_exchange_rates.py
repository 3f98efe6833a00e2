"""Open Exchange Rates (openexchangerates.org) over HTTP: requests, retries, and the remedy for each error.

The app id is sent in the Authorization header, never in a URL, so it cannot reach a log line or an exception with the
address.
"""

import datetime as dt
import json
import re
import time
from decimal import Decimal
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import tenacity
from pydantic import SecretStr

from dags.exchange_rate.providers import ExchangeRatesError, ExchangeRatesUnavailableError
from dags.exchange_rate.rates import BASE_CURRENCY, Rates

if TYPE_CHECKING:
    import requests

BASE_URL = "https://openexchangerates.org/api"
FIRST_DATE = dt.date(1999, 1, 1)

# The response for a day has about 5 kB.
MAX_RESPONSE_BYTES = 200_000
_APP_ID = re.compile(r"[A-Za-z0-9_-]+")
_REASON_WORD = re.compile(r"[a-z]{1,20}(_[a-z]{1,20}){0,3}")

_REMEDIES = {
    401: "The app id is missing or wrong: set OPEN_EXCHANGE_RATES_APP_ID to one from the App IDs page of the account.",
    403: "Access is restricted (overuse or an unpaid plan): check the usage and billing pages of the account.",
    429: "The requests of the plan are used up, or the plan has no such data: wait for the next period or upgrade.",
}


class _TransientError(Exception):
    """A failed request that may succeed if repeated."""


class _AppIdAuthentication:
    """The app id as a header of each request. Given explicitly, so that requests reads no .netrc file."""

    def __init__(self, app_id: SecretStr) -> None:
        self._app_id = app_id

    def __call__(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        request.headers["Authorization"] = f"Token {self._app_id.get_secret_value()}"
        return request


class OpenExchangeRates:
    """Rates of about 170 currencies against the US dollar, published each hour, with a history since 1999."""

    name = "Open Exchange Rates"
    intraday = True
    minimum_currencies = 100

    def __init__(
        self,
        app_id: SecretStr,
        *,
        base_url: str = BASE_URL,
        timeout_seconds: float = 10.0,
        attempts: int = 4,
        backoff_seconds: float = 0.5,
        backoff_cap_seconds: float = 10.0,
    ) -> None:
        """Connect on first use.

        `timeout_seconds` limits connecting, each wait for bytes, and reading one response. Timeouts, refused
        connections and 5xx responses are retried, up to `attempts` requests in all, after a jittered wait that doubles
        from `backoff_seconds` to `backoff_cap_seconds`.
        """
        if not _APP_ID.fullmatch(app_id.get_secret_value()):
            raise ExchangeRatesError(
                "OPEN_EXCHANGE_RATES_APP_ID is empty or has a character that no app id has, such as a space, a line "
                "end or a quotation mark: an app id has letters and digits only."
            )
        self._app_id = app_id
        self._base_url = base_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._backoff_cap_seconds = backoff_cap_seconds

    def why_not_covered(self, date: dt.date) -> str | None:
        """Return None from 1999 on, else the range and the remedy."""
        if date >= FIRST_DATE:
            return None
        return f"{self.name}: the history starts on {FIRST_DATE}, and {date} is before. Choose a later date."

    def daily_rates(self, date: dt.date) -> Rates:
        """Return the rates at the end of `date` (UTC)."""
        reason = self.why_not_covered(date)
        if reason:
            raise ExchangeRatesError(reason)
        response = self._get(f"historical/{date.isoformat()}.json")
        published_at, figures = self._parsed(response)
        # The response for the end of a day may be from the first moments of the next day.
        published_on = min(published_at.date(), date)
        if published_at.date() > date + dt.timedelta(days=1):
            raise ExchangeRatesError(
                f"{self.name}: the response for {date} has the rates of {published_at:%Y-%m-%d %H:%M} UTC. "
                f"The day may not have ended yet, or the address {self._base_url} is not that of the API."
            )
        return Rates(date, published_on, self.name, figures, published_at)

    def latest_rates(self) -> Rates:
        """Return the rates of this hour, with the time of publication that the source gives."""
        published_at, figures = self._parsed(self._get("latest.json"))
        return Rates(published_at.date(), published_at.date(), self.name, figures, published_at)

    def _get(self, path: str) -> Any:
        """Return the parsed JSON of one address, and retry transient errors only.

        Errors are raised outside of the handlers, so that no exception of requests, which may quote headers, is
        chained.
        """
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=tenacity.wait_random_exponential(multiplier=self._backoff_seconds, max=self._backoff_cap_seconds),
            retry=tenacity.retry_if_exception_type(_TransientError),
            reraise=True,
        )
        try:
            status, body = attempts(self._ask, path)
        except _TransientError as error:
            problem = str(error)
        else:
            return self._json(path, status, body)
        raise ExchangeRatesUnavailableError(
            f"{self.name}: no response for {path} after {self._attempts} attempts, the last: {problem}. "
            "The service or the network is down: run the partition again later."
        )

    def _ask(self, path: str) -> tuple[int, bytes]:
        """Send one request; return status and body, or raise `_TransientError`."""
        import requests

        deadline = time.monotonic() + self._timeout_seconds
        try:
            with requests.get(
                f"{self._base_url}/{path}",
                auth=_AppIdAuthentication(self._app_id),
                timeout=self._timeout_seconds,
                allow_redirects=False,
                stream=True,
            ) as response:
                received = bytearray()
                # Byte by byte: reading a larger chunk waits until it is full, past any deadline.
                for byte in response.iter_content(1):
                    received += byte
                    if len(received) > MAX_RESPONSE_BYTES or time.monotonic() > deadline:
                        break
                status, body = response.status_code, bytes(received)
        except (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            problem = type(error).__name__
        except requests.RequestException as error:
            raise ExchangeRatesError(
                f"{self.name}: the request for {path} could not be made ({type(error).__name__}). "
                f"Check the address {self._base_url}."
            ) from None
        else:
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                problem = f"HTTP status {status}"
            elif len(body) <= MAX_RESPONSE_BYTES and time.monotonic() > deadline:
                problem = f"the response was not complete after {self._timeout_seconds:g} seconds"
            else:
                return status, body
        raise _TransientError(problem)

    def _json(self, path: str, status: int, body: bytes) -> Any:
        """Return the JSON of a successful response. Raise `ExchangeRatesError`, with the remedy, for any other."""
        if status != HTTPStatus.OK:
            remedy = _REMEDIES.get(status, "The source does not have the requested rates: check its status page.")
            raise ExchangeRatesError(
                f"{self.name}: {path} was rejected with HTTP status {status}{self._word(body)}. {remedy}"
            )
        if len(body) > MAX_RESPONSE_BYTES:
            problem = f"is longer than {MAX_RESPONSE_BYTES:,} bytes"
        elif not body.strip():
            problem = "is empty"
        else:
            try:
                # NaN and Infinity are kept as numbers, so that the check of the rates names their currencies.
                return json.loads(body, parse_float=Decimal, parse_int=Decimal, parse_constant=Decimal)
            except (ValueError, ArithmeticError, RecursionError):
                problem = "is not JSON"
        raise ExchangeRatesError(
            f"{self.name}: the response for {path} {problem}. A proxy responds in place of the source, or the source "
            "is broken: check its status page and run the partition again."
        )

    def _word(self, body: bytes) -> str:
        """Return the error code of the source, such as `invalid_app_id`, and nothing else of the untrusted body."""
        try:
            word = json.loads(body)["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        if not isinstance(word, str) or not _REASON_WORD.fullmatch(word) or self._app_id.get_secret_value() in word:
            return ""
        return f" ({word})"

    def _parsed(self, response: Any) -> tuple[dt.datetime, dict[str, Decimal]]:
        """Return the time of publication (UTC) and the figures of a response. Raise if its structure is another."""
        problems = []
        timestamp, base, figures = (
            (response.get("timestamp"), response.get("base"), response.get("rates"))
            if isinstance(response, dict)
            else (None, None, None)
        )
        published_at = _time_of(timestamp)
        if published_at is None:
            problems.append("`timestamp` is not a time in seconds since 1970")
        if base != BASE_CURRENCY:
            problems.append(f"`base` is not {BASE_CURRENCY}")
        if not isinstance(figures, dict) or not figures:
            problems.append("`rates` is absent or empty")
        else:
            wrong = sorted(
                str(currency)[:20] for currency, figure in figures.items() if not isinstance(figure, Decimal)
            )
            if wrong:
                problems.append(f"`rates` holds something other than a number for {', '.join(wrong)}")
        if problems or published_at is None or not isinstance(figures, dict):
            raise ExchangeRatesError(
                f"{self.name}: the response does not have the documented structure: {'; '.join(problems)}. "
                "Nothing was stored. Check the status page and change log of the source."
            )
        return published_at, figures


def _time_of(timestamp: object) -> dt.datetime | None:
    if not isinstance(timestamp, Decimal) or not timestamp.is_finite() or not 0 < timestamp < Decimal(10) ** 11:
        return None
    return dt.datetime.fromtimestamp(int(timestamp), tz=dt.UTC)
