"""Makes `.venv` from `requirements.lock`: once, and again only when the lock, the interpreter or the place has changed.

Runs before any dependency exists, with the interpreter of the environment: standard library only. uv, which the lock
pins too, installs the packages from where pip is configured to look; pip does it where uv is not available or fails.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
UV = ENVIRONMENT / "bin" / "uv"
LOCK = ROOT / "requirements.lock"
# Written last: an environment without it was interrupted and is made again.
STAMP = ENVIRONMENT / "complete"
PROGRESS_SECONDS = 4


def main() -> int:
    """Make the environment if it is not complete; return the exit code."""
    problem = interpreter_problem(sys.version_info[:2], (ROOT / "pyproject.toml").read_text())
    if problem:
        print(problem, file=sys.stderr)
        return 1
    # SIGTERM ends the work as Ctrl-C does, so that the step that runs is stopped too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (ROOT / ".venv.lock").open("w") as guard:
        # Of two concurrent `make`, the second waits here and finds the environment complete.
        fcntl.flock(guard, fcntl.LOCK_EX)
        if is_complete():
            return 0
        try:
            return build(guard.fileno())
        except KeyboardInterrupt:
            print("\nSet-up was interrupted; the next `make` starts it again.", file=sys.stderr)
            return 130


def interpreter_problem(version: tuple[int, int], pyproject: str) -> str | None:
    """Return why this interpreter cannot be used, with the remedy, or None when it can."""
    supported = re.search(r'requires-python = ">=(\d+)\.(\d+),<(\d+)\.(\d+)"', pyproject)
    if supported is None:
        return "pyproject.toml: requires-python must read '>=X.Y,<X.Y'"
    low, high = (int(supported[1]), int(supported[2])), (int(supported[3]), int(supported[4]))
    if low <= version < high:
        return None
    return (
        f"Python {version[0]}.{version[1]} ({sys.executable}) cannot be used: "
        f"this project needs {low[0]}.{low[1]} or newer, below {high[0]}.{high[1]}. "
        "Name another interpreter: make PYTHON=/path/to/python3.11 <target>"
    )


def fingerprint() -> str:
    """Return a digest of everything that the environment is made from."""
    parts = [LOCK.read_text(), sys.version, sys.base_prefix, str(ENVIRONMENT)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def is_complete() -> bool:
    """Return whether the environment was finished from the present lock and its interpreter still exists."""
    return PYTHON.exists() and STAMP.exists() and STAMP.read_text() == fingerprint()


def build(guard: int) -> int:
    """Make the environment from nothing; return the exit code of the first step that fails.

    `guard` is the descriptor of the locked file. Each step inherits it: a step that outlives this program keeps
    other set-ups waiting.
    """
    started = time.monotonic()
    print(f"Making .venv with Python {sys.version.split()[0]}: about a minute the first time.", flush=True)
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    code = run("Creating the environment", [sys.executable, "-m", "venv", str(ENVIRONMENT)], guard)
    if code:
        return fail("make the environment (Debian and Ubuntu need the package python3.11-venv)", code)
    check = [str(UV), "pip", "check", "--no-config", "--python", str(PYTHON)]
    if not install_with_uv(guard):
        check = pip("check")
        code = run("Installing the packages", pip("install", "--require-hashes", "--requirement", str(LOCK)), guard)
        if code:
            return fail("install the locked packages (pip says why above)", code)
    code = run("Checking the packages", check, guard)
    if code:
        return fail("check the installed packages", code)
    STAMP.write_text(fingerprint())
    print(f"Made .venv in {time.monotonic() - started:.0f} seconds.", flush=True)
    return 0


def install_with_uv(guard: int) -> bool:
    """Install the lock with uv, after uv itself with pip; return whether both succeeded."""
    requirement = locked_requirement(LOCK.read_text(), "uv")
    if requirement is None:
        return False
    uv_alone = ENVIRONMENT / "uv.lock"
    uv_alone.write_text(requirement)
    command = pip("install", "--quiet", "--no-deps", "--require-hashes", "--requirement", str(uv_alone))
    if run("Installing uv", command, guard):
        print("pip cannot install uv (it says why above), so pip installs everything, which takes longer.", flush=True)
        return False
    # The lock is complete, so nothing is resolved. Nothing is compiled: the first import of a module does it, and most
    # modules are never imported.
    command = [str(UV), "pip", "install", "--no-config", "--no-deps", "--require-hashes"]
    command += ["--python", str(PYTHON), "--requirements", str(LOCK)]
    listed = subprocess.run(pip("config", "list"), capture_output=True, text=True, check=False).stdout
    environ = uv_variables(pip_options(listed), os.environ)
    if run("Installing the packages", command, guard, environ, shows_progress=sys.stderr.isatty()):
        print("uv failed (it says why above), so pip installs the packages, which takes longer.", flush=True)
        return False
    return True


def locked_requirement(lock: str, name: str) -> str | None:
    """Return a package's requirement with its hashes as the lock has it, or None when it has none."""
    found = re.search(rf"^{re.escape(name)}==(?:.*\\\n)*.*\n?", lock, re.MULTILINE)
    return found[0] if found else None


def pip_options(listed: str) -> dict[str, str]:
    """Return pip's options from the output of `pip config list`, which has its files and the variables `PIP_…`."""
    order = ("global", "install", ":env:")
    found = re.findall(r"^(global|install|:env:)\.([a-z-]+)=('.*'|\".*\")$", listed, re.MULTILINE)
    # A later section overrides an earlier one.
    found.sort(key=lambda option: order.index(option[0]))
    return {name: str(ast.literal_eval(value)) for _, name, value in found}


def uv_variables(options: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment in which uv uses the indexes, certificates and proxy of these options of pip.

    They are passed as variables and not as arguments, because an address may contain a password. `UV_…` variables that
    are already set take precedence.
    """
    certificates = options.get("cert") or environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE") or ""
    of_uv = {
        "UV_DEFAULT_INDEX": options.get("index-url"),
        "UV_INDEX": " ".join(options.get("extra-index-url", "").split()),
        "UV_FIND_LINKS": ",".join(options.get("find-links", "").split()),
        "UV_NO_INDEX": "1" if options.get("no-index", "").lower() in {"1", "true", "yes", "on"} else None,
        # Like pip, consider all indexes. That is safe, because the lock has the hashes of every file.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_INSECURE_HOST": " ".join(options.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": options.get("timeout", options.get("default-timeout")),
        # pip trusts the certificates of the system.
        "UV_SYSTEM_CERTS": "1",
    }
    of_every_program = {
        "SSL_CERT_DIR" if os.path.isdir(certificates) else "SSL_CERT_FILE": certificates,  # noqa: PTH112 - may be empty
        "SSL_CLIENT_CERT": options.get("client-cert"),
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), options.get("proxy")),
    }
    return {
        **{name: value for name, value in of_uv.items() if value},
        **environ,
        **{name: value for name, value in of_every_program.items() if value},
    }


def pip(*arguments: str) -> list[str]:
    """Return a command of the new environment's pip."""
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]


def run(
    step: str,
    command: Sequence[str],
    guard: int,
    environ: Mapping[str, str] | None = None,
    *,
    shows_progress: bool = False,
) -> int:
    """Run the command of a step and return its exit code. Print every few seconds how long it has run.

    A command that shows its progress itself is not interrupted by such lines.
    """
    started = time.monotonic()
    try:
        process = subprocess.Popen(command, pass_fds=[guard], env=environ)
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    with process:
        try:
            while True:
                try:
                    return process.wait(None if shows_progress else PROGRESS_SECONDS)
                except subprocess.TimeoutExpired:
                    print(f"  {step}: {time.monotonic() - started:.0f} s", flush=True)
        except BaseException:
            process.kill()
            raise


def fail(step: str, code: int) -> int:
    """Say which step failed, and return its exit code."""
    print(f"Set-up could not {step}.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
