"""A web server on loopback in place of Open Exchange Rates, which sends the responses of a test in turn."""

import datetime as dt
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

APP_ID = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True)
class Answer:
    """One answer. With `silence_seconds` the server waits before it; with `trickle` it sends byte by byte."""

    body: bytes
    status: int = 200
    silence_seconds: float = 0
    trickle: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Source:
    """The responses to send, the last one repeatedly, and the requests so far."""

    base_url: str
    answers: list[Answer] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)

    def next_answer(self) -> Answer:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def rates_body(published_at: dt.datetime, rates: dict[str, Any] | None = None, **more: Any) -> bytes:
    """An answer in the documented form: 120 currencies, and `rates` in place of some of them."""
    figures: dict[str, Any] = {f"X{index:02}": index + 0.5 for index in range(119)}
    figures |= {"USD": 1, "EUR": 0.8625, "GBP": 0.7512, **(rates or {})}
    return json.dumps({"timestamp": int(published_at.timestamp()), "base": "USD", "rates": figures, **more}).encode()


def refusal(status: int, word: str) -> Answer:
    """A refusal in the documented form."""
    body = {"error": True, "status": status, "message": word, "description": f"{word}: {APP_ID}"}
    return Answer(json.dumps(body).encode(), status)


@contextmanager
def source_server() -> Iterator[Source]:
    """Serve until the end of the block."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            source.paths.append(self.path)
            source.authorizations.append(self.headers.get("Authorization"))
            answer = source.next_answer()
            over.wait(answer.silence_seconds)
            try:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if not answer.trickle:
                    self.wfile.write(answer.body)
                    return
                for byte in answer.body:
                    self.wfile.write(bytes([byte]))
                    if over.is_set():
                        return
                    time.sleep(0.05)
            except OSError:
                return  # the client has gone, as some tests want

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parameter's name in the base class
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    source = Source(base_url=f"http://127.0.0.1:{server.server_address[1]}/api")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield source
    finally:
        over.set()
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()
