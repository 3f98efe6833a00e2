"""Clients of Slack: one that sends each call once, and one that only logs, for use outside production."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dags.common.settings import Settings

if TYPE_CHECKING:
    from slack_sdk import WebClient

logger = logging.getLogger(__name__)

# Of the socket; a call that the server answers slowly may take longer in total.
SOCKET_TIMEOUT_SECONDS = 8


def make_slack(settings: Settings) -> "WebClient":
    """Return a client of Slack in production, and one that only logs elsewhere."""
    if settings.cloud_deployment is None or settings.slack_token is None:
        return make_logging_client()
    return make_client(settings.slack_token.get_secret_value())


def make_client(token: str, base_url: str | None = None) -> "WebClient":
    """Return a client that makes each call once, with a timeout. `base_url` is for tests."""
    from dagster_slack import SlackResource

    client = SlackResource(token=token).get_client()
    client.base_url = base_url or client.base_url
    client.timeout = SOCKET_TIMEOUT_SECONDS
    # The default handlers send again after a lost answer, which posts a message twice.
    client.retry_handlers = []
    # Its warnings repeat the answer, and at DEBUG it would log whole messages.
    logging.getLogger("slack_sdk.web.base_client").setLevel(logging.CRITICAL)
    return client


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
