"""A program that delivers messages and exits in the middle of it, like a process that is killed.

It reads orders from standard input, one JSON object per line, and carries out each in a process of its own, whose exit
code is the answer: CRASHED, or 0 when the delivery ended before the order's point. Points are counted from 1: before
and after each call to Slack, and before and after each commit.
"""

import datetime as dt
import json
import os
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from slack_sdk import WebClient
from slack_sdk.web import SlackResponse

from dags.alerts import deliver, store, tables, transitions
from dags.alerts.values import Policy
from dags.common import slack as clients
from dags.tests.alerts.fake_slack import TOKEN

CRASHED = 9
ROOT = Path(__file__).parents[3]


@dataclass(eq=False)
class Points:
    """A counter of points, which ends the process at one of them."""

    crash_at: int
    passed: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self, *_: Any) -> None:
        with self._lock:
            self.passed += 1
            if self.passed == self.crash_at:
                os._exit(CRASHED)


class Crasher:
    """The program, and a way to send it orders."""

    def __init__(self) -> None:
        # One that is single-threaded and has imported everything: it forks for each order.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def deliver(self, store_url: str, base_url: str, default_channel: str, now: dt.datetime, crash_at: int) -> bool:
        """Deliver in another process. Return whether it crashed."""
        order = {"url": store_url, "base_url": base_url, "default_channel": default_channel}
        order |= {"now": now.isoformat(), "crash_at": str(crash_at)}
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("The program has no pipes.")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        if code not in (0, CRASHED):
            raise ValueError(f"The process ended with exit code {code}.")
        return code == CRASHED

    def close(self) -> None:
        """End the program."""
        self._process.communicate(timeout=30)


def carry_out(order: dict[str, str]) -> None:
    """Deliver the waiting messages of a store, and crash at a point."""
    point = Points(int(order["crash_at"]))

    class CrashingClient(WebClient):
        def api_call(self, api_method: str, **arguments: Any) -> SlackResponse:
            point()
            response = super().api_call(api_method, **arguments)
            point()
            return response

    engine = store.open_store(order["url"])
    sa.event.listen(engine, "commit", point)
    sa.event.listen(engine, "checkin", point)
    client = CrashingClient(TOKEN, order["base_url"], clients.SOCKET_TIMEOUT_SECONDS, retry_handlers=[])
    now = dt.datetime.fromisoformat(order["now"])
    policy = Policy({}, order["default_channel"])
    deliver.deliver(engine, client, policy, lambda: now, 20, transitions.Pace(between_calls_seconds=0))


def main() -> None:
    """Carry out the orders from standard input, each in a process of its own."""
    # Imported here, so that each process has it already.
    if tables.outbox.metadata is not tables.metadata:
        raise ValueError("The outbox is not in the store.")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                carry_out(json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
