"""The command line `python -m dags.alerts`.

Channels and thresholds belong to a company, and their module is in a layer above this package: it is loaded by name.
"""

import contextlib
import datetime as dt
import importlib
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import click

from dags.common.settings import Settings, SettingsError, get_settings

if TYPE_CHECKING:
    import dagster as dg
    import sqlalchemy as sa
    from slack_sdk import WebClient

    from dags.alerts.health import RouterFigures
    from dags.alerts.values import Policy

DEFAULT_POLICY_MODULE = "dags.slack_alerts"
EXIT_UNHEALTHY = 1
EXIT_UNKNOWN = 2

# Click leaves a paragraph as it is when it begins with a backspace.
EXAMPLES = """\b
On a laptop, on the instance of `make dev`:
  export DEBUG=1 DAGSTER_HOME="$PWD/.dagster_home"
  python -m dags.alerts status
  python -m dags.alerts preview 3fa85f64-5717-4562-b3fc-2c963f66afa6
  python -m dags.alerts mute --match 'job:web_*' --for 4h --reason 'ClickHouse is being moved'
"""
MUTE_EXAMPLES = """\b
Examples:
  mute --match job:daily_exchange_rates_job --for 4h --reason 'known, fixed by 14:00'
  mute --match owner:team-web-analytics --for 30m --reason 'release'
  mute --match 'asset:web_*' --for 2d --reason 'the source is being moved'
  mute --match finding:location/clickhouse --for 1h --reason 'deployment'
"""
EXIT_CODES = """\b
Exit codes:
  0  healthy
  1  unhealthy; each line names a problem and where to look
  2  unknown, for example because the database does not answer
"""


class PolicyModule(Protocol):
    """The module that `--policy-module` names."""

    def alert_policy(self, settings: Settings) -> "Policy":
        """Return owners, channels and thresholds."""

    def client_for(self, settings: Settings) -> "WebClient":
        """Return a client of Slack, or one that only logs outside production."""


@dataclass(frozen=True)
class Site:
    """What the commands work on: the instance of DAGSTER_HOME, the environment and the policy."""

    instance: "dg.DagsterInstance"
    settings: Settings
    policy: "Policy"
    policy_module: PolicyModule
    secrets: Collection[str]

    @property
    def is_production(self) -> bool:
        """Whether messages are sent to Slack."""
        return self.settings.cloud_deployment is not None

    def redact(self, text: str) -> str:
        """Return the text as it may be stored and shown."""
        from dags.alerts.redact import redact

        return redact(text, self.secrets)

    def figures(self) -> "RouterFigures":
        """Return the figures of the router now."""
        from dags.alerts import health

        with health.existing_store(self.instance) as store:
            return health.read(self.instance, store, now())


@click.group(epilog=EXAMPLES)
@click.option(
    "--policy-module",
    default=DEFAULT_POLICY_MODULE,
    show_default=True,
    help="Module with alert_policy(settings) and client_for(settings).",
)
@click.pass_context
def main(context: click.Context, policy_module: str) -> None:
    """Inspect and test the alert router of the Dagster instance in DAGSTER_HOME, and mute alerts.

    docs/alerts.md explains how a failure becomes a message.
    """
    context.obj = policy_module


@main.command()
@click.argument("run_id")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the message as Slack gets it.")
@click.pass_obj
def preview(policy_module: str, run_id: str, *, as_json: bool) -> None:
    """Print the message about RUN_ID and the reasons.

    Nothing is sent or changed.

    For each owner: the series and its consecutive failures, the threshold, the incident, the disposition, what the
    router has on record, and the whole message.
    """
    from dags.alerts import health, report, store
    from dags.alerts.preview import NoSuchRunError, previews

    with (
        open_site(policy_module) as site,
        health.existing_store(site.instance) as existing,
        as_click_error(NoSuchRunError),
    ):
        # A router without a store knows as little of earlier runs as one with an empty store.
        known = existing or store.open_store("sqlite://")
        try:
            found = previews(site.instance, known, site.policy, run_id, now(), site.redact, secrets=site.secrets)
        finally:
            known.dispose()
    if as_json:
        click.echo(json.dumps([report.preview_json(one) for one in found], indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(report.preview_lines(found)))


@main.command("send-test")
@click.option("--owner", required=True, help="The team whose channel is tested, such as team-web-analytics.")
@click.pass_obj
def send_test(policy_module: str, owner: str) -> None:
    """Post a test message to an owner's channel.

    Slack's answer is printed. Outside production the message is only logged. For an owner without a channel, it goes to
    the default channel, as an alert would.
    """
    from dags.alerts import message, route, slack
    from dags.alerts.values import Notice, NoticeKind

    with open_site(policy_module) as site:
        channel = route.channel_of(owner, site.policy)
        if owner not in site.policy.channel_of_owner:
            click.echo(f"{owner} has no channel. Its alerts go to the default channel, {channel}.", err=True)
        notice = Notice(
            NoticeKind.TEST,
            owner,
            title=f"Test message for {owner}",
            detail="Nothing has failed. This message tests whether alerts arrive in this channel.",
            first_failed_at=now(),
        )
        composed = message.compose(notice, site.policy, site.secrets)
        client = site.policy_module.client_for(site.settings)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        key = f"test/{owner}/{now():%Y%m%dT%H%M%S%f}"
        answer = slack.post(client, channel, composed.text, composed.blocks, key)
        is_production = site.is_production
    if answer.outcome is not slack.SlackOutcome.SENT:
        raise click.ClickException(
            f"Slack did not accept the message to {channel}: {answer.outcome} ({answer.note}). Invite the bot or "
            "change notification_channel_per_team. Until then, alerts for this channel go to the default channel."
        )
    click.echo(f"Sent to {channel}." if is_production else f"Logged only, nothing was sent. The channel is {channel}.")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def status(policy_module: str, *, as_json: bool) -> None:
    """Show the state of the router.

    The last tick, the lag, messages that wait for Slack, findings, open incidents, mutes and rescues.
    """
    from dags.alerts import report

    with open_site(policy_module) as site:
        figures = site.figures()
    if as_json:
        click.echo(json.dumps(vars(figures), default=_to_json, indent=2))
        return
    watches_locations = site.settings.dagster_webserver_url is not None
    lines = report.status_lines(figures, now(), is_production=site.is_production, watches_locations=watches_locations)
    click.echo("\n".join(lines))


@main.command(name="health", epilog=EXIT_CODES)
def check_health() -> None:
    """Check whether the router works, for a probe.

    The router cannot report that it is down itself: run this from outside Dagster.
    """
    from dags.alerts import health

    try:
        import dagster as dg

        with dg.DagsterInstance.get() as instance, health.existing_store(instance) as store:
            figures = health.read(instance, store, now())
    except Exception as error:  # noqa: BLE001
        # A probe needs an exit code, whatever the reason is that there are no figures.
        click.echo(f"Unknown: {type(error).__name__}: {_first_line(error)}", err=True)
        sys.exit(EXIT_UNKNOWN)
    problems = health.problems(figures, now())
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        sys.exit(EXIT_UNHEALTHY)
    ticked_at = figures.ticked_at
    click.echo(f"Healthy. The last tick ended {'' if ticked_at is None else health.ago(now(), ticked_at)}.")


@main.command(epilog=MUTE_EXAMPLES)
@click.option(
    "--match",
    required=True,
    help="owner:, job:, location:, asset: or finding:, and a pattern with *, as in job:web_*.",
)
@click.option(
    "--for", "duration", required=True, help="How long: minutes, hours or days, as in 30m, 4h or 2d; at most 14d."
)
@click.option("--reason", required=True, help="Shown in `mutes` and in the summary at the end.")
@click.pass_obj
def mute(policy_module: str, match: str, duration: str, reason: str) -> None:
    """Suppress alerts for a while. They are counted, and summarized in one message at the end.

    A mute by asset matches a failure when it matches every asset that failed.
    """
    from dags.alerts import mutes, report, store

    with open_site(policy_module) as site, open_store(site) as engine, as_click_error(mutes.MuteError):
        length = mutes.parse_duration(duration)
        with store.transaction(engine) as connection:
            added = mutes.add(connection, match, length, site.redact(reason), now())
    click.echo(
        f"Mute {added.id}: {added.match} until {report.format_time(added.ends_at)}. To end it: unmute {added.id}"
    )


@main.command()
@click.argument("mute_id", type=int)
@click.pass_obj
def unmute(policy_module: str, mute_id: int) -> None:
    """End the mute MUTE_ID now. A message summarizes what it suppressed."""
    from dags.alerts import mutes, store

    with (
        open_site(policy_module) as site,
        open_store(site) as engine,
        as_click_error(mutes.MuteError),
        store.transaction(engine) as connection,
    ):
        ended = mutes.end(connection, mute_id, now())
        suppressed = mutes.count(connection, ended)
    summary = "A summary follows." if suppressed else "There is no summary."
    click.echo(f"Mute {ended.id} ({ended.match}) has ended. It suppressed {suppressed} alerts. {summary}")


@main.command(name="mutes")
@click.pass_obj
def list_mutes(policy_module: str) -> None:
    """List the mutes, and what each has suppressed."""
    from dags.alerts import report

    with open_site(policy_module) as site:
        figures = site.figures()
    lines = [report.mute_line(one, suppressed, now()) for one, suppressed in figures.mutes]
    click.echo("\n".join(lines) if lines else "No mutes.")


@contextlib.contextmanager
def open_site(policy_module: str) -> Iterator[Site]:
    """Open the instance, the settings and the policy. Problems with them end the command with a message."""
    import dagster as dg

    from dags.alerts.health import UnknownHealthError
    from dags.alerts.redact import secret_values

    with as_click_error(SettingsError, UnknownHealthError), as_click_error(dg.DagsterError, text=_first_line):
        settings = get_settings()
        module = cast("PolicyModule", importlib.import_module(policy_module))
        with dg.DagsterInstance.get() as instance:
            yield Site(instance, settings, module.alert_policy(settings), module, secret_values(settings))


@contextlib.contextmanager
def open_store(site: Site) -> Iterator["sa.Engine"]:
    """Open the store, and create it when there is none."""
    from dags.alerts import health, store

    with health.existing_store(site.instance) as existing:
        engine = existing or store.open_store(store.address_of(site.instance))
        try:
            yield engine
        finally:
            engine.dispose()


@contextlib.contextmanager
def as_click_error(*kinds: type[Exception], text: Callable[[Exception], str] = str) -> Iterator[None]:
    """Show errors of these kinds as a message without a traceback."""
    try:
        yield
    except kinds as error:
        raise click.ClickException(text(error)) from error


def now() -> dt.datetime:
    """Return the current time."""
    return dt.datetime.now(dt.UTC)


def _to_json(value: object) -> object:
    return value.isoformat() if isinstance(value, dt.datetime) else vars(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    main(prog_name="python -m dags.alerts")
