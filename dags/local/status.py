"""The state of a running stack, for `python -m dags.local status`."""

import time
from dataclasses import dataclass
from pathlib import Path

from dags.local import directory, ports, services

EXIT_BROKEN = 1
EXIT_NOT_RUNNING = 3


@dataclass(frozen=True)
class ServiceStatus:
    """The status of a service. `state` is `running`, `dead` or `not answering: REASON`."""

    service: str
    address: str
    pid: int
    state: str
    data_bytes: int
    uptime_seconds: float


@dataclass(frozen=True)
class StackStatus:
    """The status of a stack, the process id of its supervisor if it runs, and the exit code of `status`."""

    exit_code: int
    supervisor_pid: int | None
    services: list[ServiceStatus]


def read_status(path: Path) -> StackStatus:
    """Return the status of the stack on a directory, after a probe of each service."""
    state = directory.read_state(path) if directory.is_stack_directory(path) else None
    if state is None or not any(process.is_alive() for process in state.processes):
        return StackStatus(EXIT_NOT_RUNNING, None, [])
    credentials = services.Credentials(
        postgres_user=state.environment["POSTGRES_USER"],
        postgres_database=state.environment["POSTGRES_DATABASE"],
        s3_region=state.environment["OBJECT_STORAGE_REGION"],
    )
    found = [_service_status(service, credentials) for service in state.services]
    if not state.supervisor.is_alive():
        # Its services will stop soon.
        return StackStatus(EXIT_BROKEN, None, found)
    healthy = state.phase == "ready" and all(service.state == "running" for service in found)
    return StackStatus(0 if healthy else EXIT_BROKEN, state.supervisor.pid, found)


def _service_status(service: directory.RunningService, credentials: services.Credentials) -> ServiceStatus:
    state = "dead"
    if service.process.is_alive():
        problem = services.probe(service.kind, service.port, credentials)
        state = "running" if problem is None else f"not answering: {problem}"
    return ServiceStatus(
        service=service.name,
        address=f"{ports.LOOPBACK}:{service.port}",
        pid=service.process.pid,
        state=state,
        data_bytes=directory.size_bytes(Path(service.directory)),
        uptime_seconds=round(max(time.time() - service.process.created, 0), 1),
    )
