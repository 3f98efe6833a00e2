"""The WSGI application of the local S3: moto's, with its changes written to disk and content streamed from files."""

import dataclasses
import io
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from dags.local.s3.store import COPY_CHUNK_BYTES, Store

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Query parameters that say which state a PUT, POST or DELETE changes; any other state would be lost at a restart.
KEPT_OBJECT_CHANGES = {"tagging", "uploads", "uploadId", "partNumber"}
KEPT_BUCKET_CHANGES = {"delete"}
CONDITIONS_LEFT_TO_MOTO = {"HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE", "HTTP_IF_RANGE"}
# Clients add these to every request; they have no effect.
IGNORED_PARAMETERS = {"x-id"}


@dataclasses.dataclass
class S3Response:
    """A complete WSGI response of moto, held back until its change is on disk."""

    status: str
    headers: list[tuple[str, str]]
    body: list[bytes]

    @property
    def succeeded(self) -> bool:
        """Whether the status is 2xx."""
        return self.status.startswith("2")


def call(application: "WSGIApplication", environ: "WSGIEnvironment") -> S3Response:
    """Run a WSGI application on a request and return its complete response."""
    response = S3Response("500 Internal Server Error", [], [])

    def start_response(
        status: str, headers: list[tuple[str, str]], _exception: object = None, /
    ) -> Callable[[bytes], object]:
        response.status, response.headers = status, headers
        return response.body.append

    chunks = application(environ, start_response)
    try:
        response.body.extend(chunks)
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
    return response


def error_response(status: str, code: str, message: str) -> S3Response:
    """Return an S3 error."""
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>'
    )
    encoded = body.encode()
    return S3Response(status, [("content-type", "application/xml"), ("content-length", str(len(encoded)))], [encoded])


def range_of(header: str, size: int) -> tuple[int, int] | None:
    """Return the first and last byte of a `Range` header, or None for a header that moto must interpret."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header)
    if found is None or size == 0 or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        return (max(size - int(last), 0), size - 1) if int(last) > 0 else None
    begin, end = int(first), min(int(last), size - 1) if last else size - 1
    return (begin, end) if begin <= end else None


class Application:
    """Moto's WSGI application, one request at a time, with its changes kept and content streamed from files.

    Moto is not thread-safe, so it works under a lock; content is streamed from its file without the lock.
    """

    def __init__(self, moto: "WSGIApplication", store: Store) -> None:
        self.moto = moto
        self.store = store
        self.lock = threading.Lock()

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer one request."""
        # Moto needs the path as it was sent, where `a%2Fb` differs from `a/b`, under werkzeug's name for it.
        environ["RAW_URI"] = environ["REQUEST_URI"]
        bucket, _, name = unquote(environ["REQUEST_URI"].split("?", 1)[0]).lstrip("/").partition("/")
        parameters = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True).keys() - IGNORED_PARAMETERS
        method = environ["REQUEST_METHOD"]
        with self.lock:
            if "HTTP_ORIGIN" in environ:
                response = error_response("403 Forbidden", "AccessDenied", "Web pages cannot use the local S3.")
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
                response = call(self.moto, environ)
            else:
                response = self.change(environ, bucket, name, parameters)
        start_response(response.status, response.headers)
        return response.body

    def change(self, environ: "WSGIEnvironment", bucket: str, name: str, parameters: set[str]) -> S3Response:
        """Let moto make a change, and write it to disk before returning the response."""
        from moto.s3.models import FakeKey, FakeMultipart

        method = environ["REQUEST_METHOD"]
        unkept = parameters - (KEPT_OBJECT_CHANGES if name else KEPT_BUCKET_CHANGES)
        if method == "POST" and not parameters:
            unkept = {"a form upload"}
        if unkept:
            what = ", ".join(sorted(unkept))
            return error_response("501 Not Implemented", "NotImplemented", f"The local S3 does not keep {what}.")
        response = call(self.moto, environ)
        # Moto keeps a reference to every object it ever made, for its own tests.
        for kind in (FakeKey, FakeMultipart):
            kind.instances_tracked.clear()  # type: ignore[union-attr]  # made by moto's metaclass
        if not response.succeeded or parameters & {"uploads", "partNumber"}:
            return response
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
            return error_response(
                "507 Insufficient Storage", "InternalError", f"Could not be written to disk: {error.strerror}"
            )
        return response

    def content(
        self, environ: "WSGIEnvironment", bucket: str, name: str
    ) -> tuple[io.BufferedReader, str, list[tuple[str, str]]] | None:
        """Return an object's file at the first requested byte, status and headers, or None when moto must answer."""
        if "HTTP_AUTHORIZATION" not in environ or not CONDITIONS_LEFT_TO_MOTO.isdisjoint(environ):
            return None
        key = self.store.backend.get_object(bucket, name) if bucket in self.store.backend.buckets else None
        if key is None or key.storage_class != "STANDARD":
            return None
        # ClickHouse sends the etag with every range that it reads. Moto answers when the condition fails.
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
    """Return the S3 of a data directory, with these buckets created. Raises StoreError when the directory is unusable.

    Sets environment variables and the directory of temporary files of this process.
    """
    # Moto reads these when it is imported. Without the first, any web page could read the objects.
    os.environ["MOTO_DISABLE_GLOBAL_CORS"] = "true"
    os.environ["S3_IGNORE_SUBDOMAIN_BUCKETNAME"] = "true"
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import create_backend_app
    from moto.s3.models import s3_backends

    # Large bodies pass through temporary files: on the disk of the data, because /tmp may be in memory.
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
