"""Makes `.venv` from `requirements.lock`: once, and again only when the lock, the interpreter or the place has changed.

Run by the Makefile with the interpreter that the environment is made of, before any dependency exists: standard library
only. What is installed is decided in pyproject.toml and requirements.lock, not here.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
# Written last: an environment without it was interrupted and is made anew.
STAMP = ENVIRONMENT / "complete"


def main() -> int:
    """Makes the environment if it is not complete; returns the exit code."""
    problem = interpreter_problem(sys.version_info[:2], (ROOT / "pyproject.toml").read_text())
    if problem:
        print(problem, file=sys.stderr)
        return 1
    # SIGTERM ends the work as Ctrl-C does, so that pip is stopped too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (ROOT / ".venv.lock").open("w") as guard:
        # Two `make` at once: the second waits here and finds the work done.
        fcntl.flock(guard, fcntl.LOCK_EX)
        if is_complete():
            return 0
        try:
            return build(guard.fileno())
        except KeyboardInterrupt:
            print("\nSet-up was interrupted; the next `make` starts it again.", file=sys.stderr)
            return 130


def interpreter_problem(version: tuple[int, int], pyproject: str) -> str | None:
    """Returns why this interpreter will not do, with the remedy, or None when it will."""
    supported = re.search(r'requires-python = ">=(\d+)\.(\d+),<(\d+)\.(\d+)"', pyproject)
    if supported is None:
        return "pyproject.toml: requires-python must read '>=X.Y,<X.Y'"
    low, high = (int(supported[1]), int(supported[2])), (int(supported[3]), int(supported[4]))
    if low <= version < high:
        return None
    return (
        f"Python {version[0]}.{version[1]} ({sys.executable}) will not do: "
        f"this project needs {low[0]}.{low[1]} or newer, below {high[0]}.{high[1]}. "
        "Name another interpreter: make PYTHON=/path/to/python3.11 <target>"
    )


def fingerprint() -> str:
    """Returns a digest of all that the environment is made from."""
    parts = [LOCK.read_text(), sys.version, sys.base_prefix, str(ENVIRONMENT)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_complete() -> bool:
    """Tells whether the environment was finished from the present lock and its interpreter is still there."""
    return (ENVIRONMENT / "bin" / "python").exists() and STAMP.exists() and STAMP.read_text() == fingerprint()


def build(guard: int) -> int:
    """Makes the environment from nothing; returns the exit code of the first step that fails.

    `guard` is the locked file's descriptor. Each step holds it too, so that a step which outlives this program keeps
    others waiting.
    """
    started = time.monotonic()
    print(f"Making .venv with Python {sys.version.split()[0]}: a few minutes the first time.", flush=True)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    python = str(ENVIRONMENT / "bin" / "python")
    steps = {
        "make the environment (on Debian and Ubuntu the package python3.11-venv is needed)": [
            *(sys.executable, "-m", "venv", str(ENVIRONMENT)),
        ],
        "install the locked packages (pip says why above)": [
            *(python, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes", "-r", str(LOCK)),
        ],
        "check the installed packages": [python, "-m", "pip", "--disable-pip-version-check", "check"],
    }
    for name, command in steps.items():
        code = subprocess.run(command, check=False, pass_fds=[guard]).returncode
        if code:
            print(f"Set-up could not {name}.", file=sys.stderr)
            return code
    STAMP.write_text(fingerprint())
    print(f"Made .venv in {time.monotonic() - started:.0f} seconds.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
