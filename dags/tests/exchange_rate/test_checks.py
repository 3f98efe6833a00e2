import datetime as dt
from decimal import Decimal

import dagster as dg

from dags.common.clickhouse.query import Insert
from dags.exchange_rate.checks import MAX_AGE_DAYS, Gap, find_gaps
from dags.exchange_rate.rates import MAIN_CURRENCIES
from dags.tests.exchange_rate.platform import FakeProvider, Platform
from dags.tests.failures import failure_text

DAY = dt.date(2026, 10, 22)
ALL = set(MAIN_CURRENCIES)


def days_after(days: int) -> dt.date:
    return DAY + dt.timedelta(days=days)


def days_ago(days: int) -> dt.date:
    return dt.datetime.now(dt.UTC).date() - dt.timedelta(days=days)


def put(platform: Platform, *dates: dt.date, leave_out: str = "", version: int = 24_000_000) -> None:
    rows = [
        (currency, date, Decimal(2), version) for date in dates for currency in MAIN_CURRENCIES if currency != leave_out
    ]
    platform.cluster.any_host(Insert("exchange_rate", ("currency", "date", "rate", "version"), rows)).result()


def evaluations(platform: Platform, provider: FakeProvider) -> dict[str, dg.AssetCheckEvaluation]:
    result = platform.run("exchange_rate_checks_job", provider)
    assert result.success, failure_text(result)
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def test_missing_days_and_currencies_are_found_as_ranges() -> None:
    present = {
        days_after(0): ALL,
        days_after(3): ALL - {"JPY"},
        days_after(4): ALL - {"JPY"},
        days_after(5): ALL | {"XAU"},
    }
    holes = find_gaps(present)
    assert holes == [
        Gap(days_after(1), days_after(2), MAIN_CURRENCIES),
        Gap(days_after(3), days_after(4), ("JPY",)),
    ]
    assert [str(hole) for hole in holes] == ["2026-10-23 to 2026-10-24: all", "2026-10-25 to 2026-10-26: JPY"]


def test_an_empty_table_has_no_gaps() -> None:
    assert find_gaps({}) == []


def test_rates_of_yesterday_without_a_gap_are_fresh_and_complete(platform: Platform) -> None:
    put(platform, *(days_ago(days) for days in (1, 2, 3)))
    assert all(evaluation.passed for evaluation in evaluations(platform, FakeProvider()).values())


def test_a_table_without_rows_is_not_fresh(platform: Platform) -> None:
    fresh = evaluations(platform, FakeProvider())["exchange_rates_are_fresh"]
    assert not fresh.passed
    assert "is empty" in (fresh.description or "")


def test_old_rates_are_an_error_where_the_source_has_newer_ones_and_a_warning_where_not(platform: Platform) -> None:
    newest = days_ago(MAX_AGE_DAYS + 1)
    put(platform, newest)
    provider = FakeProvider()
    fresh = evaluations(platform, provider)["exchange_rates_are_fresh"]
    assert (fresh.passed, fresh.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "has no rates of" in (fresh.description or "")

    provider.add(newest + dt.timedelta(days=1))
    fresh = evaluations(platform, provider)["exchange_rates_are_fresh"]
    assert (fresh.passed, fresh.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert f"are of {newest}, {MAX_AGE_DAYS + 1} days ago" in (fresh.description or "")


def test_rates_of_the_maximum_age_are_fresh(platform: Platform) -> None:
    put(platform, days_ago(MAX_AGE_DAYS))
    assert evaluations(platform, FakeProvider())["exchange_rates_are_fresh"].passed


def test_a_day_in_between_without_a_main_currency_is_incomplete_and_named(platform: Platform) -> None:
    put(platform, DAY, days_after(2))
    put(platform, days_after(1), leave_out="CHF")
    complete = evaluations(platform, FakeProvider())["exchange_rates_are_complete"]
    assert not complete.passed
    assert "2026-10-23: CHF" in (complete.description or "")
    assert complete.metadata["gaps"].value == 1


def test_a_past_day_with_only_hourly_rates_is_incomplete(platform: Platform) -> None:
    put(platform, days_ago(0), days_ago(1), version=23_000_000)
    assert evaluations(platform, FakeProvider())["exchange_rates_are_complete"].passed
    put(platform, days_ago(2), version=23_000_000)
    complete = evaluations(platform, FakeProvider())["exchange_rates_are_complete"]
    assert not complete.passed
    assert f"{days_ago(2)}: all" in (complete.description or "")
    put(platform, days_ago(2))
    assert evaluations(platform, FakeProvider())["exchange_rates_are_complete"].passed


def test_the_checks_run_with_the_daily_job(platform: Platform) -> None:
    provider = FakeProvider()
    provider.add(DAY)
    result = platform.run_days(provider, DAY)
    assert {evaluation.check_name for evaluation in result.get_asset_check_evaluations()} == {
        "exchange_rates_are_complete",
        "exchange_rates_are_fresh",
    }
