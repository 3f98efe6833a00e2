"""The data directory: which directories are accepted, and errors that say what to do."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dags.local import directory, services


def test_a_new_directory_is_marked_and_private(tmp_path: Path) -> None:
    directory.open_directory(tmp_path / "new" / "one")
    assert directory.is_stack_directory(tmp_path / "new" / "one")
    assert (tmp_path / "new" / "one").stat().st_mode & 0o077 == 0
    directory.open_directory(tmp_path / "new" / "one")


def test_a_directory_with_other_files_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(directory.DirectoryError, match="has files that the local stack did not create"):
        directory.open_directory(tmp_path)


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(directory.DirectoryError, match="is not a directory"):
        directory.open_directory(tmp_path / "file")


def test_a_full_disk_is_reported_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MIN_FREE_BYTES", 10**18)
    with pytest.raises(directory.DirectoryError, match="MiB left"):
        directory.open_directory(tmp_path / "new")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "belongs to another user"),
        (errno.EROFS, "read-only file system"),
        (errno.ENAMETOOLONG, "File name too long"),
    ],
)
def test_errors_of_the_file_system_are_explained(code: int, words: str) -> None:
    error = directory.explain(OSError(code, os.strerror(code), "/data/x"), Path("/data"))
    assert words in str(error)
    assert "/data/x" in str(error)
    assert "--directory" in str(error)


def test_a_directory_that_cannot_be_created_is_an_error_without_a_traceback() -> None:
    # Where not even root can create a directory: on Linux the kernel's, on macOS the sealed system volume.
    result = subprocess.run(
        [sys.executable, "-m", "dags.local", "up", "--directory", "/proc/local-stack"],
        cwd=services.PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: /proc/local-stack cannot be used: ")
    assert "Traceback" not in result.stderr


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    directory.open_directory(tmp_path / "d")
    program = (
        "import sys, time, pathlib; from dags.local import directory\n"
        "with directory.lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(100)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "d")], cwd=services.PROJECT, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        assert directory.is_held(tmp_path / "d")
        with pytest.raises(directory.HeldError, match="already runs on"), directory.lock(tmp_path / "d"):
            pass
    finally:
        holder.kill()
        holder.wait(30)
        holder.stdout.close()
    assert not directory.is_held(tmp_path / "d")
    with directory.lock(tmp_path / "d"):
        assert directory.is_held(tmp_path / "d")


def test_the_state_is_read_back_as_written(tmp_path: Path) -> None:
    process = directory.Process.of(os.getpid())
    assert process is not None
    service = directory.RunningService("s3", "s3", 1, "/d/s3", process)
    state = directory.DirectoryState(process, "ready", (service,), {"DEBUG": "1"})
    directory.write_state(tmp_path, state)
    assert directory.read_state(tmp_path) == state
    directory.remove_state(tmp_path)
    assert directory.read_state(tmp_path) is None


def test_a_process_is_not_confused_with_a_later_one_of_the_same_id() -> None:
    process = directory.Process.of(os.getpid())
    assert process is not None
    assert process.is_alive()
    assert not directory.Process(process.pid, process.created - 10).is_alive()


def test_a_size_counts_files_at_every_depth(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 10)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 5)
    assert directory.size_bytes(tmp_path) == 15
