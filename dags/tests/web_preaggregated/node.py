"""A ClickHouse node of one test, which can be killed and restarted on the same directory."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.local import ports, services
from dags.tests.conftest import CREDENTIALS


@dataclass
class Node:
    """A running node."""

    started: services.StartedService
    lifeline: services.Lifeline

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path, lifeline: services.Lifeline) -> Iterator["Node"]:
        """Run a node on a free port until the end of the block."""
        (service,) = services.clickhouse_nodes(directory, (ports.free_port(),))
        node = cls(services.start(service, lifeline, directory / "logs"), lifeline)
        try:
            services.wait_until_healthy(node.started, CREDENTIALS)
            yield node
        finally:
            services.stop(node.started)

    @property
    def port(self) -> int:
        """The port of the native protocol."""
        return self.started.service.port

    def connect(self) -> ClickhouseCluster:
        """Return a client of the database `default`."""
        return ClickhouseCluster([Host(ports.LOOPBACK, self.port)], Access())

    def kill_and_start(self) -> None:
        """Kill the node and start it again, as after a reset of its machine."""
        self.started.process.kill()
        self.started.process.wait()
        self.started = services.start(self.started.service, self.lifeline, self.started.log.parent)
        services.wait_until_healthy(self.started, CREDENTIALS)
