"""What the commands print, as lines of text."""

import datetime as dt
from collections.abc import Iterator, Sequence

from dags.alerts.health import RouterFigures, ago
from dags.alerts.preview import Preview
from dags.alerts.values import Mute

MAX_INCIDENTS = 50
LABEL_WIDTH = 22


def status_lines(
    figures: RouterFigures, now: dt.datetime, *, is_production: bool, watches_locations: bool
) -> Iterator[str]:
    """Yield the figures for people."""

    def since(time: dt.datetime | None) -> str:
        return "never" if time is None else f"{ago(now, time)} ({format_time(time)})"

    if not is_production:
        yield "Not production (CLOUD_DEPLOYMENT is not set): messages are logged, and none leaves this machine."
    yield _fact("Last tick", since(figures.ticked_at))
    yield _fact("Sensor daemon", since(figures.sensor_daemon_at))
    oldest = "" if figures.unread_since is None else f", the oldest {since(figures.unread_since)}"
    yield _fact("Lag", f"{figures.unread} failures not read yet{oldest}")
    yield _fact("Undecided", f"{figures.undecided}, and {figures.held} held for a retry")
    yield _fact("Waiting for Slack", f"{sum(one.rows for one in figures.waiting)} messages")
    for one in figures.waiting:
        yield f"  {one.channel}: {one.rows}, the oldest {since(one.oldest_at)}. {one.note}"
    if figures.auth_refusal is not None:
        yield f"  {figures.auth_refusal}"
    yield _fact("Never confirmed", f"{figures.uncertain} messages")
    yield _fact("Rescued by the sweep", f"{figures.rescued}, {figures.rescued_in_a_day} of them in the last day")
    yield _fact("Watch rules ran", since(figures.watched_at))
    if not watches_locations:
        yield "  Code locations are not checked: DAGSTER_WEBSERVER_URL is not set."
    yield from (f"  A rule fails: {fault}" for fault in figures.rule_faults)
    yield from (f"  {key}" for key in figures.findings)
    yield _fact("Open incidents", str(len(figures.incidents)))
    for incident in figures.incidents[:MAX_INCIDENTS]:
        failures = "1 failure" if incident.failures == 1 else f"{incident.failures} failures"
        yield f"  {incident.channel}: {incident.title}, {failures}, opened {since(incident.opened_at)}"
    if len(figures.incidents) > MAX_INCIDENTS:
        yield f"  and {len(figures.incidents) - MAX_INCIDENTS} more"
    yield _fact("Mutes", str(len(figures.mutes)))
    yield from (f"  {mute_line(mute, suppressed, now)}" for mute, suppressed in figures.mutes)


def mute_line(mute: Mute, suppressed: int, now: dt.datetime) -> str:
    """Return a mute in one line."""
    end = f"until {format_time(mute.ends_at)}" if mute.ends_at > now else "ended, the summary is pending"
    return f"{mute.id}: {mute.match} {end}, {suppressed} suppressed. Reason: {mute.reason}"


def preview_lines(previews: Sequence[Preview]) -> Iterator[str]:
    """Yield previews for people."""
    for number, preview in enumerate(previews):
        if number:
            yield ""
        yield from (_fact(label, value) for label, value in preview.facts)
        if preview.message is not None:
            yield ""
            yield "The message:" if preview.is_notified else "The message, if it were sent:"
            yield from (f"  {line}" for line in preview.message.text.splitlines())


def preview_json(preview: Preview) -> dict[str, object]:
    """Return a preview for programs, with the message as Slack gets it."""
    message = preview.message
    return {
        "facts": dict(preview.facts),
        "message": None if message is None else {"text": message.text, "blocks": message.blocks},
    }


def format_time(time: dt.datetime) -> str:
    """Return a time as the commands print it."""
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _fact(label: str, value: str) -> str:
    return f"{f'{label}:':<{LABEL_WIDTH}}{value}"
