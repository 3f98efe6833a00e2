"""A ClickHouse node of one test, which may be killed and started again on the same directory."""

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
    """A node that runs."""

    started: services.Started
    lifeline: services.Lifeline

    @classmethod
    @contextlib.contextmanager
    def running(cls, directory: Path, lifeline: services.Lifeline) -> Iterator["Node"]:
        """A node on a free port until the end of the block."""
        (service,) = services.clickhouse_nodes(directory, (ports.free_port(),))
        node = cls(services.start(service, lifeline, directory / "logs"), lifeline)
        try:
            services.wait_until_healthy(node.started, CREDENTIALS)
            yield node
        finally:
            services.stop(node.started)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.started.service.port

    def connect(self) -> ClickhouseCluster:
        """Its database `default`."""
        return ClickhouseCluster([Host(ports.LOOPBACK, self.port)], Access())

    def kill_and_start(self) -> None:
        """As when its machine was reset."""
        self.started.process.kill()
        self.started.process.wait()
        self.started = services.start(self.started.service, self.lifeline, self.started.log.parent)
        services.wait_until_healthy(self.started, CREDENTIALS)
