"""What `up` starts: the services, their ports, and the environment variables that point at them."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from dags.common.settings import Settings
from dags.local import ports, services

KINDS = ("s3", "postgres", "clickhouse")
MAX_PORT = 65535
POLL_SECONDS = 0.1


class PlanError(Exception):
    """The stack cannot be started as planned. The message lists every problem and its remedy."""


@dataclass(frozen=True)
class StackPlan:
    """The services to start on loopback ports. ClickHouse nodes take `clickhouse_port` and the ports after it."""

    directory: Path
    nodes: int = 1
    clickhouse_port: int = 19000
    s3_port: int = 19100
    postgres_port: int = 15432
    kinds: tuple[str, ...] = KINDS
    credentials: services.Credentials = field(default_factory=services.Credentials)

    def services(self) -> list[services.Service]:
        """Return the services in the order in which they start; they stop in reverse order.

        ClickHouse starts last and stops first: it may be writing a backup to S3.
        """
        planned = []
        if "s3" in self.kinds:
            planned.append(services.s3(self.directory, self.s3_port, self.credentials))
        if "postgres" in self.kinds:
            planned.append(services.postgres(self.directory, self.postgres_port, self.credentials))
        if "clickhouse" in self.kinds:
            node_ports = tuple(self.clickhouse_port + offset for offset in range(self.nodes))
            planned += services.clickhouse_nodes(self.directory, node_ports)
        return planned

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point the project at this stack."""
        return {
            "DEBUG": "1",
            "CLICKHOUSE_HOST": ports.LOOPBACK,
            "CLICKHOUSE_PORT": str(self.clickhouse_port),
            "CLICKHOUSE_USER": self.credentials.clickhouse_user,
            # Empty, so that a real password in the environment is not sent to a local server.
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
) -> StackPlan:
    """Return the plan for the project's settings; ports passed here override them.

    Raises PlanError, which lists every problem, when the settings point at services of another machine.
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
    plan = StackPlan(
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
    planned: dict[int, str] = {}
    for service in plan.services():
        if service.port > MAX_PORT:
            problems.append(f"{service.name} would need port {service.port}: set {service.port_remedy}.")
        if service.port in planned:
            problems.append(
                f"{planned[service.port]} and {service.name} would share port {service.port}: "
                f"choose another with {service.port_remedy}."
            )
        planned[service.port] = service.name
    if problems:
        raise PlanError("\n".join(problems))
    return plan


def check_ports(plan: StackPlan, max_wait_seconds: float) -> None:
    """Raise PlanError for the ports that stay in use, with their services and how to choose others."""
    deadline = time.monotonic() + max_wait_seconds
    while time.monotonic() < deadline and not all(ports.is_free(service.port) for service in plan.services()):
        time.sleep(POLL_SECONDS)
    problems = [
        f"Port {service.port}, needed by {service.name}, is used by {ports.process_on(service.port)}: "
        f"stop it, or choose another port with {service.port_remedy}."
        for service in plan.services()
        if not ports.is_free(service.port)
    ]
    if problems:
        raise PlanError("\n".join(problems))
