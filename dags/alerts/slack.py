"""One call to Slack, and what its answer means.

Belongs here: Slack's methods, error codes and time limits. Not here: what is sent when, and what is done about an
answer (`deliver.py`).

slack_sdk's own retries are off: after a lost response they would post a second time. A socket's timeout holds for each
read, so a server that answers a byte at a time is left alone after a time for the whole call.
"""

import datetime as dt
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from dags.alerts.redact import redact

if TYPE_CHECKING:
    from slack_sdk import WebClient

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_SECONDS = 8
# Calls of this process that Slack has not answered yet, those that nobody waits for any more included.
MOST_UNANSWERED_CALLS = 32
EVENT_TYPE = "alert_router_message"
DEFAULT_RETRY_AFTER_SECONDS = 30
NOTE_LIMIT = 200
HISTORY_PAGE = 200
HISTORY_PAGES = 10
# Slack's clock and ours may differ by this much.
CLOCK_DIFFERENCE = dt.timedelta(minutes=5)

_unanswered = threading.BoundedSemaphore(MOST_UNANSWERED_CALLS)


class SlackOutcome(StrEnum):
    """What Slack made of a call."""

    SENT = "sent"
    CONTENT_REFUSED = "content refused"
    CHANNEL_REFUSED = "channel refused"
    THREAD_REFUSED = "thread refused"
    AUTH_REFUSED = "auth refused"
    RATE_LIMITED = "rate limited"
    # It never left this machine.
    NOT_SENT = "not sent"
    # It may have been done.
    AMBIGUOUS = "ambiguous"
    # Of a search only: it is not there, or the history may not be read.
    ABSENT = "absent"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class SlackAnswer:
    """What Slack said. `channel_id` and `ts` are of a message that was sent or found."""

    outcome: SlackOutcome
    note: str = ""
    channel_id: str | None = None
    ts: str | None = None
    retry_after_seconds: float = 0


AUTH_REFUSALS = {
    "access_denied",
    "account_inactive",
    "ekm_access_denied",
    "enterprise_is_restricted",
    "invalid_auth",
    "missing_scope",
    "no_permission",
    "not_allowed_token_type",
    "not_authed",
    "org_login_required",
    "team_access_not_granted",
    "team_not_found",
    "token_expired",
    "token_revoked",
    "two_factor_setup_required",
}
CHANNEL_REFUSALS = {
    "channel_is_limited_access",
    "channel_not_found",
    "external_channel_migrating",
    "is_archived",
    "is_inactive",
    "messages_tab_disabled",
    "not_in_channel",
    "restricted_action",
    "restricted_action_non_threadable_channel",
    "restricted_action_read_only_channel",
    "restricted_action_thread_only_channel",
}
THREAD_REFUSALS = {
    "cannot_reply_to_message",
    "cant_update_message",
    "edit_window_closed",
    "message_not_found",
    "restricted_action_thread_locked",
    "thread_not_found",
}
RATE_LIMITS = {"message_limit_exceeded", "rate_limited", "ratelimited"}
AMBIGUOUS_ERRORS = {
    "fatal_error",
    "internal_error",
    "request_timeout",
    "service_unavailable",
    "team_added_to_org",
    "update_failed",
}
# Slack's codes are words; anything else, such as a page of a proxy, is no answer of Slack.
_CODE = re.compile(r"[a-z0-9_]{1,80}")
TOO_MANY_REQUESTS = 429
OK_STATUS = 200


def make_client(token: str, base_url: str | None = None) -> "WebClient":
    """A client that makes each call once, with a timeout. `base_url` is for tests."""
    from slack_sdk import WebClient

    quiet = logging.getLogger(f"{__name__}.client")
    # What it logs is in the answer, and at DEBUG it would log whole messages.
    quiet.setLevel(logging.CRITICAL)
    return WebClient(
        token=token,
        base_url=base_url or WebClient.BASE_URL,
        timeout=SOCKET_TIMEOUT_SECONDS,
        retry_handlers=[],
        logger=quiet,
    )


def make_logging_client() -> "WebClient":
    """Return a client that sends nothing and logs what it would send, for use outside production."""
    from slack_sdk import WebClient
    from slack_sdk.web import SlackResponse

    class LoggingClient(WebClient):
        # Every method of the client ends in `api_call`.
        def api_call(self, api_method: str, **arguments: Any) -> SlackResponse:
            message: Mapping[str, Any] = arguments.get("json") or arguments.get("params") or {}
            channel, text = message.get("channel"), message.get("text")
            logger.info("Slack is off outside production. Not sent: %s to %s: %s", api_method, channel, text)
            return SlackResponse(
                client=self,
                http_verb="POST",
                api_url=api_method,
                req_args={},
                data={"ok": True, "channel": channel, "ts": "0.000000"},
                headers={},
                status_code=200,
            )

    return LoggingClient()


def post(
    client: "WebClient",
    channel: str,
    text: str,
    blocks: Sequence[Mapping[str, Any]],
    key: str,
    thread_ts: str | None = None,
    *,
    broadcast: bool = False,
) -> SlackAnswer:
    """Posts a message, which carries the key in its metadata. Never raises.

    `broadcast` shows a reply in the channel too: who does not follow its thread would not see it.
    """
    return _answer(
        lambda: client.chat_postMessage(
            channel=channel,
            text=text,
            blocks=[dict(block) for block in blocks] or None,
            thread_ts=thread_ts,
            reply_broadcast=broadcast or None,
            metadata=_metadata(key),
            unfurl_links=False,
            unfurl_media=False,
            link_names=False,
            parse="none",
        )
    )


def edit(
    client: "WebClient", channel_id: str, ts: str, text: str, blocks: Sequence[Mapping[str, Any]], key: str
) -> SlackAnswer:
    """Replaces a message; doing it twice is doing it once. `key` is that of the message. Never raises."""
    return _answer(
        lambda: client.chat_update(
            channel=channel_id,
            ts=ts,
            text=text,
            # An empty list removes the blocks of before.
            blocks=[dict(block) for block in blocks],
            metadata=_metadata(key),
            link_names=False,
            parse="none",
        )
    )


def probe(client: "WebClient") -> SlackAnswer:
    """Whether Slack answers at all, by a call that changes nothing: SENT when it does. Never raises."""
    return _answer(client.auth_test, of_message=False)


def find(
    client: "WebClient",
    channel_id: str,
    key: str,
    since: dt.datetime,
    thread_ts: str | None = None,
    page_size: int = HISTORY_PAGE,
) -> SlackAnswer:
    """Looks for the message with that key in a channel, or in a thread: SENT when it is there, else ABSENT.

    UNREADABLE: the token or the channel does not allow it. AMBIGUOUS and NOT_SENT: it failed this time, or there are
    too many messages to tell. Never raises.
    """
    oldest = f"{(since - CLOCK_DIFFERENCE).timestamp():.6f}"
    cursor: str | None = None
    for _ in range(HISTORY_PAGES):
        page = _page(client, channel_id, oldest, cursor, thread_ts, page_size)
        if isinstance(page, SlackAnswer):
            refused = {
                SlackOutcome.AUTH_REFUSED,
                SlackOutcome.CHANNEL_REFUSED,
                SlackOutcome.THREAD_REFUSED,
                SlackOutcome.CONTENT_REFUSED,
            }
            return SlackAnswer(SlackOutcome.UNREADABLE, page.note) if page.outcome in refused else page
        for message in page.get("messages") or ():
            metadata = message.get("metadata") or {}
            if (metadata.get("event_payload") or {}).get("key") == key:
                return SlackAnswer(SlackOutcome.SENT, "found in the history", channel_id, message["ts"])
        cursor = (page.get("response_metadata") or {}).get("next_cursor")
        if not cursor:
            return SlackAnswer(SlackOutcome.ABSENT, "not in the history")
    return SlackAnswer(SlackOutcome.AMBIGUOUS, f"more than {HISTORY_PAGES * page_size} messages to look through")


def start(
    call: Callable[[], SlackAnswer], tell: Callable[[SlackAnswer], None], unanswered: threading.Semaphore = _unanswered
) -> None:
    """Makes a call on a thread of its own, which hands the answer to `tell`, however late it comes."""
    if not unanswered.acquire(blocking=False):
        tell(SlackAnswer(SlackOutcome.NOT_SENT, f"{MOST_UNANSWERED_CALLS} earlier calls have not been answered yet"))
        return

    def run() -> None:
        try:
            tell(call())
        finally:
            unanswered.release()

    # A daemon: a call that hangs must not keep the process from ending.
    threading.Thread(target=run, daemon=True, name="slack call").start()


def classify(error_code: str, status: int = OK_STATUS, retry_after: str | None = None) -> SlackAnswer:
    """What an answer that is not "ok" means, by its HTTP status and Slack's error code."""
    note = redact(error_code)[:NOTE_LIMIT]
    if status == TOO_MANY_REQUESTS or error_code in RATE_LIMITS:
        return SlackAnswer(SlackOutcome.RATE_LIMITED, note, retry_after_seconds=_seconds(retry_after))
    if status != OK_STATUS or error_code in AMBIGUOUS_ERRORS or not _CODE.fullmatch(error_code):
        return SlackAnswer(SlackOutcome.AMBIGUOUS, note if status == OK_STATUS else f"HTTP status {status}")
    for outcome, codes in (
        (SlackOutcome.AUTH_REFUSED, AUTH_REFUSALS),
        (SlackOutcome.CHANNEL_REFUSED, CHANNEL_REFUSALS),
        (SlackOutcome.THREAD_REFUSED, THREAD_REFUSALS),
    ):
        if error_code in codes:
            return SlackAnswer(outcome, note)
    # Slack refused it for a reason of its own: with less in it, it may pass.
    return SlackAnswer(SlackOutcome.CONTENT_REFUSED, note)


def _page(
    client: "WebClient", channel_id: str, oldest: str, cursor: str | None, thread_ts: str | None, page_size: int
) -> Mapping[str, Any] | SlackAnswer:
    pages: list[Mapping[str, Any]] = []

    def read() -> Any:
        if thread_ts is None:
            page = client.conversations_history(
                channel=channel_id, oldest=oldest, cursor=cursor, limit=page_size, include_all_metadata=True
            )
        else:
            page = client.conversations_replies(
                channel=channel_id,
                ts=thread_ts,
                oldest=oldest,
                cursor=cursor,
                limit=page_size,
                include_all_metadata=True,
            )
        pages.append(dict(page.data) if isinstance(page.data, dict) else {})
        return page

    answer = _answer(read, of_message=False)
    return pages[0] if answer.outcome is SlackOutcome.SENT else answer


def _answer(call: Callable[[], Any], *, of_message: bool = True) -> SlackAnswer:
    from slack_sdk.errors import SlackApiError

    try:
        response = call()
    except SlackApiError as error:
        data = error.response.data if isinstance(error.response.data, dict) else {}
        headers = {name.lower(): value for name, value in error.response.headers.items()}
        return classify(str(data.get("error", "")), error.response.status_code, headers.get("retry-after"))
    except Exception as error:  # noqa: BLE001 - whatever went wrong, the call may have been carried out
        outcome = SlackOutcome.NOT_SENT if _never_left(error) else SlackOutcome.AMBIGUOUS
        return SlackAnswer(outcome, redact(f"{type(error).__name__}: {error}")[:NOTE_LIMIT])
    if of_message and not response.get("ts"):
        return SlackAnswer(SlackOutcome.AMBIGUOUS, "ok, without the time stamp of a message")
    return SlackAnswer(SlackOutcome.SENT, channel_id=response.get("channel"), ts=response.get("ts"))


def _never_left(error: Exception) -> bool:
    """Whether the connection was never made, so that nothing can have arrived."""
    import socket
    import ssl

    cause = getattr(error, "reason", error)
    return isinstance(cause, ConnectionRefusedError | socket.gaierror | ssl.SSLCertVerificationError)


def _metadata(key: str) -> dict[str, Any]:
    return {"event_type": EVENT_TYPE, "event_payload": {"key": key}}


def _seconds(retry_after: str | None) -> float:
    try:
        return max(float(retry_after or ""), 1)
    except ValueError:
        return DEFAULT_RETRY_AFTER_SECONDS
