import gzip
from datetime import date, timedelta
from pathlib import Path

import pytest

from dags.local.demo.ingestion import log_name
from dags.local.demo.report import Accounting, DayTotals, PageTotals, WebReport, draw, show, show_accounting
from dags.local.demo.web_analytics import ranges

FIRST = date(2026, 10, 1)


def days(*numbers: int) -> list[date]:
    return [FIRST + timedelta(days=number) for number in numbers]


def test_consecutive_days_are_one_range_up_to_the_maximum_length() -> None:
    found = list(ranges(days(0, 1, 2, 3, 4, 7, 9, 10), 3))
    assert [((first - FIRST).days, (last - FIRST).days) for first, last in found] == [(0, 2), (3, 4), (7, 7), (9, 10)]
    assert list(ranges([], 3)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("access.log", "access.log"),
        ("other access.log.gz", "other_access.log.gz"),
        ("access_log", "access_log.log"),
        ("access.log.1", "access.log.1.log"),
    ],
)
def test_the_key_of_a_log_has_the_suffix_of_its_format(tmp_path: Path, name: str, expected: str) -> None:
    path = tmp_path / name
    path.write_text("anything")
    assert log_name(path) == expected


def test_a_compressed_log_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "access.log.2.gz"
    path.write_bytes(gzip.compress(b"anything"))
    assert log_name(path) == "access.log.2.log.gz"


@pytest.mark.parametrize("count", [1, 4, 40])
def test_any_number_of_days_can_be_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    numbers = [DayTotals(day, 10, 30, 12, 3, 600) for day in days(*range(count))] + [
        DayTotals(FIRST + timedelta(days=count), 0, 0, 0, 0, 0)
    ]
    report = WebReport(numbers, [PageTotals("example.com", "/" + "long" * 100, 10, 30)], Accounting(30, {}))
    show(report)
    printed = capsys.readouterr().out
    assert printed.count("25.0%") == count
    assert max(map(len, printed.splitlines())) < 120
    assert draw(report, tmp_path / "new" / "plot.png").stat().st_size > 10_000


def test_the_accounting_names_every_rule_with_count_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    show_accounting(Accounting(1234, {"no_session_id": 30, "a_new_rule": 4}))
    assert capsys.readouterr().out.splitlines() == [
        "",
        "Pageviews of all teams on these days: 1,234 in the raw events",
        "- 1,200 are in sessions",
        "- 4 are left out: a new rule",
        "- 30 are left out: no session id (send $session_id or distinct_id with each event)",
    ]
