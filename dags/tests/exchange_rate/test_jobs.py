import datetime as dt

import dagster as dg
import pytest
from pydantic import SecretStr

from dags.common.settings import Settings
from dags.exchange_rate.assets import DAILY_PARTITIONS, HOURLY_PARTITIONS
from dags.exchange_rate.european_central_bank import EuropeanCentralBank
from dags.exchange_rate.jobs import (
    daily_exchange_rates_schedule,
    exchange_rate_checks_schedule,
    hourly_exchange_rates_schedule,
)
from dags.exchange_rate.open_exchange_rates import OpenExchangeRates
from dags.exchange_rate.providers import ExchangeRatesProvider
from dags.exchange_rate.resource import ExchangeRatesResource, exchange_rates_provider
from dags.locations.revenue_analytics import defs
from dags.tests.exchange_rate.platform import provider_resource
from dags.tests.exchange_rate.source_server import APP_ID

WEB = OpenExchangeRates(SecretStr(APP_ID))


def evaluate(
    schedule: dg.ScheduleDefinition, tick: dt.datetime, provider: ExchangeRatesProvider
) -> tuple[list[str | None], str | None]:
    """The partitions asked for, and the reason for asking for none."""
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=tick,
            resources={"exchange_rates": provider_resource(provider)},
            repository_def=defs.get_repository_def(),
        )
        data = schedule.evaluate_tick(context)
    return [request.partition_key for request in data.run_requests or []], data.skip_message


def test_the_daily_tick_requests_the_day_before() -> None:
    tick = dt.datetime(2026, 10, 24, 0, 28, tzinfo=dt.UTC)
    assert evaluate(daily_exchange_rates_schedule, tick, WEB) == (["2026-10-23"], None)
    assert evaluate(daily_exchange_rates_schedule, tick, EuropeanCentralBank()) == (["2026-10-23"], None)
    assert DAILY_PARTITIONS.has_partition_key("2026-10-23")


def test_the_day_before_is_counted_in_utc_whatever_the_time_zone_of_the_tick() -> None:
    tick = dt.datetime(2026, 10, 23, 17, 28, tzinfo=dt.timezone(dt.timedelta(hours=-7)))
    assert evaluate(daily_exchange_rates_schedule, tick, WEB) == (["2026-10-23"], None)


def test_the_daily_tick_skips_a_day_that_the_source_does_not_cover_with_range_and_remedy() -> None:
    last = EuropeanCentralBank().latest_rates().date
    tick = dt.datetime.combine(last + dt.timedelta(days=2), dt.time(0, 28), tzinfo=dt.UTC)
    partitions, reason = evaluate(daily_exchange_rates_schedule, tick, EuropeanCentralBank())
    assert partitions == []
    assert f"run from 1999-01-04 to {last}" in (reason or "")
    assert "set OPEN_EXCHANGE_RATES_APP_ID" in (reason or "")


def test_the_hourly_tick_requests_its_own_hour() -> None:
    tick = dt.datetime(2026, 10, 23, 13, 45, tzinfo=dt.UTC)
    assert evaluate(hourly_exchange_rates_schedule, tick, WEB) == (["2026-10-23-13:00"], None)


def test_the_current_hour_is_a_partition() -> None:
    now = dt.datetime(2026, 10, 23, 13, 45, tzinfo=dt.UTC)
    assert HOURLY_PARTITIONS.get_partition_keys(current_time=now)[-1] == "2026-10-23-13:00"


def test_the_hourly_tick_skips_a_source_without_intraday_rates_and_says_so() -> None:
    tick = dt.datetime(2026, 10, 23, 13, 45, tzinfo=dt.UTC)
    partitions, reason = evaluate(hourly_exchange_rates_schedule, tick, EuropeanCentralBank())
    assert partitions == []
    assert "European Central Bank publishes once a day and has no hourly rates" in (reason or "")


@pytest.mark.parametrize(
    ("schedule", "cron"),
    [
        (daily_exchange_rates_schedule, "28 0 * * *"),
        (hourly_exchange_rates_schedule, "45 * * * *"),
        (exchange_rate_checks_schedule, "10 6 * * *"),
    ],
)
def test_schedules_run_in_utc_from_the_start(schedule: dg.ScheduleDefinition, cron: str) -> None:
    assert (schedule.cron_schedule, schedule.execution_timezone) == (cron, "UTC")
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


@pytest.mark.parametrize(
    "job_name", ["daily_exchange_rates_job", "exchange_rate_checks_job", "hourly_exchange_rates_job"]
)
def test_jobs_have_an_owner_and_a_maximum_runtime(job_name: str) -> None:
    tags = defs.resolve_job_def(job_name).run_tags
    assert tags["owner"] == "team-revenue-analytics"
    assert int(tags["dagster/max_runtime"]) > 0


def test_an_app_id_selects_the_web_source_and_no_app_id_the_bank() -> None:
    assert exchange_rates_provider(Settings(open_exchange_rates_app_id=None)).name == "European Central Bank"
    with_app_id = exchange_rates_provider(Settings(open_exchange_rates_app_id=SecretStr(APP_ID)))
    assert with_app_id.name == "Open Exchange Rates"


def test_the_source_is_chosen_when_a_run_uses_it_by_the_environment_of_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dags.common.settings import get_settings

    resource = (defs.resources or {})["exchange_rates"]
    assert isinstance(resource, ExchangeRatesResource)
    monkeypatch.setenv("OPEN_EXCHANGE_RATES_APP_ID", APP_ID)
    get_settings.cache_clear()
    try:
        provider = resource.provider()
    finally:
        get_settings.cache_clear()
    assert isinstance(provider, OpenExchangeRates)
