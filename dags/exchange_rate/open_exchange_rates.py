"""Open Exchange Rates (openexchangerates.org) over HTTP.

Belongs here: the requests, which answers are worth asking again for, and what each refusal means. The app id travels in
the Authorization header, never in a URL, so it cannot end in a log line or an exception that quotes the address.
Not here: whether rates are plausible (`rates.py`).
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

# A day's answer is about 5 kB.
_LARGEST_ANSWER_BYTES = 200_000
_APP_ID = re.compile(r"[A-Za-z0-9_-]+")
_REASON_WORD = re.compile(r"[a-z]{1,20}(_[a-z]{1,20}){0,3}")

_REMEDIES = {
    401: "The app id is missing or wrong: set OPEN_EXCHANGE_RATES_APP_ID to the one of the account's App IDs page.",
    403: "Access is restricted (over-use or an unpaid plan): look at the account's usage and billing pages.",
    429: "The plan's requests are used up, or the plan has no such data: wait for the new period or raise the plan.",
}


class _TransientError(Exception):
    """An answer worth asking again for."""


class _AppIdAuthentication:
    """Sets the header for each request. Given explicitly so that requests takes no credentials from a .netrc file."""

    def __init__(self, app_id: SecretStr) -> None:
        self._app_id = app_id

    def __call__(self, request: "requests.PreparedRequest") -> "requests.PreparedRequest":
        request.headers["Authorization"] = f"Token {self._app_id.get_secret_value()}"
        return request


class OpenExchangeRates:
    """Rates of about 170 currencies against the US dollar, new each hour, with a history since 1999."""

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
        """Connects to nothing yet.

        `timeout_seconds` bounds connecting, each wait for bytes, and the reading of one answer; timeouts, refused
        connections and 5xx answers are asked again up to `attempts` times in all, after a jittered wait that doubles
        from `backoff_seconds` up to `backoff_cap_seconds`.
        """
        if not _APP_ID.fullmatch(app_id.get_secret_value()):
            raise ExchangeRatesError(
                "OPEN_EXCHANGE_RATES_APP_ID is empty or holds a character that no app id has (a blank, a line end or a "
                "quotation mark, perhaps): an app id is letters and digits only."
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
        answer = self._get(f"historical/{date.isoformat()}.json")
        published_at, figures = self._parsed(answer)
        # An end-of-day answer may carry the first instants of the next day.
        published_on = min(published_at.date(), date)
        if published_at.date() > date + dt.timedelta(days=1):
            raise ExchangeRatesError(
                f"{self.name}: asked for the rates of {date}, got those of {published_at:%Y-%m-%d %H:%M} UTC. "
                f"The day may not be over yet, or the address {self._base_url} is not the API's."
            )
        return Rates(date, published_on, self.name, figures, published_at)

    def latest_rates(self) -> Rates:
        """Return the rates of this hour, dated with the moment the source gives."""
        published_at, figures = self._parsed(self._get("latest.json"))
        return Rates(published_at.date(), published_at.date(), self.name, figures, published_at)

    def _get(self, path: str) -> Any:
        """Return the parsed JSON of one address, asking again for transient answers only.

        Errors are raised outside of the handlers: what requests raises, and quotes, stays out of their chains.
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
            return self._answer(path, status, body)
        raise ExchangeRatesUnavailableError(
            f"{self.name}: no answer for {path} after {self._attempts} attempts, the last: {problem}. "
            "The service or the way to it is down: run the partition again later."
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
                # Byte by byte: a larger chunk is waited for until it is full, past any deadline.
                for byte in response.iter_content(1):
                    received += byte
                    if len(received) > _LARGEST_ANSWER_BYTES or time.monotonic() > deadline:
                        break
                status, body = response.status_code, bytes(received)
        except (requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            problem = type(error).__name__
        except requests.RequestException as error:
            raise ExchangeRatesError(
                f"{self.name}: the request for {path} could not be made ({type(error).__name__}). "
                f"Is {self._base_url} a right address?"
            ) from None
        else:
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                problem = f"HTTP status {status}"
            elif len(body) <= _LARGEST_ANSWER_BYTES and time.monotonic() > deadline:
                problem = f"the answer was not complete after {self._timeout_seconds:g} seconds"
            else:
                return status, body
        raise _TransientError(problem)

    def _answer(self, path: str, status: int, body: bytes) -> Any:
        """Return the JSON of a good answer; raise `ExchangeRatesError`, with the remedy, for any other."""
        if status != HTTPStatus.OK:
            remedy = _REMEDIES.get(status, "The source does not have what was asked for: look at its status page.")
            raise ExchangeRatesError(
                f"{self.name}: {path} was refused with HTTP status {status}{self._word(body)}. {remedy}"
            )
        if len(body) > _LARGEST_ANSWER_BYTES:
            problem = f"is longer than {_LARGEST_ANSWER_BYTES:,} bytes"
        elif not body.strip():
            problem = "is empty"
        else:
            try:
                # NaN and Infinity stay numbers here, so that the check of the rates names their currencies.
                return json.loads(body, parse_float=Decimal, parse_int=Decimal, parse_constant=Decimal)
            except (ValueError, ArithmeticError, RecursionError):
                problem = "is not JSON"
        raise ExchangeRatesError(
            f"{self.name}: the answer for {path} {problem}. Something between here and the source answers in its "
            "place, or the source is broken: look at its status page and run the partition again."
        )

    def _word(self, body: bytes) -> str:
        """Return the source's own word for a refusal (`invalid_app_id`), and nothing else of a body we do not trust."""
        try:
            word = json.loads(body)["message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return ""
        if not isinstance(word, str) or not _REASON_WORD.fullmatch(word) or self._app_id.get_secret_value() in word:
            return ""
        return f" ({word})"

    def _parsed(self, answer: Any) -> tuple[dt.datetime, dict[str, Decimal]]:
        """Return the moment of publication (UTC) and the figures of an answer; raise on another shape."""
        problems = []
        timestamp, base, figures = (
            (answer.get("timestamp"), answer.get("base"), answer.get("rates"))
            if isinstance(answer, dict)
            else (None, None, None)
        )
        published_at = _moment(timestamp)
        if published_at is None:
            problems.append("`timestamp` is not a moment in seconds since 1970")
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
                f"{self.name}: the answer has not the documented form: {'; '.join(problems)}. "
                "Nothing was stored. Look at the source's status page and change log."
            )
        return published_at, figures


def _moment(timestamp: object) -> dt.datetime | None:
    if not isinstance(timestamp, Decimal) or not timestamp.is_finite() or not 0 < timestamp < Decimal(10) ** 11:
        return None
    return dt.datetime.fromtimestamp(int(timestamp), tz=dt.UTC)
