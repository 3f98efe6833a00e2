import datetime as dt
import json
import logging
from decimal import Decimal

import dagster as dg
import pytest
from currency_converter import CurrencyConverter
from pydantic import SecretStr

from dags.exchange_rate.assets import _fail_without_retry
from dags.exchange_rate.european_central_bank import EuropeanCentralBank
from dags.exchange_rate.open_exchange_rates import OpenExchangeRates
from dags.exchange_rate.providers import ExchangeRatesUnavailableError
from dags.tests.exchange_rate.platform import FakeProvider, Platform
from dags.tests.exchange_rate.source_server import APP_ID, Answer, Source, rates_body, refusal
from dags.tests.failures import failure_text

DAY = dt.date(2026, 10, 22)
NEXT_DAY = dt.date(2026, 10, 23)
HOUR = dt.datetime(2026, 10, 22, 13, tzinfo=dt.UTC)


def retries(result: dg.ExecuteInProcessResult) -> int:
    return sum(event.event_type_value == "STEP_UP_FOR_RETRY" for event in result.all_events)


def key_of(hour: dt.datetime) -> str:
    return hour.strftime("%Y-%m-%d-%H:%M")


def test_thirty_days_are_one_run_with_one_insert_and_give_the_packages_own_conversions(platform: Platform) -> None:
    converter = CurrencyConverter(decimal=True)
    last = dt.date(2026, 10, 30)
    first = last - dt.timedelta(days=29)
    result = platform.run_days(EuropeanCentralBank(), first, last)
    assert result.success, failure_text(result)
    assert platform.rows("SELECT count(), uniqExact(date), min(date), max(date) FROM exchange_rate") == [
        (900, 30, first, last)
    ]
    for currency, date in (("EUR", last), ("JPY", dt.date(2026, 10, 15)), ("INR", dt.date(2026, 10, 7))):
        expected = converter.convert(1, "USD", currency, date)
        assert abs(platform.rate(currency, date) - expected) <= Decimal("0.00000000005")
    platform.rows("SYSTEM FLUSH LOGS")
    statements = platform.rows(
        """
        SELECT query_kind, count() FROM system.query_log
        WHERE type = 'QueryFinish' AND JSONExtractString(log_comment, 'run_id') = %(run_id)s
            AND JSONExtractString(log_comment, 'step') = 'daily_exchange_rates_in_clickhouse'
            AND JSONExtractString(log_comment, 'owner') = 'team-revenue-analytics' AND is_initial_query
        GROUP BY query_kind
        """,
        run_id=result.run_id,
    )
    counts: dict[str, int] = dict(statements)
    assert counts["Insert"] == 1
    assert sum(counts.values()) <= 6


def test_running_the_same_days_again_writes_no_row(platform: Platform) -> None:
    bank = EuropeanCentralBank()
    assert platform.run_days(bank, DAY, NEXT_DAY).success
    before = platform.stored_rows()
    result = platform.run_days(bank, DAY, NEXT_DAY)
    assert result.success, failure_text(result)
    assert platform.stored_rows() == before
    metadata = platform.metadata("daily_exchange_rates_in_clickhouse", str(DAY))
    assert (metadata["rows_written"], metadata["rows_unchanged"], metadata["rows_superseded"]) == (0, 30, 0)


def test_a_rate_that_the_source_corrected_replaces_the_stored_one_and_nothing_else_is_written(
    platform: Platform,
) -> None:
    provider = FakeProvider()
    provider.add(DAY, EUR="0.86")
    assert platform.run_days(provider, DAY).success
    provider.add(DAY, EUR="0.87")
    result = platform.run_days(provider, DAY)
    assert result.success, failure_text(result)
    assert platform.rate("EUR", DAY) == Decimal("0.87")
    metadata = platform.metadata("daily_exchange_rates_in_clickhouse", str(DAY))
    assert (metadata["rows_written"], metadata["rows_unchanged"]) == (1, 13)
    assert platform.rows("SELECT version FROM exchange_rate FINAL WHERE currency = 'EUR'") == [(24_000_001,)]


def test_a_day_that_was_deleted_comes_back_when_it_is_run_again(platform: Platform) -> None:
    provider = FakeProvider()
    provider.add(DAY)
    assert platform.run_days(provider, DAY).success
    before = platform.stored_rows()
    # A lightweight delete: the table still remembers the token of the insert that it undoes.
    platform.rows("DELETE FROM exchange_rate WHERE date = %(date)s", date=DAY)
    assert platform.rows("SELECT count() FROM exchange_rate") == [(0,)]
    result = platform.run_days(provider, DAY)
    assert result.success, failure_text(result)
    assert platform.stored_rows() == before


def test_a_weekend_is_stored_with_fridays_rates_and_its_metadata_say_so(platform: Platform) -> None:
    sunday = dt.date(2026, 10, 25)
    result = platform.run_days(EuropeanCentralBank(), sunday)
    assert result.success, failure_text(result)
    for asset in ("daily_exchange_rates", "daily_exchange_rates_in_clickhouse"):
        metadata = platform.metadata(asset, str(sunday))
        assert metadata["carried_forward"] is True
        assert metadata["published_date"] == "2026-10-23"
        assert metadata["age_days"] == 2
        assert metadata["source"] == "European Central Bank"
        assert metadata["currencies"] == 30
        assert 0 < metadata["minimum_rate"] < 1 < metadata["maximum_rate"]
        assert (metadata["minimum_rate_currency"], metadata["maximum_rate_currency"]) == ("GBP", "IDR")
        assert "| EUR | 0." in metadata["main_currencies"]


def test_each_partition_of_a_range_has_metadata_of_its_own(platform: Platform) -> None:
    assert platform.run_days(EuropeanCentralBank(), DAY, DAY + dt.timedelta(days=3)).success
    published = [
        platform.metadata("daily_exchange_rates_in_clickhouse", f"2026-10-{day}")["published_date"]
        for day in (22, 23, 24, 25)
    ]
    assert published == ["2026-10-22", "2026-10-23", "2026-10-23", "2026-10-23"]


def test_a_jump_stores_nothing_is_not_retried_and_names_the_override(platform: Platform) -> None:
    provider = FakeProvider()
    provider.add(DAY, ZAR="18", SEK="10")
    assert platform.run_days(provider, DAY).success
    before = platform.stored_rows()
    provider.add(NEXT_DAY, ZAR="27.5", SEK="4.9")
    result = platform.run_days(provider, NEXT_DAY)
    assert not result.success
    assert retries(result) == 0
    assert platform.stored_rows() == before
    said = failure_text(result)
    assert "ZAR on 2026-10-23 is 27.5, was 18 on 2026-10-22" in said
    assert "SEK on 2026-10-23 is 4.9, was 10 on 2026-10-22" in said
    assert "more than 50 percent" in said
    assert '{"ops": {"daily_exchange_rates_in_clickhouse": {"config": {"accept_changes_of": ["SEK", "ZAR"]}}}}' in said

    result = platform.run_days(provider, NEXT_DAY, accept_changes_of=["ZAR"])
    assert not result.success
    assert "SEK" in failure_text(result)
    assert "ZAR on" not in failure_text(result)

    result = platform.run_days(provider, NEXT_DAY, accept_changes_of=["ZAR", "SEK"])
    assert result.success, failure_text(result)
    assert platform.rate("ZAR", NEXT_DAY) == Decimal("27.5")
    assert platform.run_days(provider, NEXT_DAY).success, "a jump that was accepted needs no override again"


def test_the_run_config_can_lower_the_limit_of_a_change(platform: Platform) -> None:
    provider = FakeProvider()
    provider.add(DAY, ZAR="18")
    provider.add(NEXT_DAY, ZAR="18.5")
    result = platform.run_days(provider, DAY, NEXT_DAY, maximum_change_percent=1)
    assert "ZAR on 2026-10-23" in failure_text(result)
    assert platform.stored_rows() == []


def test_a_negative_rate_is_stored_nowhere(platform: Platform) -> None:
    provider = FakeProvider()
    provider.add(DAY, EUR="-0.86", GBP="NaN")
    result = platform.run_days(provider, DAY)
    assert not result.success
    assert retries(result) == 0
    assert "EUR is -0.86" in failure_text(result)
    assert "GBP is NaN" in failure_text(result)
    assert platform.stored_rows() == []
    assert not platform.instance.get_materialized_partitions(dg.AssetKey("daily_exchange_rates"))


def test_too_few_currencies_are_rejected_unless_the_run_config_allows_them(platform: Platform) -> None:
    provider = FakeProvider(minimum_currencies=25)
    provider.add(DAY)
    assert "14 currencies: at least 25" in failure_text(platform.run_days(provider, DAY))
    job = platform.definitions(provider).resolve_job_def("daily_exchange_rates_job")
    config = {"ops": {"daily_exchange_rates": {"config": {"minimum_currencies": 14}}}}
    assert job.execute_in_process(instance=platform.instance, partition_key=str(DAY), run_config=config).success


def test_days_that_the_source_does_not_cover_are_all_named_and_not_retried(platform: Platform) -> None:
    provider = FakeProvider()
    provider.add(DAY)
    result = platform.run_days(provider, DAY, DAY + dt.timedelta(days=2))
    assert not result.success
    assert retries(result) == 0
    assert "2 of 3 days are not covered: 2026-10-23, 2026-10-24. a source of the test has no rates of" in (
        failure_text(result)
    )


def test_a_days_final_rates_replace_its_hourly_rates_in_either_order(platform: Platform) -> None:
    last_hour = HOUR.replace(hour=23)
    provider = FakeProvider()
    provider.set_latest(last_hour + dt.timedelta(minutes=59), EUR="0.85")
    provider.add(DAY, EUR="0.86", GBP="2")
    assert platform.run("hourly_exchange_rates_job", provider, key_of(last_hour)).success
    assert platform.rate("EUR", DAY) == Decimal("0.85")
    assert platform.run_days(provider, DAY).success
    assert platform.rate("EUR", DAY) == Decimal("0.86")
    before = platform.rows("SELECT * FROM exchange_rate FINAL ORDER BY currency")

    provider.set_latest(last_hour + dt.timedelta(minutes=59), EUR="0.87", GBP="2.1")
    result = platform.run("hourly_exchange_rates_job", provider, key_of(last_hour))
    assert result.success, failure_text(result)
    assert platform.rows("SELECT * FROM exchange_rate FINAL ORDER BY currency") == before
    metadata = platform.metadata("hourly_exchange_rates_in_clickhouse", key_of(last_hour))
    assert (metadata["rows_written"], metadata["rows_superseded"]) == (0, 14)


def test_a_later_hour_replaces_an_earlier_one_and_never_the_other_way_round(platform: Platform) -> None:
    provider = FakeProvider()
    for hour, rate in ((12, "0.85"), (13, "0.86"), (12, "0.87")):
        at = HOUR.replace(hour=hour)
        provider.set_latest(at, EUR=rate)
        result = platform.run("hourly_exchange_rates_job", provider, key_of(at))
        assert result.success, failure_text(result)
    assert platform.rate("EUR", DAY) == Decimal("0.86")
    assert platform.metadata("hourly_exchange_rates_in_clickhouse", key_of(HOUR.replace(hour=12)))["rows_written"] == 0
    assert platform.metadata("hourly_exchange_rates", key_of(HOUR))["age_hours"] > 0


def test_an_hour_of_the_past_cannot_be_fetched(platform: Platform) -> None:
    provider = FakeProvider()
    provider.set_latest(HOUR)
    result = platform.run("hourly_exchange_rates_job", provider, key_of(HOUR - dt.timedelta(hours=5)))
    assert not result.success
    assert retries(result) == 0
    assert "has only its latest rates" in failure_text(result)


def test_a_source_without_intraday_rates_fails_the_hourly_asset(platform: Platform) -> None:
    result = platform.run("hourly_exchange_rates_job", EuropeanCentralBank(), key_of(HOUR))
    assert "European Central Bank publishes once a day" in failure_text(result)
    assert retries(result) == 0


def test_a_rejection_by_the_web_source_fails_the_run_without_the_app_id_in_its_events(
    platform: Platform, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    source.answers = [refusal(401, "invalid_app_id")]
    provider = OpenExchangeRates(SecretStr(APP_ID), base_url=source.base_url)
    with caplog.at_level(logging.DEBUG):
        result = platform.run_days(provider, DAY)
    assert not result.success
    assert retries(result) == 0
    assert "set OPEN_EXCHANGE_RATES_APP_ID" in failure_text(result)
    events = [str(record) for record in platform.instance.all_logs(result.run_id)]
    assert any("OPEN_EXCHANGE_RATES_APP_ID" in event for event in events)
    assert not any(APP_ID in said for said in [*events, *(record.getMessage() for record in caplog.records)])


def test_rates_of_the_web_source_arrive_in_clickhouse_and_in_object_storage(platform: Platform, source: Source) -> None:
    source.answers = [Answer(rates_body(dt.datetime(2026, 10, 22, 23, 59, tzinfo=dt.UTC), {"EUR": 0.8625}))]
    provider = OpenExchangeRates(SecretStr(APP_ID), base_url=source.base_url)
    result = platform.run_days(provider, DAY)
    assert result.success, failure_text(result)
    assert platform.rate("EUR", DAY) == Decimal("0.8625")
    value = result.output_for_node("daily_exchange_rates")
    assert value["rates"]["EUR"] == "0.8625"
    assert json.loads(json.dumps(value)) == value


def test_an_unavailable_source_is_left_to_the_retry_policy() -> None:
    with pytest.raises(ExchangeRatesUnavailableError), _fail_without_retry():
        raise ExchangeRatesUnavailableError("no answer")
