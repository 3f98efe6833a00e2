"""The engine's configuration file: logs, cluster, macros, where backups may go."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

CLUSTER_NAME = "local"
QUERY_LOG_RETENTION_DAYS = 7
MERGES_AND_MUTATIONS_PER_THREAD = 8


@dataclass(frozen=True)
class Node:
    """One node of the local cluster. Every node is a shard of its own, because replication does not work."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Node":
        """Read `host:port`. Raises ValueError for anything else."""
        host, separator, port = text.strip().rpartition(":")
        if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"{text!r} is not a node: write it as 127.0.0.1:19000")
        return cls(host, int(port))


def write_configuration(directory: Path, nodes: list[Node], shard: int, role: str | None = None) -> Path:
    """Write the configuration of node number `shard` (from 1) of `nodes`; return the file's path.

    It has the macro `role` if `role` is not None.
    """
    root = Element("clickhouse")
    # By default the engine runs four on its two threads, and starts the next four parts of a mutation a second later.
    SubElement(root, "background_merges_mutations_concurrency_ratio").text = str(MERGES_AND_MUTATIONS_PER_THREAD)
    query_log = SubElement(root, "query_log")
    for name, value in {
        "database": "system",
        "table": "query_log",
        "partition_by": "event_date",
        "ttl": f"event_date + INTERVAL {QUERY_LOG_RETENTION_DAYS} DAY DELETE",
        "flush_interval_milliseconds": "1000",
    }.items():
        SubElement(query_log, name).text = value
    macros = SubElement(root, "macros")
    values = {"cluster": CLUSTER_NAME, "shard": str(shard), "replica": f"node-{shard}"}
    for name, value in {**values, **({"role": role} if role else {})}.items():
        SubElement(macros, name).text = value
    cluster = SubElement(SubElement(root, "remote_servers"), CLUSTER_NAME)
    for node in nodes:
        replica = SubElement(SubElement(cluster, "shard"), "replica")
        SubElement(replica, "host").text = node.host
        SubElement(replica, "port").text = str(node.port)
    backups = directory / "backups"
    backups.mkdir(parents=True, exist_ok=True)
    allowed = SubElement(root, "backups")
    SubElement(allowed, "allowed_path").text = str(backups)
    indent(root)
    file = directory / "configuration.xml"
    file.write_bytes(tostring(root, encoding="utf-8") + b"\n")
    return file
