"""The state of a running stack, for `python -m dags.local status`."""

import time
from pathlib import Path

from dags.local import directory, ports, services

EXIT_BROKEN = 1
EXIT_NOT_RUNNING = 3


def read_status(path: Path) -> tuple[int, list[dict[str, object]], int | None]:
    """Return the exit code of `status`, a row for each service, and the process id of the supervisor if it runs."""
    state = directory.read_state(path) if directory.is_stack_directory(path) else None
    if state is None or not any(process.is_alive() for process in state.processes):
        return EXIT_NOT_RUNNING, [], None
    environment = state.environment
    credentials = services.Credentials(
        postgres_user=environment["POSTGRES_USER"],
        postgres_database=environment["POSTGRES_DATABASE"],
        s3_region=environment["OBJECT_STORAGE_REGION"],
    )
    rows: list[dict[str, object]] = []
    for service in state.services:
        if service.process.is_alive():
            problem = services.probe(service.kind, service.port, credentials)
            health = "running" if problem is None else f"not answering: {problem}"
        else:
            health = "dead"
        rows.append(
            {
                "service": service.name,
                "address": f"{ports.LOOPBACK}:{service.port}",
                "pid": service.process.pid,
                "state": health,
                "data_bytes": directory.size_bytes(Path(service.directory)),
                "uptime_seconds": round(max(time.time() - service.process.created, 0), 1),
            }
        )
    if not state.supervisor.is_alive():
        # Its services will stop soon.
        return EXIT_BROKEN, rows, None
    healthy = state.phase == "ready" and all(row["state"] == "running" for row in rows)
    return (0 if healthy else EXIT_BROKEN), rows, state.supervisor.pid
