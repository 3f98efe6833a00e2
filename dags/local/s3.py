"""The local S3: moto's S3 behind a production WSGI server, with every object kept in files.

    python -m dags.local.s3 --port 19100 --path .local/s3 --bucket analytics

What belongs here: what moto lacks to be a store for a laptop. Moto answers the requests and keeps buckets and object
metadata in memory; here each object is written to disk before its request is answered, read back at the start, and
streamed from its file. What does not: the project's own use of S3 (`dags.common.s3`).

Kept over a restart and a kill -9: buckets, and of each object the content, metadata, etag, checksum, tags and time.
Safe against the death of the process; like ClickHouse's default, not against the loss of power in the last seconds.
Not kept: uploads in parts that were not completed. What else could not be kept (versions, policies, ACLs, ...) is
refused.
"""

import ctypes
import dataclasses
import fcntl
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

import click

from dags.local import ports

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from moto.s3.models import FakeKey, S3Backend
    from waitress.server import BaseWSGIServer

WORKER_THREADS = 16
CONNECTION_LIMIT = 1000
# S3's own limits: 5 GiB for one request.
MAXIMUM_BODY_BYTES = 5 * 1024**3
SEND_BUFFER_BYTES = 128 * 1024
COPY_CHUNK_BYTES = 1024 * 1024
# malloc.h
MALLOPT_MMAP_THRESHOLD = -3
MALLOPT_ARENA_MAX = -8
MMAP_THRESHOLD_BYTES = 1024 * 1024

# Attributes of moto's key that a record keeps besides its times, metadata and tags.
KEPT_ATTRIBUTES = (
    "_etag",
    "_storage_class",
    "encryption",
    "kms_key_id",
    "bucket_key_enabled",
    "checksum_algorithm",
    "checksum_value",
    "checksum_type",
    "checksum_parts",
    "website_redirect_location",
)

# Query parameters that say which state a PUT, POST or DELETE changes; any other state would be lost at a restart.
KEPT_OBJECT_CHANGES = {"tagging", "uploads", "uploadId", "partNumber"}
KEPT_BUCKET_CHANGES = {"delete"}
METADATA_HEADER = re.compile(rb"^x-amz-meta-[^:\r]*", re.IGNORECASE | re.MULTILINE)
CONDITIONS_LEFT_TO_MOTO = {"HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE"}
# Added by clients to every request, without a meaning for it.
IGNORED_PARAMETERS = {"x-id"}


class StoreError(Exception):
    """The data directory cannot be used. The message says why and what to do."""


class StoredContent(io.RawIOBase):
    """Content of an object in its file, which moto's keys read in place of their own buffer. Opened only while read."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to `offset` bytes from the start; moto needs no other kind of seek."""
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only from the start of the content")
        self.position = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes, or the rest."""
        with self.path.open("rb") as file:
            file.seek(self.position)
            content = file.read(size)
        self.position += len(content)
        return content


@dataclasses.dataclass
class Store:
    """Objects of moto's backend, mirrored to files under `path`.

    `buckets/NAME.json` is a bucket. `objects/BUCKET/HH/HASH.json` is an object, HASH being that of its key; it names
    the file of its content beside it. A record is replaced in one step, so an object is its old self or its new one.
    """

    path: Path
    backend: "S3Backend"
    contents: dict[tuple[str, str], Path] = dataclasses.field(default_factory=dict)

    def load(self) -> None:
        """Gives moto every bucket and object of the directory, and removes what a killed process left half-done."""
        for folder in (self.path / "buckets", self.path / "objects"):
            folder.mkdir(parents=True, exist_ok=True)
        for record_path in sorted((self.path / "buckets").glob("*.json")):
            record = read_record(record_path)
            bucket = self.backend.create_bucket(record["name"], record["region"])
            bucket.creation_date = datetime.fromisoformat(record["created"])
        known = set()
        for record_path in (self.path / "objects").glob("*/*/*.json"):
            known |= {record_path, self.load_object(record_path)}
        for leftover in [*(self.path / "objects").glob("*/*/*"), *(self.path / "buckets").glob("*.new")]:
            if leftover not in known:
                leftover.unlink()

    def load_object(self, record_path: Path) -> Path:
        """Gives moto the object of one record; returns the file of its content."""
        from moto.s3.models import FakeKey

        record = read_record(record_path)
        bucket, name = record["bucket"], record["key"]
        content: Path = record_path.parent / record["content"]
        if not content.exists():
            raise StoreError(f"{content} is missing: the content of s3://{bucket}/{name} was removed by somebody.")
        key = FakeKey(
            name=name,
            value=b"",
            account_id=self.backend.account_id,
            region_name=self.backend.region_name,
            bucket_name=bucket,
            version_id="null",
        )
        key._value_buffer = StoredContent(content)  # type: ignore[assignment]  # noqa: SLF001 - moto has no other way to content on disk
        key.contentsize = content.stat().st_size
        key.last_modified = datetime.fromisoformat(record["modified"])
        key.metadata.clear()
        key.set_metadata(record["metadata"])
        for attribute in KEPT_ATTRIBUTES:
            setattr(key, attribute, record[attribute])
        self.backend.get_bucket(bucket).keys.setlist(name, [key])
        self.backend.tagger.tag_resource(
            key.arn, [{"Key": tag, "Value": value} for tag, value in record["tags"].items()]
        )
        self.contents[bucket, name] = content
        return content

    def record_path(self, bucket: str, name: str) -> Path:
        """File of an object's record."""
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.path / "objects" / bucket / digest[:2] / f"{digest}.json"

    def keep_object(self, bucket: str, name: str) -> None:
        """Makes the files of one object equal to what moto holds: written, rewritten or removed."""
        key = self.backend.get_object(bucket, name) if bucket in self.backend.buckets else None
        record_path = self.record_path(bucket, name)
        previous = self.contents.get((bucket, name))
        if key is None:
            if previous is not None:
                record_path.unlink()
                del self.contents[bucket, name]
                previous.unlink()
            return
        content = self.keep_content(key, record_path)
        write_record(
            record_path,
            {
                "bucket": bucket,
                "key": name,
                "content": content.name,
                "modified": key.last_modified.isoformat(),
                "metadata": dict(key.metadata),
                "tags": self.backend.tagger.get_tag_dict_for_resource(key.arn),
                **{attribute: getattr(key, attribute) for attribute in KEPT_ATTRIBUTES},
            },
        )
        self.contents[bucket, name] = content
        if previous is not None and previous != content:
            previous.unlink()

    def keep_content(self, key: "FakeKey", record_path: Path) -> Path:
        """Moves the content of a key from moto's buffer to a file beside its record, unless it is there already."""
        buffer = key._value_buffer  # noqa: SLF001 - moto has no other way to content on disk
        if isinstance(buffer, StoredContent):
            return buffer.path
        record_path.parent.mkdir(parents=True, exist_ok=True)
        content = record_path.with_name(f"{record_path.stem}.{uuid.uuid4().hex}")
        # Computed now: moto would otherwise compute it from the buffer when first asked.
        _ = key.etag
        try:
            buffer.seek(0)
            with content.open("wb") as file:
                shutil.copyfileobj(buffer, file, COPY_CHUNK_BYTES)
        except OSError:
            content.unlink(missing_ok=True)
            raise
        buffer.close()
        key._value_buffer = StoredContent(content)  # type: ignore[assignment]  # noqa: SLF001 - as above
        # The parts of an upload are a second copy of its content.
        if key.multipart is not None:
            key.multipart.dispose()
            key.multipart = None
        return content

    def keep_deletions(self, bucket: str) -> None:
        """Removes the files of every object of a bucket that moto holds no longer."""
        present = self.backend.get_bucket(bucket).keys
        for name in [name for owner, name in self.contents if owner == bucket and name not in present]:
            self.keep_object(bucket, name)

    def keep_bucket(self, bucket: str) -> None:
        """Makes the record of one bucket equal to what moto holds."""
        record_path = self.path / "buckets" / f"{bucket}.json"
        if bucket not in self.backend.buckets:
            record_path.unlink(missing_ok=True)
            shutil.rmtree(self.path / "objects" / bucket, ignore_errors=True)
            return
        held = self.backend.buckets[bucket]
        record = {"name": bucket, "region": held.region_name, "created": held.creation_date.isoformat()}
        write_record(record_path, record)

    def restore(self, bucket: str, name: str) -> None:
        """Gives moto the object as it is in the files again, after a change could not be written."""
        keys = self.backend.get_bucket(bucket).keys
        if (bucket, name) in self.contents:
            self.load_object(self.record_path(bucket, name))
        elif name in keys:
            keys.pop(name)


def read_record(path: Path) -> dict[str, Any]:
    """A record's fields. Raises StoreError, naming the file, when it is not readable."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}): remove that file, and with it the object.") from None
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Replaces a record in one step: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    try:
        unfinished.write_text(json.dumps(record))
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


@dataclasses.dataclass
class S3Response:
    """A whole WSGI response: what moto answered, held back until its effect is on disk."""

    status: str
    headers: list[tuple[str, str]]
    body: list[bytes]

    @property
    def succeeded(self) -> bool:
        """Whether the status is a 2xx one."""
        return self.status.startswith("2")


def ask(application: "WSGIApplication", environ: "WSGIEnvironment") -> S3Response:
    """Runs a WSGI application to its end."""
    answer = S3Response("500 Internal Server Error", [], [])

    def start_response(
        status: str, headers: list[tuple[str, str]], _exception: object = None, /
    ) -> Callable[[bytes], object]:
        answer.status, answer.headers = status, headers
        return answer.body.append

    chunks = application(environ, start_response)
    try:
        answer.body.extend(chunks)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    return answer


def refusal(status: str, code: str, message: str) -> S3Response:
    """An S3 error."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>'
    )
    encoded = body.encode()
    return S3Response(status, [("content-type", "application/xml"), ("content-length", str(len(encoded)))], [encoded])


def range_of(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a `Range` header, or None when moto shall decide what the header means."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if found is None or size == 0 or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        return (max(size - int(last), 0), size - 1) if int(last) > 0 else None
    begin, end = int(first), min(int(last), size - 1) if last else size - 1
    return (begin, end) if begin <= end else None


class Application:
    """The WSGI application: moto's, one request at a time, with its changes kept and content streamed from files.

    Moto is not made for threads, so a lock is held while it works; content leaves from its file, outside of the lock.
    """

    def __init__(self, moto: "WSGIApplication", store: Store) -> None:
        self.moto = moto
        self.store = store
        self.lock = threading.Lock()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answers one request."""
        # Moto looks for the path as it was sent, where `a%2Fb` differs from `a/b`, under the name werkzeug gives it.
        environ["RAW_URI"] = environ["REQUEST_URI"]
        bucket, _, name = unquote(environ["REQUEST_URI"].split("?", 1)[0]).lstrip("/").partition("/")
        parameters = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True).keys() - IGNORED_PARAMETERS
        method = environ["REQUEST_METHOD"]
        with self.lock:
            if "HTTP_ORIGIN" in environ:
                answer = refusal("403 Forbidden", "AccessDenied", "Web pages may not use the local S3.")
            elif method in {"GET", "HEAD"}:
                content = self.content(environ, bucket, name) if name and not parameters else None
                if content is not None:
                    file, status, headers = content
                    start_response(status, headers)
                    if method == "HEAD":
                        file.close()
                        return []
                    wrapper: Iterable[bytes] = environ["wsgi.file_wrapper"](file, COPY_CHUNK_BYTES)
                    return wrapper
                answer = ask(self.moto, environ)
            else:
                answer = self.change(environ, bucket, name, parameters)
        start_response(answer.status, answer.headers)
        return answer.body

    def change(self, environ: "WSGIEnvironment", bucket: str, name: str, parameters: set[str]) -> S3Response:
        """Lets moto make a change, and writes it before the answer is given."""
        from moto.s3.models import FakeKey, FakeMultipart

        method = environ["REQUEST_METHOD"]
        unkept = parameters - (KEPT_OBJECT_CHANGES if name else KEPT_BUCKET_CHANGES)
        if method == "POST" and not parameters:
            unkept = {"a form upload"}
        if unkept:
            what = ", ".join(sorted(unkept))
            return refusal("501 Not Implemented", "NotImplemented", f"The local S3 does not keep {what}.")
        answer = ask(self.moto, environ)
        # Moto remembers every object that ever was, for the sake of its own tests.
        for kind in (FakeKey, FakeMultipart):
            kind.instances_tracked.clear()  # type: ignore[union-attr]  # made by moto's metaclass
        if not answer.succeeded or parameters & {"uploads", "partNumber"}:
            return answer
        try:
            if name:
                self.store.keep_object(bucket, name)
            elif "delete" in parameters:
                self.store.keep_deletions(bucket)
            else:
                self.store.keep_bucket(bucket)
        except OSError as error:
            print(f"{method} {bucket}/{name} could not be written: {error}", file=sys.stderr, flush=True)
            if name:
                self.store.restore(bucket, name)
            return refusal(
                "507 Insufficient Storage", "InternalError", f"Could not be written to disk: {error.strerror}"
            )
        return answer

    def content(
        self, environ: "WSGIEnvironment", bucket: str, name: str
    ) -> tuple[io.BufferedReader, str, list[tuple[str, str]]] | None:
        """An object's file at its first wanted byte, with status and headers; None when moto shall answer instead."""
        if "HTTP_AUTHORIZATION" not in environ or not CONDITIONS_LEFT_TO_MOTO.isdisjoint(environ):
            return None
        key = self.store.backend.get_object(bucket, name) if bucket in self.store.backend.buckets else None
        if key is None or key.storage_class != "STANDARD":
            return None
        # ClickHouse sends the etag with every range it reads. A condition that fails is answered by moto.
        if environ.get("HTTP_IF_MATCH", key.etag).strip('"') != key.etag.strip('"'):
            return None
        if environ.get("HTTP_IF_NONE_MATCH", "").strip('"') in {key.etag.strip('"'), "*"}:
            return None
        headers = {**key.response_dict, **key.metadata, "Accept-Ranges": "bytes"}
        status, begin = "200 OK", 0
        wanted = environ.get("HTTP_RANGE")
        if wanted:
            limits = range_of(wanted, key.size)
            if limits is None:
                return None
            begin, end = limits
            status = "206 Partial Content"
            headers |= {"content-length": str(end - begin + 1), "content-range": f"bytes {begin}-{end}/{key.size}"}
        elif environ.get("HTTP_X_AMZ_CHECKSUM_MODE") == "ENABLED" and key.checksum_algorithm and key.checksum_value:
            parts = f"-{key.checksum_parts}" if key.checksum_type == "COMPOSITE" else ""
            headers[f"x-amz-checksum-{key.checksum_algorithm.lower()}"] = f"{key.checksum_value}{parts}"
            if key.checksum_type:
                headers["x-amz-checksum-type"] = key.checksum_type
        file = self.store.contents[bucket, name].open("rb")
        file.seek(begin)
        return file, status, [(header, str(value)) for header, value in headers.items()]


def build_application(path: Path, buckets: tuple[str, ...], region: str) -> Application:
    """The S3 of a data directory, with these buckets made. Raises StoreError when the directory cannot be used.

    Sets environment variables and the directory of temporary files: it is meant for a process of its own.
    """
    # Read by moto when it is imported. Without the first, any web page could read the objects.
    os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"
    os.environ["S3_IGNORE_SUBDOMAIN_BUCKETNAME"] = "true"
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import create_backend_app
    from moto.s3.models import s3_backends

    # Large bodies pass through temporary files: on the disk of the data, not in a /tmp that may be memory.
    incoming = path / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    tempfile.tempdir = str(incoming)

    moto = create_backend_app("s3")
    moto.debug = False
    store = Store(path, s3_backends[DEFAULT_ACCOUNT_ID]["aws"])
    store.load()
    for bucket in buckets:
        if bucket not in store.backend.buckets:
            store.backend.create_bucket(bucket, region)
            store.keep_bucket(bucket)
    return Application(moto, store)


def build_server(application: Application, listener: socket.socket) -> "BaseWSGIServer":
    """The server of an application on a bound socket."""
    from waitress.channel import HTTPChannel
    from waitress.server import create_server
    from waitress.task import WSGITask

    class Task(WSGITask):
        """A response whose metadata keep the lower case that S3 gives them; waitress capitalizes every header."""

        def build_response_header(self) -> bytes:
            """The head of the response."""
            return METADATA_HEADER.sub(lambda found: found[0].lower(), super().build_response_header())

    class Channel(HTTPChannel):
        """A connection on which an empty body needs no invitation.

        boto3 sends `Expect: 100-continue` with empty objects too; waitress would invite a body and wait for ever.
        """

        task_class = Task

        def send_continue(self) -> None:
            """Invites the client to send the body, if there is one."""
            request = self.request
            if request is not None and not request.content_length and not request.chunked:
                request.expect_continue = False
            else:
                super().send_continue()

    # Of several sockets it would make several servers.
    server = cast(
        "BaseWSGIServer",
        create_server(
            application,
            sockets=[listener],
            threads=WORKER_THREADS,
            connection_limit=CONNECTION_LIMIT,
            max_request_body_size=MAXIMUM_BODY_BYTES,
            # select() cannot watch as many connections.
            asyncore_use_poll=True,
            ident=None,
        ),
    )
    server.channel_class = Channel
    return server


def return_memory() -> None:
    """Lets glibc give freed bodies of requests back at once: it would keep hundreds of MB in reserve."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(MALLOPT_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
        set_option(MALLOPT_ARENA_MAX, 2)


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True)
@click.option("--path", type=click.Path(path_type=Path, file_okay=False, resolve_path=True), required=True)
@click.option("--bucket", "buckets", multiple=True, help="Bucket that must exist; may be repeated.")
@click.option("--region", default="us-east-1", show_default=True, help="Region of the buckets that are made.")
def main(port: int, path: Path, buckets: tuple[str, ...], region: str) -> None:
    """Run the local S3 until SIGTERM or SIGINT; prints `ready PORT` when it accepts connections."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return_memory()
    # More requests than threads for a moment is no news.
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
        # Waitress reads this much of a file anew for every piece that a slow client accepts.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            listener.bind((ports.LOOPBACK, port))
        except OSError as error:
            raise StoreError(f"Port {port} cannot be used ({error.strerror}): {ports.holder(port)} has it.") from None
        application = build_application(path, buckets, region)
        server = build_server(application, listener)
    except (OSError, StoreError) as error:
        raise click.ClickException(str(error)) from None
    print(f"ready {port}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
