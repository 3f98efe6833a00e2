from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dags.exchange_rate.european_central_bank import EuropeanCentralBank
from dags.local.demo.exchange_rates import Conversion, last_days
from dags.local.demo.stage import DemoError
from dags.tests.local.demo.running import run_demo

if TYPE_CHECKING:
    from clickhouse_driver import Client


def test_the_last_days_end_with_the_newest_day_of_the_source() -> None:
    source = EuropeanCentralBank()
    first, last = last_days(source, date(2020, 5, 20), 30)
    assert (first, last) == (date(2020, 4, 20), date(2020, 5, 19))


def test_a_source_without_recent_rates_is_an_error_with_its_name() -> None:
    with pytest.raises(DemoError, match="European Central Bank has no rates"):
        last_days(EuropeanCentralBank(), date(2050, 1, 1), 30)


def test_amounts_that_differ_in_a_printed_decimal_are_not_equal() -> None:
    def conversion(from_clickhouse: str) -> Conversion:
        return Conversion(date(2026, 1, 1), "EUR", "USD", Decimal(from_clickhouse), Decimal("111.72"))

    assert conversion("111.72000001").equal
    assert not conversion("111.7201").equal


@pytest.mark.slow
def test_the_demo_fails_when_clickhouse_has_other_figures(
    environment: dict[str, str], access_log: Path, clickhouse_client: "Client"
) -> None:
    assert run_demo(environment, "--access-log", str(access_log)).returncode == 0
    ((days,),) = clickhouse_client.execute("SELECT uniqExact(date) FROM exchange_rate FINAL")
    assert days == 30
    # A version above that of any final rate, so that the job does not replace the row.
    clickhouse_client.execute(
        "INSERT INTO exchange_rate (currency, date, rate, version) "
        "SELECT 'EUR', max(date), 2, 99000000 FROM exchange_rate"
    )
    result = run_demo(environment, "--access-log", str(access_log))
    assert result.returncode == 1
    assert "DIFFERENT" in result.stdout
    assert "The demo failed: conversions in ClickHouse differ from those of the package" in result.stderr


def test_the_demo_rejects_a_source_other_than_the_one_it_compares_with(environment: dict[str, str]) -> None:
    result = run_demo({**environment, "OPEN_EXCHANGE_RATES_APP_ID": "secret-app-id"})
    assert result.returncode == 1
    assert "unset OPEN_EXCHANGE_RATES_APP_ID" in result.stderr
    assert "secret-app-id" not in result.stdout + result.stderr
