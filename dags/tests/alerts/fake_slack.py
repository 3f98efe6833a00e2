"""A fake Slack: an HTTP server on loopback that stores messages, enforces Slack's limits, and fails on command.

It answers the calls of slack_sdk's WebClient to chat.postMessage, chat.update, conversations.history,
conversations.replies and auth.test. Tests compare with the messages that it stored.
"""

import contextlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl

TOKEN = "xoxb-fake-slack"  # noqa: S105 - of the fake
TEXT_LIMIT = 4000
BLOCKS_LIMIT = 50
SECTION_LIMIT = 3000
FIELD_LIMIT = 2000
FIELDS_LIMIT = 10
HEADER_LIMIT = 150
ELEMENTS_LIMIT = {"context": 10, "actions": 25}
BUTTON_LIMIT = 75
URL_LIMIT = 3000
METADATA_LIMIT = 8000
SECONDS_BETWEEN_MESSAGES = 1.0


class Kind(StrEnum):
    """The way in which a call fails."""

    ERROR = "error"
    STATUS = "status"
    HTML = "html"
    DROP = "drop"
    HANG = "hang"
    DRIP = "drip"
    RATE_LIMIT = "rate limit"


@dataclass
class Fault:
    """A failure of calls. With `stored` the call is carried out first. With `times` None it does not end."""

    kind: Kind
    code: str = ""
    status: int = 503
    seconds: float = 0
    stored: bool = False
    method: str | None = None
    channel: str | None = None
    times: int | None = None


@dataclass
class Stored:
    """A message as Slack stores it."""

    channel: str
    ts: str
    text: str
    blocks: list[dict[str, Any]]
    thread_ts: str | None
    metadata: dict[str, Any]
    is_broadcast: bool
    posted_at: float
    earlier_texts: list[str] = field(default_factory=list)

    @property
    def key(self) -> str | None:
        """The key in the metadata of the message."""
        key = self.metadata.get("event_payload", {}).get("key")
        return None if key is None else str(key)

    def everything(self) -> str:
        """Everything in the message, as text."""
        return json.dumps([self.text, self.blocks, self.metadata, self.earlier_texts], ensure_ascii=False)


class SlackError(Exception):
    """An error code that a call is answered with."""


class FakeSlack:
    """The state of the fake. Channels have names and ids. As in Slack, only posts accept a name."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()
        self.messages: list[Stored] = []
        # Method and channel name of every call that has come in.
        self.calls: list[tuple[str, str]] = []
        self.refusals: list[str] = []
        self.faults: list[Fault] = []
        self.channels: dict[str, str] = {}
        self.enforces_rate = False
        self.base_url = ""
        self._clock = clock
        self._number = itertools.count(1)
        self._last_post: dict[str, float] = {}
        self.closing = threading.Event()

    def add_channel(self, name: str) -> str:
        """Create a channel and return its id."""
        return self.channels.setdefault(name, f"C{len(self.channels) + 1:09d}")

    def fail(self, kind: Kind, **how: Any) -> Fault:
        """Make calls fail from now on: those of a method, of a channel (by name), or all. See Fault."""
        fault = Fault(kind, **how)
        with self.lock:
            self.faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Make calls succeed again."""
        with self.lock:
            self.faults.clear()

    def copies(self, key: str) -> list[Stored]:
        """Return the messages with a key, in the order of their arrival."""
        with self.lock:
            return [message for message in self.messages if message.key == key]

    def all_keys(self) -> list[str | None]:
        """Return the keys of all messages, in the order of their arrival."""
        with self.lock:
            return [message.key for message in self.messages]

    def in_channel(self, name: str) -> list[Stored]:
        """Return the messages of a channel, threads included, in the order of their arrival."""
        with self.lock:
            return [message for message in self.messages if message.channel == name]

    def fault_of(self, method: str, channel: str) -> Fault | None:
        """Return the first fault that applies to a call, and use it up once."""
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and fault.method in (None, method) and fault.channel in (None, channel):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def name_of(self, channel: str) -> str:
        """Return the name of a channel, given its name or id."""
        return next((name for name, id_ in self.channels.items() if channel in (name, id_)), channel)

    def answer(self, method: str, arguments: Mapping[str, Any], token: str | None) -> dict[str, Any]:
        """Carry out a call. Raises SlackError with Slack's code for what Slack rejects."""
        if token is None:
            raise SlackError("not_authed")
        if token != TOKEN:
            raise SlackError("invalid_auth")
        call = {
            "chat.postMessage": self._post,
            "chat.update": self._update,
            "conversations.history": self._history,
            "conversations.replies": self._replies,
            "auth.test": self._auth,
        }.get(method)
        if call is None:
            raise SlackError("unknown_method")
        with self.lock:
            return {"ok": True, **call(arguments)}

    def too_fast(self, channel: str) -> bool:
        """Return whether a post to the channel comes too soon after the previous one. If not, record it."""
        with self.lock:
            now = time.monotonic()
            if now - self._last_post.get(channel, -10.0) < SECONDS_BETWEEN_MESSAGES:
                return True
            self._last_post[channel] = now
            return False

    def _post(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name = self.name_of(str(arguments.get("channel")))
        if name not in self.channels:
            raise SlackError("channel_not_found")
        check_message(arguments)
        thread_ts = arguments.get("thread_ts")
        if thread_ts is not None and not any(one.channel == name and one.ts == thread_ts for one in self.messages):
            raise SlackError("thread_not_found")
        ts = f"{int(self._clock())}.{next(self._number):06d}"
        self.messages.append(
            Stored(
                channel=name,
                ts=ts,
                text=str(arguments.get("text", "")),
                blocks=arguments.get("blocks") or [],
                thread_ts=thread_ts,
                metadata=arguments.get("metadata") or {},
                is_broadcast=bool(arguments.get("reply_broadcast")),
                posted_at=time.monotonic(),
            )
        )
        return {"channel": self.channels[name], "ts": ts}

    def _update(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        message = self._message(self._by_id(arguments), str(arguments.get("ts")))
        check_message(arguments)
        message.earlier_texts.append(message.text)
        message.text = str(arguments.get("text", ""))
        message.blocks = arguments.get("blocks") or []
        message.metadata = arguments.get("metadata") or message.metadata
        return {"channel": self.channels[message.channel], "ts": message.ts}

    def _history(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name = self._by_id(arguments)
        return self._page([m for m in self.messages if m.channel == name and m.thread_ts is None], arguments)

    def _replies(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        name, ts = self._by_id(arguments), str(arguments.get("ts"))
        self._message(name, ts)
        return self._page([m for m in self.messages if m.channel == name and ts in (m.ts, m.thread_ts)], arguments)

    def _auth(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        del arguments
        return {"user": "alerts", "bot_id": "B1"}

    def _page(self, messages: list[Stored], arguments: Mapping[str, Any]) -> dict[str, Any]:
        with_metadata = str(arguments.get("include_all_metadata", "0")) == "1"
        oldest = float(arguments.get("oldest") or 0)
        start, limit = int(arguments.get("cursor") or 0), int(arguments.get("limit") or 100)
        found = [message for message in reversed(messages) if float(message.ts) > oldest]
        page = [
            {"type": "message", "ts": one.ts, "text": one.text} | ({"metadata": one.metadata} if with_metadata else {})
            for one in found[start : start + limit]
        ]
        more = start + limit < len(found)
        return {"messages": page, "response_metadata": {"next_cursor": str(start + limit) if more else ""}}

    def _by_id(self, arguments: Mapping[str, Any]) -> str:
        for name, id_ in self.channels.items():
            if id_ == arguments.get("channel"):
                return name
        raise SlackError("channel_not_found")

    def _message(self, name: str, ts: str) -> Stored:
        for message in self.messages:
            if message.channel == name and message.ts == ts:
                return message
        raise SlackError("message_not_found")


def check_message(arguments: Mapping[str, Any]) -> None:
    """Check a message against Slack's limits. Raises SlackError with Slack's code."""
    text, blocks = arguments.get("text") or "", arguments.get("blocks") or []
    if not text and not blocks:
        raise SlackError("no_text")
    if units(text) > TEXT_LIMIT:
        raise SlackError("msg_too_long")
    if len(json.dumps(arguments.get("metadata") or {})) > METADATA_LIMIT:
        raise SlackError("metadata_too_large")
    if len(blocks) > BLOCKS_LIMIT or not all(_block_is_valid(block) for block in blocks):
        raise SlackError("invalid_blocks")


def mrkdwn_of(message: Stored) -> Iterator[str]:
    """Return every part of a message in which Slack interprets mentions, links and formatting."""
    yield message.text
    for found in _objects(message.blocks):
        if found.get("type") == "mrkdwn":
            yield found["text"]


def plain_of(message: Stored) -> Iterator[str]:
    """Return every part of a message that Slack shows as it is."""
    for found in _objects(message.blocks):
        if found.get("type") == "plain_text":
            yield found["text"]


def live_markup(mrkdwn: str) -> list[str]:
    """Return what Slack would interpret: `!channel`, `@U1`, `#C1`, and anything else in angle brackets, as a link."""
    return re.findall(r"<([^<>]*)>", mrkdwn)


def units(text: str) -> int:
    """Return the length of a text in UTF-16 code units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _objects(one)


def _block_is_valid(block: Mapping[str, Any]) -> bool:
    match block.get("type"):
        case "header":
            return _text_is_valid(block.get("text"), HEADER_LIMIT, {"plain_text"})
        case "section":
            fields = block.get("fields", [])
            return (
                ("text" in block or bool(fields))
                and ("text" not in block or _text_is_valid(block["text"], SECTION_LIMIT))
                and len(fields) <= FIELDS_LIMIT
                and all(_text_is_valid(one, FIELD_LIMIT) for one in fields)
            )
        case "context":
            elements = block.get("elements", [])
            return 0 < len(elements) <= ELEMENTS_LIMIT["context"] and all(
                _text_is_valid(one, SECTION_LIMIT) for one in elements
            )
        case "actions":
            elements = block.get("elements", [])
            return 0 < len(elements) <= ELEMENTS_LIMIT["actions"] and all(
                one.get("type") == "button"
                and _text_is_valid(one.get("text"), BUTTON_LIMIT, {"plain_text"})
                and len(one.get("url", "")) <= URL_LIMIT
                for one in elements
            )
    return False


def _text_is_valid(text: Any, limit: int, types: Collection[str] = ("plain_text", "mrkdwn")) -> bool:
    if not isinstance(text, dict) or text.get("type") not in types or not isinstance(text.get("text"), str):
        return False
    known = {"type", "text", "emoji"} if text["type"] == "plain_text" else {"type", "text", "verbatim"}
    return set(text) <= known and 0 < units(text["text"]) <= limit


class _Handler(BaseHTTPRequestHandler):
    slack: ClassVar[FakeSlack]
    # A connection for each call, as slack_sdk makes them.
    protocol_version = "HTTP/1.0"

    def do_POST(self) -> None:
        slack, method = self.slack, self.path.rsplit("/", 1)[-1]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        in_json = "json" in self.headers.get("Content-Type", "")
        arguments = json.loads(body) if body and in_json else dict(parse_qsl(body))
        channel = slack.name_of(str(arguments.get("channel", "")))
        with slack.lock:
            slack.calls.append((method, channel))
        fault = slack.fault_of(method, channel)
        if fault is None and slack.enforces_rate and method == "chat.postMessage" and slack.too_fast(channel):
            fault = Fault(Kind.RATE_LIMIT, seconds=1)
        if fault is None or fault.stored or fault.kind is Kind.DRIP:
            answer = self._carried_out(method, arguments)
        if fault is None:
            self._send(200, answer)
        else:
            self._fail(fault, answer if fault.kind is Kind.DRIP else {})

    def _carried_out(self, method: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        try:
            return self.slack.answer(method, arguments, token if scheme == "Bearer" else None)
        except SlackError as error:
            with self.slack.lock:
                self.slack.refusals.append(str(error))
            return {"ok": False, "error": str(error)}

    def _fail(self, fault: Fault, answer: dict[str, Any]) -> None:
        match fault.kind:
            case Kind.ERROR:
                self._send(200, {"ok": False, "error": fault.code})
            case Kind.STATUS:
                self._send(fault.status, None)
            case Kind.HTML:
                self._send(200, None)
            case Kind.RATE_LIMIT:
                self._send(429, {"ok": False, "error": "ratelimited"}, {"Retry-After": str(int(fault.seconds))})
            case Kind.HANG:
                self.slack.closing.wait(fault.seconds)
            case Kind.DRIP:
                self._drip(json.dumps(answer).encode(), fault.seconds)
            case Kind.DROP:
                # Without an answer the client sees the connection end.
                self.close_connection = True

    def _drip(self, body: bytes, seconds_between_bytes: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for byte in body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.slack.closing.wait(seconds_between_bytes):
                return

    def _send(self, status: int, answer: dict[str, Any] | None, headers: Mapping[str, str] | None = None) -> None:
        body = b"<!DOCTYPE html><html>Sorry</html>" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if answer is None else "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: tests read `calls`."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that have disconnected, as many tests make them do."""


@contextlib.contextmanager
def serving(*channels: str, clock: Callable[[], float] = time.time) -> Iterator[FakeSlack]:
    """Serve a fake Slack with these channels on a free port, until the end of the block."""
    slack = FakeSlack(clock)
    for channel in channels:
        slack.add_channel(channel)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"slack": slack}))
    slack.base_url = f"http://127.0.0.1:{server.server_address[1]}/api/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield slack
    finally:
        slack.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
