"""Runs a module or a command that stops by itself when the process that started it is gone, even by kill -9.

The parent keeps the writing end of a pipe and never writes: when it dies, for whatever reason, the reading end reports
the end of the file. That works on Linux and macOS alike, and needs nobody's help.

What belongs here: that one guarantee. What does not: starting and stopping services in order (`services`, `stack`).

    python -m dags.local.lifeline DESCRIPTOR module dags.local.s3 --port 19100 ...
    python -m dags.local.lifeline DESCRIPTOR command /working/directory dagster dev ...
"""

import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

# A service that has lost its parent gets this long to close its files before it is killed.
MODULE_GRACE_SECONDS = 20
COMMAND_GRACE_SECONDS = 10


def watch(descriptor: int, when_lost: Callable[[], None]) -> None:
    """Calls `when_lost` in a thread once the other end of the pipe `descriptor` is closed."""

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        when_lost()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def run_module(descriptor: int, module: str, arguments: list[str]) -> None:
    """Runs a module as `python -m` would; SIGTERM to ourselves when the parent is gone, then SIGKILL."""

    def stop() -> None:
        print("the process that started this one is gone: stopping", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(MODULE_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    watch(descriptor, stop)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_command(descriptor: int, directory: str, command: list[str]) -> int:
    """Runs a command in our own process group and returns its exit code (128 + n when signal n ended it).

    Signals reach the whole group from outside, so this process ignores them and only waits.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler rather than SIG_IGN: the command must not inherit being deaf to the signal.
        signal.signal(number, lambda _number, _frame: None)
    process = subprocess.Popen(command, cwd=directory)

    def stop() -> None:
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(COMMAND_GRACE_SECONDS)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    watch(descriptor, stop)
    code = process.wait()
    return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> None:
    """Entry point; see the module's docstring for the arguments."""
    descriptor, kind, target, *rest = arguments
    os.set_inheritable(int(descriptor), False)  # noqa: FBT003 - the standard library takes it so
    if kind == "command":
        sys.exit(run_command(int(descriptor), target, rest))
    run_module(int(descriptor), target, rest)


if __name__ == "__main__":
    main(sys.argv[1:])
