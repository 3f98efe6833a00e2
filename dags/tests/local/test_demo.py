import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from dags.exchange_rate.european_central_bank import EuropeanCentralBank
from dags.local.demo import Conversion, DemoError, last_days

if TYPE_CHECKING:
    from clickhouse_driver import Client

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def environment(tmp_path: Path, clickhouse_port: int, clickhouse_database: str, s3_endpoint: str) -> dict[str, str]:
    """The variables of `make demo`, for an empty database and a new Dagster instance."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    return {
        **os.environ,
        "DEBUG": "1",
        "DAGSTER_HOME": str(tmp_path),
        "CLICKHOUSE_PORT": str(clickhouse_port),
        "CLICKHOUSE_DATABASE": clickhouse_database,
        "OBJECT_STORAGE_ENDPOINT": s3_endpoint,
        "OPEN_EXCHANGE_RATES_APP_ID": "",
    }


def run_demo(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dags.local.demo"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def instance(environment: dict[str, str]) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as opened:
        yield opened


def test_the_demo_leaves_a_run_and_rates_that_equal_the_packages(
    environment: dict[str, str], instance: dg.DagsterInstance, clickhouse_client: "Client"
) -> None:
    result = run_demo(environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The demo succeeded" in result.stdout
    assert "DIFFERENT" not in result.stdout
    (run,) = instance.get_runs()
    assert run.job_name == "daily_exchange_rates_job"
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.run_id in result.stdout
    ((days,),) = clickhouse_client.execute("SELECT uniqExact(date) FROM exchange_rate FINAL")
    assert days == 30


def test_the_demo_fails_when_clickhouse_holds_other_figures(
    environment: dict[str, str], clickhouse_client: "Client"
) -> None:
    assert run_demo(environment).returncode == 0
    # A version above that of any final rate, so that the job leaves the row alone.
    clickhouse_client.execute(
        "INSERT INTO exchange_rate (currency, date, rate, version) "
        "SELECT 'EUR', max(date), 2, 99000000 FROM exchange_rate"
    )
    result = run_demo(environment)
    assert result.returncode == 1
    assert "DIFFERENT" in result.stdout
    assert "The demo failed: conversions in ClickHouse differ from the package's own" in result.stderr


def test_the_demo_names_the_reason_when_clickhouse_is_not_there(environment: dict[str, str]) -> None:
    result = run_demo({**environment, "CLICKHOUSE_PORT": "1"})
    assert result.returncode == 1
    assert "The demo failed: " in result.stderr
    assert "127.0.0.1:1" in result.stderr.split("The demo failed: ")[1]


def test_the_demo_refuses_another_source_than_the_one_it_compares_with(environment: dict[str, str]) -> None:
    result = run_demo({**environment, "OPEN_EXCHANGE_RATES_APP_ID": "app-id-of-somebody"})
    assert result.returncode == 1
    assert "unset OPEN_EXCHANGE_RATES_APP_ID" in result.stderr
    assert "app-id-of-somebody" not in result.stdout + result.stderr


def test_the_last_days_end_with_the_newest_day_of_the_source() -> None:
    source = EuropeanCentralBank()
    first, last = last_days(source, date(2020, 5, 20), 30)
    assert (first, last) == (date(2020, 4, 20), date(2020, 5, 19))


def test_a_source_without_recent_rates_is_named() -> None:
    with pytest.raises(DemoError, match="European Central Bank has no rates"):
        last_days(EuropeanCentralBank(), date(2050, 1, 1), 30)


def test_amounts_that_differ_in_a_shown_decimal_are_not_equal() -> None:
    def conversion(from_clickhouse: str) -> Conversion:
        return Conversion(date(2026, 1, 1), "EUR", "USD", Decimal(from_clickhouse), Decimal("111.72"))

    assert conversion("111.72000001").equal
    assert not conversion("111.7201").equal
