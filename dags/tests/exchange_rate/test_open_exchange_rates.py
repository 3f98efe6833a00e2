import datetime as dt
import logging
import socket
import traceback
from decimal import Decimal

import pytest
from pydantic import SecretStr

from dags.exchange_rate.open_exchange_rates import OpenExchangeRates
from dags.exchange_rate.providers import ExchangeRatesError, ExchangeRatesUnavailableError
from dags.exchange_rate.rates import RatesRejectedError, check_rates
from dags.tests.exchange_rate.source_server import APP_ID, Answer, Source, rates_body, refusal

DAY = dt.date(2026, 11, 13)
END_OF_DAY = dt.datetime(2026, 11, 13, 23, 59, 59, tzinfo=dt.UTC)
GOOD = Answer(rates_body(END_OF_DAY))


def provider_of(source: Source, *, timeout_seconds: float = 5.0, attempts: int = 3) -> OpenExchangeRates:
    return OpenExchangeRates(
        SecretStr(APP_ID),
        base_url=source.base_url,
        timeout_seconds=timeout_seconds,
        attempts=attempts,
        backoff_seconds=0.001,
        backoff_cap_seconds=0.01,
    )


def everything_said(error: BaseException, log: pytest.LogCaptureFixture) -> str:
    """The text of an error, of all that it is chained to, of its traceback, and of all log records."""
    parts = ["".join(traceback.format_exception(error)), *(record.getMessage() for record in log.records)]
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if link is not None:
            parts += [str(link), repr(link)]
            links += [link.__cause__, link.__context__]
    return "\n".join(parts)


def test_a_day_is_requested_by_its_date_and_its_figures_are_exact(source: Source) -> None:
    source.answers = [Answer(rates_body(END_OF_DAY).replace(b"0.8625", b"0.86251234567890123456"))]
    rates = provider_of(source).daily_rates(DAY)
    assert source.paths == ["/api/historical/2026-11-13.json"]
    assert (rates.date, rates.published_on, rates.published_at, rates.carried_forward) == (DAY, DAY, END_OF_DAY, False)
    assert rates.figures["EUR"] == Decimal("0.86251234567890123456")
    assert rates.figures["USD"] == 1
    check_rates(rates, OpenExchangeRates.minimum_currencies)


def test_the_latest_rates_have_their_time_of_publication(source: Source) -> None:
    source.answers = [GOOD]
    rates = provider_of(source).latest_rates()
    assert source.paths == ["/api/latest.json"]
    assert (rates.date, rates.published_at) == (DAY, END_OF_DAY)


def test_rates_published_on_an_earlier_day_are_carried_forward(source: Source) -> None:
    source.answers = [GOOD]
    rates = provider_of(source).daily_rates(DAY + dt.timedelta(days=2))
    assert (rates.carried_forward, rates.published_on) == (True, DAY)


def test_a_response_for_a_later_day_is_rejected(source: Source) -> None:
    source.answers = [GOOD]
    with pytest.raises(ExchangeRatesError, match="the response for 2026-11-01 has the rates of 2026-11-13"):
        provider_of(source).daily_rates(dt.date(2026, 11, 1))


def test_the_app_id_travels_in_a_header_and_never_in_the_address(source: Source) -> None:
    source.answers = [GOOD]
    provider_of(source).daily_rates(DAY)
    assert source.authorizations == [f"Token {APP_ID}"]
    assert APP_ID not in "".join(source.paths)


def test_a_day_before_the_history_is_rejected_without_a_request(source: Source) -> None:
    with pytest.raises(ExchangeRatesError, match="starts on 1999-01-01"):
        provider_of(source).daily_rates(dt.date(1998, 12, 31))
    assert source.paths == []
    assert provider_of(source).why_not_covered(dt.date(1999, 1, 1)) is None


@pytest.mark.parametrize(
    ("status", "word", "remedy"),
    [
        (401, "invalid_app_id", "set OPEN_EXCHANGE_RATES_APP_ID"),
        (403, "access_restricted", "usage and billing"),
        (429, "not_allowed", "upgrade"),
        (400, "not_available", "status page"),
        (404, "not_found", "status page"),
    ],
)
def test_a_rejection_is_an_error_with_its_remedy_and_is_not_retried(
    source: Source, status: int, word: str, remedy: str
) -> None:
    source.answers = [refusal(status, word)]
    with pytest.raises(ExchangeRatesError, match=f"{status} \\({word}\\).*{remedy}") as caught:
        provider_of(source).daily_rates(DAY)
    assert not isinstance(caught.value, ExchangeRatesUnavailableError)
    assert len(source.paths) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_failing_server_is_retried_until_it_responds(source: Source, status: int) -> None:
    source.answers = [Answer(b"oops", status), Answer(b"", status), GOOD]
    assert len(provider_of(source).daily_rates(DAY).figures) > 100
    assert len(source.paths) == 3


def test_a_server_that_keeps_failing_is_unavailable_after_the_last_attempt(source: Source) -> None:
    source.answers = [Answer(b"oops", 503)]
    with pytest.raises(ExchangeRatesUnavailableError, match="after 3 attempts, the last: HTTP status 503"):
        provider_of(source).daily_rates(DAY)
    assert len(source.paths) == 3


def test_a_silent_server_times_out_and_is_retried(source: Source) -> None:
    source.answers = [Answer(b"", silence_seconds=60), GOOD]
    assert provider_of(source, timeout_seconds=0.3).daily_rates(DAY).date == DAY
    assert len(source.paths) == 2


def test_a_response_that_trickles_for_longer_than_the_timeout_is_aborted(source: Source) -> None:
    source.answers = [Answer(rates_body(END_OF_DAY), trickle=True)]
    with pytest.raises(ExchangeRatesUnavailableError, match=r"not complete after 0\.4 seconds"):
        provider_of(source, timeout_seconds=0.4, attempts=1).daily_rates(DAY)


def test_a_refused_connection_means_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        source = Source(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/api")
        with pytest.raises(ExchangeRatesUnavailableError, match="ConnectionError"):
            provider_of(source).latest_rates()


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"<html>sign in to the network</html>", "is not JSON"),
        (b"\xff\xfe\x00garbage", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"x" * 300_000, "is longer than 200,000 bytes"),
        (b"[]", "`rates` is absent or empty"),
        (b"null", "`timestamp` is not a time"),
        (rates_body(END_OF_DAY, base="EUR"), "`base` is not USD"),
        (rates_body(END_OF_DAY, timestamp=None), "`timestamp` is not a time"),
        (rates_body(END_OF_DAY, timestamp=1e300), "`timestamp` is not a time"),
        (rates_body(END_OF_DAY, rates={}).replace(b'"rates"', b'"prices"'), "`rates` is absent or empty"),
        (b'{"timestamp": 1794614399, "base": "USD", "rates": {}}', "`rates` is absent or empty"),
        (rates_body(END_OF_DAY, {"EUR": "0.86", "GBP": None, "JPY": True}), "a number for EUR, GBP, JPY"),
    ],
)
def test_a_response_without_rates_is_an_error_that_describes_it(source: Source, body: bytes, problem: str) -> None:
    source.answers = [Answer(body)]
    with pytest.raises(ExchangeRatesError, match=problem) as caught:
        provider_of(source, timeout_seconds=60.0).daily_rates(DAY)
    assert not isinstance(caught.value, ExchangeRatesUnavailableError)
    assert len(source.paths) == 1


def test_a_redirect_is_not_followed_so_that_the_app_id_goes_nowhere_else(source: Source) -> None:
    source.answers = [Answer(b"", 302, headers={"Location": f"{source.base_url}/elsewhere"})]
    with pytest.raises(ExchangeRatesError, match="HTTP status 302"):
        provider_of(source).daily_rates(DAY)
    assert len(source.paths) == 1


def test_invalid_figures_are_listed_with_their_values_before_anything_is_stored(source: Source) -> None:
    answer = rates_body(END_OF_DAY, {"EUR": -0.5, "GBP": 0, "JPY": 1e300, "CHF": float("nan"), "USD": 2})
    source.answers = [Answer(answer)]
    rates = provider_of(source).daily_rates(DAY)
    with pytest.raises(RatesRejectedError) as caught:
        check_rates(rates, OpenExchangeRates.minimum_currencies)
    message = str(caught.value)
    for offender in ("EUR is -0.5", "GBP is 0", "JPY is 1E+300", "CHF is NaN", "USD is 2"):
        assert offender in message


@pytest.mark.parametrize(
    "answer",
    [
        *(refusal(status, word) for status, word in [(401, APP_ID), (403, "access_restricted"), (429, APP_ID)]),
        Answer(APP_ID.encode(), 500),
        Answer(APP_ID.encode()),
        Answer(b"", silence_seconds=60),
        Answer(rates_body(END_OF_DAY, timestamp=APP_ID)),
    ],
)
def test_the_app_id_is_in_no_log_record_no_error_and_no_traceback(
    source: Source, answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    source.answers = [answer]
    # By name too: a client of Kubernetes in this process would have made it silent.
    with (
        caplog.at_level(logging.DEBUG),
        caplog.at_level(logging.DEBUG, logger="urllib3"),
        pytest.raises(ExchangeRatesError) as caught,
    ):
        provider_of(source, timeout_seconds=0.3, attempts=2).daily_rates(DAY)
    assert source.authorizations[0] == f"Token {APP_ID}"
    said = everything_said(caught.value, caplog)
    assert "Starting new HTTP connection" in said, "the log was not captured"
    assert APP_ID not in said
    assert APP_ID not in repr(provider_of(source))


def test_an_app_id_that_looks_like_an_error_code_is_not_shown_either(source: Source) -> None:
    source.answers = [Answer(b'{"message": "abcdefabcdef_is_wrong"}', 401)]
    with pytest.raises(ExchangeRatesError, match="HTTP status 401") as caught:
        OpenExchangeRates(SecretStr("abcdefabcdef"), base_url=source.base_url).daily_rates(DAY)
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize("app_id", ["", f"{APP_ID}\n", f" {APP_ID}", f'"{APP_ID}"', "ключ"])
def test_an_app_id_that_no_header_can_carry_is_rejected_and_not_shown(app_id: str) -> None:
    with pytest.raises(ExchangeRatesError, match="OPEN_EXCHANGE_RATES_APP_ID") as caught:
        OpenExchangeRates(SecretStr(app_id))
    assert APP_ID not in str(caught.value)
