"""A program that ticks and exits in the middle of it, like a process that is killed.

It reads orders from standard input, one JSON object per line, and carries out each in a process of its own. The answer
is the exit code of that process, or the negative number of the signal that killed it. Points are counted from 1: before
and after each call to Slack, and before and after each commit to the alert store.
"""

import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa
from slack_sdk import WebClient
from slack_sdk.web import SlackResponse

from dags.alerts import store
from dags.alerts.tick import tick
from dags.common import slack as clients
from dags.tests.alerts.crashing import CRASHED, Points
from dags.tests.alerts.fake_slack import TOKEN
from dags.tests.alerts.site import POLICY, QUICK

ROOT = Path(__file__).parents[3]
NEVER = 0


class Ticker:
    """The program, and a way to send it orders."""

    def __init__(self) -> None:
        # One that is single-threaded and has imported everything: it forks for each order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tick(
        self, home: Path, base_url: str, now: dt.datetime, *, crash_at: int = NEVER, kill_after_seconds: float = 0
    ) -> bool:
        """Tick in another process, which exits at a point or is killed after a time. Return whether it finished."""
        order = {"home": str(home), "base_url": base_url, "now": now.isoformat()}
        order |= {"crash_at": str(crash_at), "kill_after_seconds": str(kill_after_seconds)}
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("The program has no pipes.")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        if code not in (0, CRASHED, -signal.SIGKILL):
            raise ValueError(f"The process ended with exit code {code}.")
        return code == 0

    def close(self) -> None:
        """End the program."""
        self._process.communicate(timeout=30)


def carry_out(order: dict[str, str]) -> None:
    """Tick, and exit at a point."""
    point = Points(int(order["crash_at"]))

    class CrashingClient(WebClient):
        def api_call(self, api_method: str, **arguments: Any) -> SlackResponse:
            point()
            response = super().api_call(api_method, **arguments)
            point()
            return response

    instance = dg.DagsterInstance.from_config(order["home"])
    opened = store.open_store(store.address_of(instance))
    sa.event.listen(opened, "commit", point)
    sa.event.listen(opened, "checkin", point)
    client = CrashingClient(TOKEN, order["base_url"], clients.SOCKET_TIMEOUT_SECONDS, retry_handlers=[])
    now = dt.datetime.fromisoformat(order["now"])
    tick(instance, opened, client, POLICY, lambda: now, pace=QUICK)


def main() -> None:
    """Carry out the orders from standard input, each in a process of its own."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                carry_out(order)
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        if (seconds := float(order["kill_after_seconds"])) > 0:
            time.sleep(seconds)
            # It is ours until it is waited for, even when it has ended.
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
