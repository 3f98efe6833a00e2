"""The service fixtures that all tests use leave nothing behind, however the tests end."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dags.local import services
from dags.tests.local.conftest import processes_of, wait_until

FAILING_TEST = """
import os, pathlib, time

def test_that_fails(s3_client, postgres_dsn, session_directory):
    pathlib.Path({report!r}).write_text(str(session_directory))
    time.sleep({seconds})
    assert False
"""


def begin(tmp_path: Path, seconds: int) -> "tuple[subprocess.Popen[bytes], Path]":
    report = tmp_path / "report"
    (tmp_path / "test_inner.py").write_text(FAILING_TEST.format(report=str(report), seconds=seconds))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", "-p", "dags.tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull),
            *("--rootdir", str(tmp_path), str(tmp_path)),
        ],
        cwd=services.PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    wait_until(lambda: report.exists() and bool(report.read_text()), "the inner test runs")
    return process, Path(report.read_text())


def test_a_failing_test_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    process, directory = begin(tmp_path, seconds=0)
    assert process.wait(90) == pytest.ExitCode.TESTS_FAILED
    assert processes_of(directory) == []
    assert not directory.exists()


def test_killed_tests_leave_no_process(tmp_path: Path) -> None:
    process, directory = begin(tmp_path, seconds=100)
    assert str(directory).startswith(tempfile.gettempdir())
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    wait_until(lambda: not processes_of(directory), "the services have stopped")
    shutil.rmtree(directory)
