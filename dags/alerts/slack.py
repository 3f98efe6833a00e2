"""Single calls to Slack, and what their answers mean. What follows from an answer is in `transitions.py`.

The client is made in `dags/common/slack.py`. Its socket timeout applies to each read, so `deliver.py` also limits the
time of the whole call.
"""

import datetime as dt
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from dags.alerts.redact import redact

if TYPE_CHECKING:
    from slack_sdk import WebClient

# Calls of this process that Slack has not answered yet, including those that are no longer waited for.
MAX_UNANSWERED_CALLS = 32
EVENT_TYPE = "alert_router_message"
DEFAULT_RETRY_AFTER_SECONDS = 30
MAX_NOTE_CHARACTERS = 200
HISTORY_PAGE_SIZE = 200
MAX_HISTORY_PAGES = 10
# Between Slack's clock and this machine's.
MAX_CLOCK_DIFFERENCE = dt.timedelta(minutes=5)

_unanswered = threading.BoundedSemaphore(MAX_UNANSWERED_CALLS)


class SlackOutcome(StrEnum):
    """The result of a call to Slack."""

    SENT = "sent"
    CONTENT_REFUSED = "content refused"
    CHANNEL_REFUSED = "channel refused"
    THREAD_REFUSED = "thread refused"
    AUTH_REFUSED = "auth refused"
    RATE_LIMITED = "rate limited"
    # The request never left this machine.
    NOT_SENT = "not sent"
    # Slack may have carried it out.
    AMBIGUOUS = "ambiguous"
    # Of a search only: the message is not there, or the bot may not read the history.
    ABSENT = "absent"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class SlackAnswer:
    """An answer of Slack. `channel_id` and `ts` identify a message that was sent or found."""

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
# Slack's codes are words. Anything else, such as the error page of a proxy, does not come from Slack.
_CODE = re.compile(r"[a-z0-9_]{1,80}")
TOO_MANY_REQUESTS = 429
OK_STATUS = 200


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
    """Post a message with the key in its metadata. Never raises.

    `broadcast` shows a reply in the channel too, for people who do not follow its thread.
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
    """Replace a message, whose key is `key`. A second edit changes nothing. Never raises."""
    return _answer(
        lambda: client.chat_update(
            channel=channel_id,
            ts=ts,
            text=text,
            # An empty list removes the earlier blocks.
            blocks=[dict(block) for block in blocks],
            metadata=_metadata(key),
            link_names=False,
            parse="none",
        )
    )


def probe(client: "WebClient") -> SlackAnswer:
    """Check by a call that changes nothing whether Slack answers: SENT when it does. Never raises."""
    return _answer(client.auth_test, of_message=False)


def find(
    client: "WebClient",
    channel_id: str,
    key: str,
    since: dt.datetime,
    thread_ts: str | None = None,
    page_size: int = HISTORY_PAGE_SIZE,
) -> SlackAnswer:
    """Search a channel or a thread for the message with a key: SENT when it is there, else ABSENT.

    UNREADABLE: the token or the channel does not allow it. AMBIGUOUS and NOT_SENT: the search failed this time, or
    there are too many messages to search. Never raises.
    """
    oldest = f"{(since - MAX_CLOCK_DIFFERENCE).timestamp():.6f}"
    cursor: str | None = None
    for _ in range(MAX_HISTORY_PAGES):
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
    return SlackAnswer(SlackOutcome.AMBIGUOUS, f"more than {MAX_HISTORY_PAGES * page_size} messages to search")


def start(
    call: Callable[[], SlackAnswer],
    on_answer: Callable[[SlackAnswer], None],
    unanswered: threading.Semaphore = _unanswered,
) -> None:
    """Make a call on a thread of its own, which hands the answer to `on_answer`, however late it arrives."""
    if not unanswered.acquire(blocking=False):
        on_answer(
            SlackAnswer(SlackOutcome.NOT_SENT, f"{MAX_UNANSWERED_CALLS} earlier calls have not been answered yet")
        )
        return

    def run() -> None:
        try:
            on_answer(call())
        finally:
            unanswered.release()

    # A daemon thread: a call that hangs must not keep the process from exiting.
    threading.Thread(target=run, daemon=True, name="slack call").start()


def classify(error_code: str, status: int = OK_STATUS, retry_after: str | None = None) -> SlackAnswer:
    """Return what an answer other than "ok" means, by its HTTP status and Slack's error code."""
    note = redact(error_code)[:MAX_NOTE_CHARACTERS]
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
    # The code is about this message: a smaller form of it may be accepted.
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
    except Exception as error:  # noqa: BLE001 - whatever went wrong, Slack may have carried out the call
        outcome = SlackOutcome.NOT_SENT if _never_left(error) else SlackOutcome.AMBIGUOUS
        return SlackAnswer(outcome, redact(f"{type(error).__name__}: {error}")[:MAX_NOTE_CHARACTERS])
    if of_message and not response.get("ts"):
        return SlackAnswer(SlackOutcome.AMBIGUOUS, "ok, without the time stamp of a message")
    return SlackAnswer(SlackOutcome.SENT, channel_id=response.get("channel"), ts=response.get("ts"))


def _never_left(error: Exception) -> bool:
    """Return whether the connection was never made, so that nothing can have arrived."""
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
