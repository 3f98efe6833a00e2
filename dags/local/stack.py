"""The whole stack: starts its services, watches them, stops them in order, and runs a command beside them.

What belongs here: what `up` does. What does not: a single service (`services`), the directory (`directory`), the
command line and its tables (`__main__`).

When one service dies the stack stops, naming it and showing its log. It is not restarted: on a laptop a crash is a
finding, to be seen at once; a restart would hide it, and whatever used the service has failed anyway. The next `up`
takes seconds.
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

from dags.common.settings import Settings
from dags.local import directory, ports, services

KINDS = ("s3", "postgres", "clickhouse")
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 5
# Services of a killed supervisor stop by themselves; this is how long the next one waits before it kills them.
LEFTOVER_TIMEOUT_SECONDS = 20
REUSE_TIMEOUT_SECONDS = 180
# After the first signal a command may finish its work.
COMMAND_STOP_TIMEOUT_SECONDS = 60
COMMAND_STRAGGLER_TIMEOUT_SECONDS = 5
# Whoever presses Ctrl-C this often does not want to wait any longer.
SIGNALS_BEFORE_KILL = 3

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StackError(Exception):
    """The stack cannot start or has stopped. The message says why and what to do."""


@dataclass(frozen=True)
class Plan:
    """What `up` shall start. Ports are loopback ones; the ClickHouse nodes take `clickhouse_port` and the next ones."""

    directory: Path
    nodes: int = 1
    clickhouse_port: int = 19000
    s3_port: int = 19100
    postgres_port: int = 15432
    kinds: tuple[str, ...] = KINDS
    credentials: services.Credentials = field(default_factory=services.Credentials)

    def services(self) -> list[services.Service]:
        """The services in the order in which they start; they stop in the reverse order.

        ClickHouse starts last and stops first: it may be writing a backup to S3.
        """
        found = []
        if "s3" in self.kinds:
            found.append(services.s3(self.directory, self.s3_port, self.credentials))
        if "postgres" in self.kinds:
            found.append(services.postgres(self.directory, self.postgres_port, self.credentials))
        if "clickhouse" in self.kinds:
            node_ports = tuple(self.clickhouse_port + offset for offset in range(self.nodes))
            found += services.clickhouse_nodes(self.directory, node_ports)
        return found

    def environment(self) -> dict[str, str]:
        """Environment variables that point the project at this stack."""
        return {
            "DEBUG": "1",
            "CLICKHOUSE_HOST": ports.LOOPBACK,
            "CLICKHOUSE_PORT": str(self.clickhouse_port),
            "CLICKHOUSE_USER": self.credentials.clickhouse_user,
            # Empty ones, lest a real password of the caller is sent to a local server.
            "CLICKHOUSE_PASSWORD": "",
            "CLICKHOUSE_DATABASE": self.credentials.clickhouse_database,
            "CLICKHOUSE_CLUSTER": "local",
            "CLICKHOUSE_SECURE": "0",
            "OBJECT_STORAGE_ENDPOINT": f"http://{ports.LOOPBACK}:{self.s3_port}",
            "OBJECT_STORAGE_REGION": self.credentials.s3_region,
            "OBJECT_STORAGE_BUCKET": self.credentials.s3_bucket,
            "OBJECT_STORAGE_ACCESS_KEY_ID": self.credentials.s3_access_key_id,
            "OBJECT_STORAGE_SECRET_ACCESS_KEY": self.credentials.s3_secret_access_key,
            "POSTGRES_HOST": ports.LOOPBACK,
            "POSTGRES_PORT": str(self.postgres_port),
            "POSTGRES_USER": self.credentials.postgres_user,
            "POSTGRES_PASSWORD": "",
            "POSTGRES_DATABASE": self.credentials.postgres_database,
        }


def plan_from_settings(
    settings: Settings,
    path: Path,
    *,
    nodes: int = 1,
    clickhouse_port: int | None = None,
    s3_port: int | None = None,
    postgres_port: int | None = None,
    kinds: tuple[str, ...] = KINDS,
) -> Plan:
    """The plan that the project's settings ask for; a port given here goes before the settings.

    Raises StackError, listing every problem, when the settings point at services of another machine.
    """
    from urllib.parse import urlsplit

    endpoint = urlsplit(settings.object_storage_endpoint or "http://127.0.0.1:19100")
    hosts = {
        "CLICKHOUSE_HOST": settings.clickhouse_host,
        "POSTGRES_HOST": settings.postgres_host,
        "OBJECT_STORAGE_ENDPOINT": endpoint.hostname or "",
    }
    problems = [
        f"{variable} is {host}; the local stack listens on {ports.LOOPBACK} only: unset {variable}."
        for variable, host in hosts.items()
        if host not in {ports.LOOPBACK, "localhost"}
    ]
    plan = Plan(
        directory=path.resolve(),
        nodes=nodes,
        clickhouse_port=clickhouse_port or settings.clickhouse_port,
        s3_port=s3_port or endpoint.port or 80,
        postgres_port=postgres_port or settings.postgres_port,
        kinds=kinds,
        credentials=services.Credentials(
            clickhouse_database=settings.clickhouse_database,
            s3_region=settings.object_storage_region,
            s3_bucket=settings.object_storage_bucket,
            postgres_user=settings.postgres_user,
            postgres_database=settings.postgres_database,
        ),
    )
    wanted: dict[int, str] = {}
    for service in plan.services():
        if service.port > 65535:  # noqa: PLR2004 - the highest port there is
            problems.append(f"{service.name} would need port {service.port}: choose with {service.port_remedy}.")
        if service.port in wanted:
            problems.append(
                f"{wanted[service.port]} and {service.name} would share port {service.port}: "
                f"choose another with {service.port_remedy}."
            )
        wanted[service.port] = service.name
    if problems:
        raise StackError("\n".join(problems))
    return plan


def check_ports(plan: Plan, patience_seconds: float) -> None:
    """Raises StackError, naming every port that stays busy, with its service and the way to choose another."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline and not all(ports.is_free(service.port) for service in plan.services()):
        time.sleep(POLL_SECONDS)
    problems = [
        f"Port {service.port}, wanted for {service.name}, is taken by {ports.holder(service.port)}: "
        f"stop it, or choose another port with {service.port_remedy}."
        for service in plan.services()
        if not ports.is_free(service.port)
    ]
    if problems:
        raise StackError("\n".join(problems))


class Signals:
    """Signals that ask us to stop, counted while the block runs rather than acted upon in the middle of something."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []

    @classmethod
    @contextlib.contextmanager
    def counted(cls) -> Iterator["Signals"]:
        """Counts from the beginning of the block to its end, where the previous handlers come back."""
        counter = cls()

        def on_signal(number: int, _frame: FrameType | None) -> None:
            counter.received.append(signal.Signals(number))

        previous = {number: signal.signal(number, on_signal) for number in STOP_SIGNALS}
        try:
            yield counter
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class Interrupted(Exception):  # noqa: N818 - not an error: somebody asked us to stop
    """A signal came before the stack was ready."""


@dataclass
class Stack:
    """A stack of which we are the supervisor."""

    plan: Plan
    lifeline: services.Lifeline
    say: Callable[[str], None]
    started: list[services.Started] = field(default_factory=list)

    def write_state(self, phase: directory.Phase) -> None:
        """Tells `status`, and the next `up`, what runs."""
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
        """Starts every service and waits until all of them are healthy.

        Raises ServiceError when one of them does not become healthy, Interrupted when a signal comes.
        """
        # Before the first process too: if we are killed in between, the next `up` looks here.
        self.write_state("starting")
        for service in self.plan.services():
            self.started.append(services.start(service, self.lifeline, self.plan.directory / "logs"))
            self.write_state("starting")
        self.say(f"Starting {', '.join(one.service.name for one in self.started)} on {self.plan.directory}")
        for one in self.started:
            begin = time.monotonic()
            told = 0.0

            def on_wait(seconds: float, problem: str, name: str = one.service.name) -> None:
                nonlocal told
                if signals.received:
                    raise Interrupted
                self.check_alive()
                if seconds - told >= PROGRESS_SECONDS:
                    told = seconds
                    self.say(f"  {name}: not ready after {seconds:.0f} s ({problem})")

            services.wait_until_healthy(one, self.plan.credentials, on_wait=on_wait)
            self.say(f"  {one.service.name}: ready at {one.service.address} ({time.monotonic() - begin:.1f} s)")
        self.write_state("ready")

    def check_alive(self) -> None:
        """Raises ServiceError for the first service that has died."""
        for one in self.started:
            if one.process.poll() is not None:
                raise services.ServiceError(describe_death(one))

    def stop(self) -> None:
        """Stops everything in the reverse order of the start; says which service had to be killed."""
        if self.started:
            with contextlib.suppress(OSError):
                # A full disk must not keep us from stopping.
                self.write_state("stopping")
        for one in reversed(self.started):
            if not services.stop(one):
                self.say(f"  {one.service.name}: did not stop in {services.STOP_TIMEOUT_SECONDS} s and was killed")
            # Postgres is a child of its process: gone by now, unless that one was killed.
            services.kill_group(one.process.pid, signal.SIGKILL)
        directory.remove_state(self.plan.directory)


def describe_death(started: services.Started) -> str:
    """The message for a service that has died under our eyes."""
    return f"{services.describe_end(started)}\nThe rest of the stack has been stopped; start it again with `up`."


def stop_leftovers(path: Path, say: Callable[[str], None]) -> bool:
    """Waits for the services of a supervisor that was killed, and kills those that do not stop.

    Returns whether there was such a supervisor. The caller holds the directory.
    """
    state = directory.read_state(path)
    if state is None:
        return False
    alive = [service for service in state.services if service.process.is_alive()]
    if alive:
        names = ", ".join(f"{service.name} (pid {service.process.pid})" for service in alive)
        say(f"The previous stack was killed; waiting until it has stopped: {names}")
    deadline = time.monotonic() + LEFTOVER_TIMEOUT_SECONDS
    for service in alive:
        while service.process.is_alive() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if service.process.is_alive():
            say(f"  {service.name}: does not stop, killing it")
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
    """Runs a command, hands signals on to it, and returns its exit code once nothing of it is left.

    `check` is called all the while; what it raises stops the command and goes on to the caller.
    """
    process = lifeline.spawn(
        ["command", str(Path.cwd()), *command], output=None, environment={**os.environ, **environment}
    )
    try:
        handed_on = 0
        deadline: float | None = None
        while process.poll() is None:
            check()
            for number in signals.received[handed_on:]:
                handed_on += 1
                services.kill_group(process.pid, signal.SIGKILL if handed_on >= SIGNALS_BEFORE_KILL else number)
                deadline = deadline or time.monotonic() + COMMAND_STOP_TIMEOUT_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                services.kill_group(process.pid, signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        code = process.returncode
        return code if code >= 0 else 128 - code
    finally:
        stop_group(process)


def stop_group(process: "subprocess.Popen[bytes]") -> None:
    """Ends a command and whatever it left running in its process group."""
    services.kill_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + COMMAND_STRAGGLER_TIMEOUT_SECONDS
    while group_exists(process) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    services.kill_group(process.pid, signal.SIGKILL)
    process.wait(COMMAND_STRAGGLER_TIMEOUT_SECONDS)


def group_exists(process: "subprocess.Popen[bytes]") -> bool:
    """Whether any process of the group is left. Collects the first one, which would otherwise count for ever."""
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # macOS: only zombies are left.
        return False
    return True


def up(plan: Plan, command: tuple[str, ...], *, say: Callable[[str], None], show: Callable[[Plan, Stack], None]) -> int:
    """Runs the stack until a signal, or until the command ends; returns the exit code.

    `say` shows a line of progress, `show` what runs where. A stack that already runs on the directory is used for the
    command and left alone. Raises DirectoryError, StackError and ServiceError; whatever was started is stopped by then.
    """
    directory.open_directory(plan.directory)
    with Signals.counted() as signals, services.Lifeline.opened() as lifeline:
        try:
            with directory.lock(plan.directory):
                return supervise(Stack(plan, lifeline, say), command, signals, show)
        except directory.HeldError:
            if not command:
                raise
        return reuse(plan, command, lifeline, signals, say)


def supervise(stack: Stack, command: tuple[str, ...], signals: Signals, show: Callable[[Plan, Stack], None]) -> int:
    """Starts the stack, runs the command or waits for a signal, and stops the stack. The caller holds the directory."""
    was_killed = stop_leftovers(stack.plan.directory, stack.say)
    # A supervisor killed between starting a service and writing that down leaves one that only its port shows.
    check_ports(stack.plan, LEFTOVER_TIMEOUT_SECONDS if was_killed else 0)
    try:
        stack.start(signals)
        show(stack.plan, stack)
        if command:
            stack.say(f"Running {command[0]}; the stack stops when it ends")
            return run_command(command, stack.plan.environment(), stack.lifeline, signals, stack.check_alive)
        stack.say("Ctrl-C stops the stack; the data stay.")
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
    plan: Plan, command: tuple[str, ...], lifeline: services.Lifeline, signals: Signals, say: Callable[[str], None]
) -> int:
    """Runs the command beside the stack that already runs on the directory, once that is ready, and leaves it running.

    Raises StackError when it does not become ready or lacks a service that the plan wants.
    """
    deadline = time.monotonic() + REUSE_TIMEOUT_SECONDS
    while True:
        state = directory.read_state(plan.directory)
        if state is not None and state.phase == "ready" and state.supervisor.is_alive():
            break
        if signals.received:
            return 128 + signals.received[0]
        if not directory.is_held(plan.directory) or (state is not None and state.phase == "stopping"):
            raise StackError(f"The stack on {plan.directory} is just stopping: try again.")
        if time.monotonic() > deadline:
            raise StackError(f"The stack on {plan.directory} is not ready after {REUSE_TIMEOUT_SECONDS} seconds.")
        time.sleep(POLL_SECONDS)
    missing = sorted({service.name for service in plan.services()} - {service.name for service in state.services})
    if missing:
        raise StackError(
            f"The stack that runs on {plan.directory} (process {state.supervisor.pid}) has no {', '.join(missing)}: "
            "stop it first, or ask for what it has."
        )
    say(f"Using the stack that already runs on {plan.directory} (process {state.supervisor.pid}); it is left running.")
    return run_command(command, state.environment, lifeline, signals, lambda: None)
