from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import pytest

from dags.local import sample
from dags.tests.local.demo.running import run_demo

if TYPE_CHECKING:
    from clickhouse_driver import Client

PNG_MAGIC = b"\x89PNG"


@pytest.fixture
def instance(environment: dict[str, str]) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as opened:
        yield opened


def test_an_access_log_becomes_a_report_by_day_with_the_runs_of_every_team(
    environment: dict[str, str], access_log: Path, instance: dg.DagsterInstance
) -> None:
    result = run_demo(environment, "--access-log", str(access_log))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The demo succeeded" in result.stdout
    assert "DIFFERENT" not in result.stdout
    assert " rows: 30 days, " in result.stdout
    rows = [line.split() for line in result.stdout.splitlines() if " 2015-05-1" in line and "%" in line]
    # Day, visitors, page views, sessions, bounce rate and average duration: a session counts on the day it begins.
    assert rows == [
        ["Sun", "2015-05-17", "1", "2", "1", "0.0%", "900", "s"],
        ["Mon", "2015-05-18", "1", "1", "1", "100.0%", "0", "s"],
    ]
    assert (Path(environment["DAGSTER_HOME"]) / "demo" / "web_analytics.png").read_bytes().startswith(PNG_MAGIC)
    assert "- 1 skipped: asset" in result.stdout
    assert "3 in the raw events\n- 3 are in sessions\n" in result.stdout
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
