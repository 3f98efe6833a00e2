"""Runs a module or a command that stops when the process that started it dies, even by kill -9.

The parent keeps the writing end of a pipe and never writes to it: when the parent dies, for any reason, the
reading end reports the end of the file. That works on Linux and macOS.

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

# How long a process whose parent has died may take to stop before it is killed.
MODULE_GRACE_SECONDS = 20
COMMAND_GRACE_SECONDS = 10


def watch(descriptor: int, when_lost: Callable[[], None]) -> None:
    """Call `when_lost` in a thread once the other end of the pipe `descriptor` is closed."""

    def wait() -> None:
        while os.read(descriptor, 1):
            pass
        when_lost()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def run_module(descriptor: int, module: str, arguments: list[str]) -> None:
    """Run a module as `python -m` does; when the parent dies, send SIGTERM and then SIGKILL to this process."""

    def stop() -> None:
        print("the process that started this one has died: stopping", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(MODULE_GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    watch(descriptor, stop)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run_command(descriptor: int, directory: str, command: list[str]) -> int:
    """Run a command in the process group of this process; return its exit code (128 + n when signal n ended it).

    Signals from outside reach the whole group, so this process ignores them and waits.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A handler rather than SIG_IGN, which the command would inherit.
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
    """Run the module or command in the arguments, which the module docstring shows."""
    descriptor, kind, target, *rest = arguments
    os.set_inheritable(int(descriptor), False)  # noqa: FBT003 - the signature of the standard library
    if kind == "command":
        sys.exit(run_command(int(descriptor), target, rest))
    run_module(int(descriptor), target, rest)


if __name__ == "__main__":
    main(sys.argv[1:])
