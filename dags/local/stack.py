"""The whole stack: starts its services, watches them, stops them in order, and runs a command with them.

When a service dies, the stack stops with its name and the end of its log. It is not restarted: a restart would hide the
crash, and the clients of the service have failed anyway. The next `up` takes seconds.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from dags.local import directory, services
from dags.local.plan import POLL_SECONDS, StackPlan, check_ports

PROGRESS_SECONDS = 5
# How long the services of a killed supervisor may take to stop before the next supervisor kills them.
LEFTOVER_TIMEOUT_SECONDS = 20
REUSE_TIMEOUT_SECONDS = 180
# How long a command may take to stop after the first signal.
COMMAND_STOP_TIMEOUT_SECONDS = 60
COMMAND_GROUP_TIMEOUT_SECONDS = 5
# Pressing Ctrl-C this often kills the command.
SIGNALS_BEFORE_KILL = 3

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StackError(Exception):
    """The stack cannot start or has stopped. The message says why and what to do."""


class Signals:
    """The stop signals received so far. They are recorded, so that no step is interrupted halfway."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []

    @classmethod
    @contextlib.contextmanager
    def recorded(cls) -> Iterator["Signals"]:
        """Record signals until the end of the block, then restore the previous handlers."""
        recorder = cls()

        def on_signal(number: int, _frame: FrameType | None) -> None:
            recorder.received.append(signal.Signals(number))

        previous = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
        try:
            yield recorder
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Interrupted(Exception):  # noqa: N818 - not an error, but a request to stop
    """A signal arrived before the stack was ready."""


@dataclass
class Stack:
    """A stack whose supervisor is this process."""

    plan: StackPlan
    lifeline: services.Lifeline
    say: Callable[[str], None]
    started: list[services.StartedService] = field(default_factory=list)

    def write_state(self, phase: directory.Phase) -> None:
        """Record what runs, for `status` and the next `up`."""
        supervisor = directory.Process.of(os.getpid())
        if supervisor is None:
            raise StackError("This process cannot see itself: is /proc mounted?")
        running = []
        for one in self.started:
            process = directory.Process.of(one.process.pid)
            if process is not None:
                service = one.service
                running.append(
                    directory.RunningService(service.name, service.kind, service.port, str(service.directory), process)
                )
        directory.write_state(
            self.plan.directory, directory.DirectoryState(supervisor, phase, tuple(running), self.plan.environment())
        )

    def start(self, signals: Signals) -> None:
        """Start every service and wait until all are healthy.

        Raises ServiceError when one does not become healthy, Interrupted when a signal arrives.
        """
        # Also before the first process: if we are killed in between, the next `up` reads it.
        self.write_state("starting")
        for service in self.plan.services():
            self.started.append(services.start(service, self.lifeline, self.plan.directory / "logs"))
            self.write_state("starting")
        self.say(f"Starting {', '.join(one.service.name for one in self.started)} on {self.plan.directory}")
        for one in self.started:
            begin = time.monotonic()
            reported = 0.0

            def on_wait(seconds: float, problem: str, name: str = one.service.name) -> None:
                nonlocal reported
                if signals.received:
                    raise Interrupted
                self.check_alive()
                if seconds - reported >= PROGRESS_SECONDS:
                    reported = seconds
                    self.say(f"  {name}: not ready after {seconds:.0f} s ({problem})")

            services.wait_until_healthy(one, self.plan.credentials, on_wait=on_wait)
            self.say(f"  {one.service.name}: ready at {one.service.address} ({time.monotonic() - begin:.1f} s)")
        self.write_state("ready")

    def check_alive(self) -> None:
        """Raise ServiceError for the first service that has died."""
        for one in self.started:
            if one.process.poll() is not None:
                raise services.ServiceError(describe_death(one))

    def stop(self) -> None:
        """Stop everything in reverse order; say which service had to be killed."""
        if self.started:
            with contextlib.suppress(OSError):
                # Stopping must work on a full disk.
                self.write_state("stopping")
        for one in reversed(self.started):
            if not services.stop(one):
                self.say(f"  {one.service.name}: did not stop in {services.STOP_TIMEOUT_SECONDS} s and was killed")
            # Postgres is a child of its service: gone by now, unless the service was killed.
            services.kill_group(one.process.pid, signal.SIGKILL)
        directory.remove_state(self.plan.directory)


def describe_death(started: services.StartedService) -> str:
    """Return the message for a service that died while the stack ran."""
    return f"{services.describe_end(started)}\nThe rest of the stack has been stopped; start it again with `up`."


def stop_leftovers(path: Path, say: Callable[[str], None]) -> bool:
    """Wait for the services of a killed supervisor, and kill those that do not stop.

    Return whether there was one. The caller holds the lock of the directory.
    """
    state = directory.read_state(path)
    if state is None:
        return False
    alive = [service for service in state.services if service.process.is_alive()]
    if alive:
        names = ", ".join(f"{service.name} (pid {service.process.pid})" for service in alive)
        say(f"The previous stack was killed; waiting for its services to stop: {names}")
    deadline = time.monotonic() + LEFTOVER_TIMEOUT_SECONDS
    for service in alive:
        while service.process.is_alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if service.process.is_alive():
            say(f"  {service.name}: did not stop, killing it")
            services.kill_group(service.process.pid, signal.SIGKILL)
            while service.process.is_alive() and time.monotonic() < deadline + LEFTOVER_TIMEOUT_SECONDS:
                time.sleep(POLL_SECONDS)
    directory.remove_state(path)
    return True


def run_command(
    command: tuple[str, ...],
    environment: dict[str, str],
    lifeline: services.Lifeline,
    signals: Signals,
    check: Callable[[], None],
) -> int:
    """Run a command, forward signals to it, and return its exit code once all of its processes have ended.

    `check` is called several times a second; an exception from it stops the command and is raised to the caller.
    """
    process = lifeline.spawn(
        ["command", str(Path.cwd()), *command], output=None, environment={**os.environ, **environment}
    )
    try:
        forwarded = 0
        deadline: float | None = None
        while process.poll() is None:
            check()
            for number in signals.received[forwarded:]:
                forwarded += 1
                services.kill_group(process.pid, signal.SIGKILL if forwarded >= SIGNALS_BEFORE_KILL else number)
                deadline = deadline or time.monotonic() + COMMAND_STOP_TIMEOUT_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                services.kill_group(process.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        code = process.returncode
        return code if code >= 0 else 128 - code
    finally:
        stop_group(process)


def stop_group(process: "subprocess.Popen[bytes]") -> None:
    """Stop a command and every process in its process group."""
    services.kill_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + COMMAND_GROUP_TIMEOUT_SECONDS
    while group_exists(process) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    services.kill_group(process.pid, signal.SIGKILL)
    process.wait(COMMAND_GROUP_TIMEOUT_SECONDS)


def group_exists(process: "subprocess.Popen[bytes]") -> bool:
    """Return whether any process of the group is left. Reaps the first one, which would otherwise count forever."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # macOS: only zombies are left.
        return False
    return True


def up(
    plan: StackPlan, command: tuple[str, ...], *, say: Callable[[str], None], show: Callable[[StackPlan, Stack], None]
) -> int:
    """Run the stack until a signal, or until the command ends; return the exit code.

    `say` prints a line of progress, `show` the services and their addresses. If a stack already runs on the directory,
    the command uses it and leaves it running. Raises DirectoryError, PlanError, StackError and ServiceError after
    everything that was started has stopped.
    """
    directory.open_directory(plan.directory)
    with Signals.recorded() as signals, services.Lifeline.opened() as lifeline:
        try:
            with directory.lock(plan.directory):
                return supervise(Stack(plan, lifeline, say), command, signals, show)
        except directory.HeldError:
            if not command:
                raise
        return reuse(plan, command, lifeline, signals, say)


def supervise(
    stack: Stack, command: tuple[str, ...], signals: Signals, show: Callable[[StackPlan, Stack], None]
) -> int:
    """Start the stack, run the command or wait for a signal, stop the stack. The caller holds the directory's lock."""
    was_killed = stop_leftovers(stack.plan.directory, stack.say)
    # A supervisor killed between starting a service and recording it leaves one that only its port reveals.
    check_ports(stack.plan, LEFTOVER_TIMEOUT_SECONDS if was_killed else 0)
    try:
        stack.start(signals)
        show(stack.plan, stack)
        if command:
            stack.say(f"Running {command[0]}; the stack stops when it ends")
            return run_command(command, stack.plan.environment(), stack.lifeline, signals, stack.check_alive)
        stack.say("Ctrl-C stops the stack and keeps its data.")
        while not signals.received:
            stack.check_alive()
            time.sleep(POLL_SECONDS)
    except Interrupted:
        return 128 + signals.received[0]
    else:
        return 0
    finally:
        if signals.received:
            stack.say(f"{signals.received[0].name}: stopping")
        stack.stop()
        stack.say("The stack has stopped.")


def reuse(
    plan: StackPlan, command: tuple[str, ...], lifeline: services.Lifeline, signals: Signals, say: Callable[[str], None]
) -> int:
    """Run the command with the stack that already runs on the directory, once it is ready, and leave it running.

    Raises StackError when it does not become ready, or lacks a service of the plan.
    """
    deadline = time.monotonic() + REUSE_TIMEOUT_SECONDS
    while True:
        state = directory.read_state(plan.directory)
        if state is not None and state.phase == "ready" and state.supervisor.is_alive():
            break
        if signals.received:
            return 128 + signals.received[0]
        if not directory.is_held(plan.directory) or (state is not None and state.phase == "stopping"):
            raise StackError(f"The stack on {plan.directory} is stopping: try again.")
        if time.monotonic() > deadline:
            raise StackError(f"The stack on {plan.directory} is not ready after {REUSE_TIMEOUT_SECONDS} seconds.")
        time.sleep(POLL_SECONDS)
    missing = sorted({service.name for service in plan.services()} - {service.name for service in state.services})
    if missing:
        raise StackError(
            f"The stack that runs on {plan.directory} (process {state.supervisor.pid}) has no {', '.join(missing)}: "
            "stop it first, or leave these out with --services."
        )
    say(f"Using the stack that already runs on {plan.directory} (process {state.supervisor.pid}); which keeps running.")
    return run_command(command, state.environment, lifeline, signals, lambda: None)
