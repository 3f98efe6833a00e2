"""`python -m dags.local.clickhouse`: one node of the local ClickHouse, until SIGTERM or Ctrl-C."""

import fcntl
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import click

from dags.local.clickhouse.configuration import Node, write_configuration
from dags.local.ports import LOOPBACK

# The engine reads its path and options from one text, in which these separate them.
UNUSABLE_IN_PATHS = "?&#%"


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), required=True, help="Port on 127.0.0.1; 0 for a free one.")
@click.option("--path", type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory of the data.")
@click.option(
    "--cluster-nodes",
    default="",
    help="All nodes of the cluster `local`, in the order of their shards: 127.0.0.1:19000,127.0.0.1:19001. "
    "The default is this node alone.",
)
@click.option("--shard", type=click.IntRange(1), default=1, show_default=True, help="Number of this node's shard.")
@click.option("--role", help="Value of the macro `role`.")
@click.option("--log-file", type=click.Path(dir_okay=False, path_type=Path), help="Default: standard error.")
@click.option("--log-level", default="INFO", show_default=True, type=click.Choice(["DEBUG", "INFO", "WARNING"]))
def main(
    port: int, path: Path, cluster_nodes: str, shard: int, role: str | None, log_file: Path | None, log_level: str
) -> None:
    """Serve the embedded ClickHouse engine over ClickHouse's native protocol.

    Print `ready PORT` when it accepts connections. The user is `default`, without a password; the address is loopback.
    """
    logging.basicConfig(filename=log_file, level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        nodes = [Node.parse(text) for text in cluster_nodes.split(",") if text.strip()]
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--cluster-nodes") from None
    if nodes and shard > len(nodes):
        raise click.BadParameter(f"{shard} is not among the {len(nodes)} --cluster-nodes", param_hint="--shard")
    path = path.absolute()
    if unusable := set(UNUSABLE_IN_PATHS) & set(str(path)):
        message = f"the engine cannot use a path with {' or '.join(sorted(unusable))} in it: {path}"
        raise click.BadParameter(message, param_hint="--path")
    with _listener(port) as listener:
        real_port = int(listener.getsockname()[1])
        configuration = _take_directory(path, nodes or [Node(LOOPBACK, real_port)], shard, role)
        _serve(listener, path / "data", configuration)


def _listener(port: int) -> socket.socket:
    try:
        return socket.create_server((LOOPBACK, port), backlog=256)
    except OSError as error:
        message = f"cannot listen on {LOOPBACK}:{port}: {error.strerror}; choose another --port"
        raise click.ClickException(message) from None


def _take_directory(path: Path, nodes: list[Node], shard: int, role: str | None) -> Path:
    """Lock the data directory for this process and write the engine's configuration there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Held until the process ends, however it ends: the engine lets two processes corrupt one directory.
        lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return write_configuration(path, nodes, shard, role)
    except BlockingIOError:
        message = f"{path} is in use by another ClickHouse node: stop it, or choose another --path"
        raise click.ClickException(message) from None
    except OSError as error:
        raise click.ClickException(f"cannot use {path} for data: {error.strerror}: {error.filename}") from None


def _serve(listener: socket.socket, data: Path, configuration: Path) -> None:
    # chdb takes a second to import, so wrong options are reported before.
    from dags.local.clickhouse.engine import EmbeddedEngine, EngineError
    from dags.local.clickhouse.server import Server

    try:
        engine = EmbeddedEngine(data, configuration)
    except EngineError as error:
        raise click.ClickException(f"the ClickHouse engine does not start on {data}: {error}") from None
    server = Server(engine, listener)
    stop = threading.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, name="accept", daemon=True).start()
    print(f"ready {server.port}", flush=True)
    stop.wait()
    server.close()
    engine.close()


if __name__ == "__main__":
    sys.exit(main())
