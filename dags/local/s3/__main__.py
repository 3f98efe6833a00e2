"""`python -m dags.local.s3`: the local S3 until SIGTERM or Ctrl-C."""

import ctypes
import fcntl
import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, cast

import click

from dags.local import ports
from dags.local.s3.application import Application, build_application
from dags.local.s3.store import StoreError

if TYPE_CHECKING:
    from waitress.server import BaseWSGIServer

WORKER_THREADS = 16
MAX_CONNECTIONS = 1000
# S3's own limit for one request.
MAX_BODY_BYTES = 5 * 1024**3
SEND_BUFFER_BYTES = 128 * 1024
# malloc.h
MALLOPT_MMAP_THRESHOLD = -3
MALLOPT_ARENA_MAX = -8
MMAP_THRESHOLD_BYTES = 1024 * 1024
METADATA_HEADER = re.compile(rb"^x-amz-meta-[^:\r]*", re.IGNORECASE | re.MULTILINE)


def build_server(application: Application, listener: socket.socket) -> "BaseWSGIServer":
    """Return a server of the application on a bound socket."""
    from waitress.channel import HTTPChannel
    from waitress.server import create_server
    from waitress.task import WSGITask

    class Task(WSGITask):
        """A response with metadata headers in lower case, as S3 sends them; waitress capitalizes every header."""

        def build_response_header(self) -> bytes:
            """Return the head of the response."""
            return METADATA_HEADER.sub(lambda found: found[0].lower(), super().build_response_header())

    class Channel(HTTPChannel):
        """A connection that sends no `100 Continue` for an empty body.

        boto3 sends `Expect: 100-continue` with empty objects too, and waitress would wait for a body forever.
        """

        task_class = Task

        def send_continue(self) -> None:
            """Ask the client for the body, if there is one."""
            request = self.request
            if request is not None and not request.content_length and not request.chunked:
                request.expect_continue = False
            else:
                super().send_continue()

    # With several sockets it returns another type.
    server = cast(
        "BaseWSGIServer",
        create_server(
            application,
            sockets=[listener],
            threads=WORKER_THREADS,
            connection_limit=MAX_CONNECTIONS,
            max_request_body_size=MAX_BODY_BYTES,
            # select() cannot watch this many connections.
            asyncore_use_poll=True,
            ident=None,
        ),
    )
    server.channel_class = Channel
    return server


def return_memory() -> None:
    """Make glibc return the memory of freed request bodies at once; otherwise it keeps hundreds of MB."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(MALLOPT_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        set_option(MALLOPT_ARENA_MAX, 2)


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True)
@click.option("--path", type=click.Path(path_type=Path, file_okay=False, resolve_path=True), required=True)
@click.option("--bucket", "buckets", multiple=True, help="Bucket to create if it is missing; may be repeated.")
@click.option("--region", default="us-east-1", show_default=True, help="Region of new buckets.")
def main(port: int, path: Path, buckets: tuple[str, ...], region: str) -> None:
    """Run the local S3 until SIGTERM or SIGINT; prints `ready PORT` when it accepts connections."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return_memory()
    # It warns whenever there are more requests than threads for a moment.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Held until the process ends: two processes would overwrite each other's records.
        directory = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{path} is in use by another S3 process.") from None
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Waitress reads this much of a file again for every piece that a slow client accepts.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            listener.bind((ports.LOOPBACK, port))
        except OSError as error:
            raise StoreError(
                f"Port {port} cannot be used ({error.strerror}): {ports.process_on(port)} uses it."
            ) from None
        application = build_application(path, buckets, region)
        server = build_server(application, listener)
    except (OSError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    print(f"ready {port}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
