from datetime import date
from decimal import Decimal

import pytest

from dags.exchange_rate.european_central_bank import EuropeanCentralBank
from dags.local.demo.exchange_rates import Conversion, last_days
from dags.local.demo.stage import DemoError


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
