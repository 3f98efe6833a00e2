import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import dagster as dg
import pytest

from dags.local import sample

if TYPE_CHECKING:
    from clickhouse_driver import Client

ROOT = Path(__file__).resolve().parents[4]
PNG_MAGIC = b"\x89PNG"
# Two visits, the first across midnight and with an image; and a bot.
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/43.0.2357.65 Safari/537.36"
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
LOG_LINES = [
    f'192.0.2.1 - - [17/May/2015:23:50:00 +0000] "GET / HTTP/1.1" 200 900 "-" "{CHROME}"',
    f'192.0.2.1 - - [17/May/2015:23:50:01 +0000] "GET /logo.png HTTP/1.1" 200 900 "-" "{CHROME}"',
    f'192.0.2.1 - - [18/May/2015:00:05:00 +0000] "GET /about HTTP/1.1" 200 900 "-" "{CHROME}"',
    f'192.0.2.2 - - [18/May/2015:09:00:00 +0000] "GET /about HTTP/1.1" 200 900 "-" "{CHROME}"',
    f'192.0.2.3 - - [18/May/2015:09:00:00 +0000] "GET /about HTTP/1.1" 200 900 "-" "{GOOGLEBOT}"',
]


@pytest.fixture
def environment(
    tmp_path: Path,
    clickhouse_port: int,
    clickhouse_database: str,
    s3_endpoint: str,
    s3_bucket: str,
    postgres_dsn: str,
) -> dict[str, str]:
    """The environment of `make demo` with an empty database, an empty bucket and a new Dagster instance."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    postgres = urlsplit(postgres_dsn)
    return {
        **os.environ,
        "DEBUG": "1",
        "DAGSTER_HOME": str(tmp_path),
        "CLICKHOUSE_PORT": str(clickhouse_port),
        "CLICKHOUSE_DATABASE": clickhouse_database,
        "OBJECT_STORAGE_ENDPOINT": s3_endpoint,
        "OBJECT_STORAGE_BUCKET": s3_bucket,
        "POSTGRES_PORT": str(postgres.port),
        "POSTGRES_DATABASE": postgres.path.removeprefix("/"),
        "OPEN_EXCHANGE_RATES_APP_ID": "",
    }


def run_demo(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dags.local.demo", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


@pytest.fixture
def instance(environment: dict[str, str]) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as opened:
        yield opened


@pytest.fixture
def access_log(tmp_path: Path) -> Path:
    """An access log with the name of a rotated log."""
    path = tmp_path / "access log.1.gz"
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in LOG_LINES).encode()))
    return path


def test_an_access_log_becomes_a_report_by_day_with_the_runs_of_every_team(
    environment: dict[str, str], access_log: Path, instance: dg.DagsterInstance, clickhouse_client: "Client"
) -> None:
    result = run_demo(environment, "--access-log", str(access_log))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The demo succeeded" in result.stdout
    assert "DIFFERENT" not in result.stdout
    ((days,),) = clickhouse_client.execute("SELECT uniqExact(date) FROM exchange_rate FINAL")
    assert days == 30
    rows = [line.split() for line in result.stdout.splitlines() if " 2015-05-1" in line and "%" in line]
    # Day, visitors, page views, sessions, bounce rate and average duration: a session counts on the day it begins.
    assert rows == [
        ["Sun", "2015-05-17", "1", "2", "1", "0.0%", "900", "s"],
        ["Mon", "2015-05-18", "1", "1", "1", "100.0%", "0", "s"],
    ]
    assert (Path(environment["DAGSTER_HOME"]) / "demo" / "web_analytics.png").read_bytes().startswith(PNG_MAGIC)
    runs = instance.get_runs()
    assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
    assert all(run.run_id in result.stdout for run in runs)
    jobs = {run.job_name for run in runs}
    assert {
        "daily_exchange_rates_job",
        "load_events_job",
        "web_analytics_daily_job",
        "analytics_digest_daily_job",
    } == jobs
    digest = result.stdout.split("Digest of Mon 2015-05-18")[1].splitlines()
    assert ["100", "1", "1", "1", "/about", "0", "0.00"] in [line.split() for line in digest]


@pytest.mark.slow
def test_the_demo_prints_the_same_report_when_it_runs_again(
    environment: dict[str, str], clickhouse_client: "Client"
) -> None:
    first = run_demo(environment)
    assert first.returncode == 0, first.stdout + first.stderr
    ((teams, unique, copies),) = clickhouse_client.execute(
        "SELECT uniqExact(team_id), uniqExact(team_id, uuid), count() FROM events FINAL"
    )
    assert teams == len(sample.TEAM_IDS)
    assert unique == copies
    again = run_demo(environment)
    assert again.returncode == 0, again.stdout + again.stderr

    def report(text: str) -> str:
        return text.split("Web analytics by day")[1].split("Plot:", maxsplit=1)[0]

    assert report(first.stdout) == report(again.stdout)
    assert "0 of them new" in again.stdout
    assert clickhouse_client.execute("SELECT count() FROM events FINAL") == [(copies,)]


@pytest.mark.slow
def test_the_demo_fails_when_clickhouse_has_other_figures(
    environment: dict[str, str], access_log: Path, clickhouse_client: "Client"
) -> None:
    assert run_demo(environment, "--access-log", str(access_log)).returncode == 0
    # A version above that of any final rate, so that the job does not replace the row.
    clickhouse_client.execute(
        "INSERT INTO exchange_rate (currency, date, rate, version) "
        "SELECT 'EUR', max(date), 2, 99000000 FROM exchange_rate"
    )
    result = run_demo(environment, "--access-log", str(access_log))
    assert result.returncode == 1
    assert "DIFFERENT" in result.stdout
    assert "The demo failed: conversions in ClickHouse differ from those of the package" in result.stderr


@pytest.mark.slow
def test_a_log_without_a_readable_line_fails_the_demo_with_the_reason(
    environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "access.log"
    log.write_text("not a line of any log\n" * 10)
    result = run_demo(environment, "--access-log", str(log))
    assert result.returncode == 1
    assert "The demo failed: " in result.stderr
    assert "rejected" in result.stderr


def test_a_file_of_unknown_format_fails_the_demo_with_the_reason(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "events.xlsx"
    file.write_bytes(b"anything")
    result = run_demo(environment, "--events", str(file))
    assert result.returncode == 1
    assert "events.xlsx has no known suffix: use .jsonl" in result.stderr


def test_the_demo_prints_the_reason_when_clickhouse_is_unreachable(environment: dict[str, str]) -> None:
    result = run_demo({**environment, "CLICKHOUSE_PORT": "1"})
    assert result.returncode == 1
    assert "The demo failed: " in result.stderr
    assert "127.0.0.1:1" in result.stderr.split("The demo failed: ")[1]


def test_the_demo_rejects_a_source_other_than_the_one_it_compares_with(environment: dict[str, str]) -> None:
    result = run_demo({**environment, "OPEN_EXCHANGE_RATES_APP_ID": "secret-app-id"})
    assert result.returncode == 1
    assert "unset OPEN_EXCHANGE_RATES_APP_ID" in result.stderr
    assert "secret-app-id" not in result.stdout + result.stderr
