"""The command `python -m dags.alerts`: look at the alert router, try it, and mute it in part.

Belongs here: options, printing and exit codes. Not here: doing any of it (`health.py`, `preview.py`, `mutes.py`).

Channels and thresholds are a company's own and stand above this package, so the module that has them is loaded by name.
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

    from dags.alerts.health import Figures
    from dags.alerts.mutes import Mute
    from dags.alerts.records import Policy

DEFAULT_POLICY_MODULE = "dags.slack_alerts"
EXIT_NOT_HEALTHY = 1
EXIT_CANNOT_TELL = 2
SECONDS_FOR_A_CALL = 30
INCIDENTS_SHOWN = 50

# Click leaves a paragraph as it is when it begins with a backspace.
EXAMPLES = """\b
On a laptop, with what `make dev` runs:
  export DEBUG=1 DAGSTER_HOME="$PWD/.dagster_home"
  python -m dags.alerts status
  python -m dags.alerts preview 3fa85f64-5717-4562-b3fc-2c963f66afa6
  python -m dags.alerts mute --match 'job:web_*' --for 4h --reason 'ClickHouse is being moved'
"""
EXAMPLES_OF_MUTES = """\b
Examples:
  mute --match job:daily_exchange_rates_job --for 4h --reason 'known, mended by 14:00'
  mute --match owner:team-web-analytics --for 30m --reason 'release'
  mute --match 'asset:web_*' --for 2d --reason 'source is moving'
  mute --match finding:location/clickhouse --for 1h --reason 'deployment'
"""
EXIT_CODES = """\b
Exit codes:
  0  healthy
  1  not healthy; each line says what is wrong and where to look
  2  cannot tell, such as when the database does not answer
"""


class PolicyModule(Protocol):
    """What the module that `--policy-module` names has."""

    def alert_policy(self, settings: Settings) -> "Policy":
        """Owners, channels and thresholds."""

    def client_for(self, settings: Settings) -> "WebClient":
        """Slack, or what stands in for it outside production."""


@dataclass(frozen=True)
class Site:
    """What the commands work on: the instance of DAGSTER_HOME, the environment, the policy."""

    instance: "dg.DagsterInstance"
    settings: Settings
    policy: "Policy"
    policy_module: PolicyModule
    secrets: Collection[str]

    def redact(self, text: str) -> str:
        """The text as it may be kept or shown."""
        from dags.alerts.redact import redact

        return redact(text, self.secrets)


@click.group(epilog=EXAMPLES)
@click.option(
    "--policy-module",
    default=DEFAULT_POLICY_MODULE,
    show_default=True,
    help="Module with alert_policy(settings) and client_for(settings).",
)
@click.pass_context
def main(context: click.Context, policy_module: str) -> None:
    """Look at the alert router of the Dagster instance in DAGSTER_HOME, try it, and mute it in part.

    docs/alerts.md says how a failure becomes a message.
    """
    context.obj = policy_module


@main.command()
@click.argument("run_id")
@click.option("--json", "as_json", is_flag=True, help="Print the facts and the message as Slack gets it, for programs.")
@click.pass_obj
def preview(policy_module: str, run_id: str, *, as_json: bool) -> None:
    """Print what the owners of RUN_ID are told, and why. Sends and changes nothing.

    Of each owner: the series and streak that the run is part of, the threshold, the incident, what is done with it
    (disposition), what the router has on record, and the message in its full length.
    """
    from dags.alerts import health, store
    from dags.alerts.preview import NoSuchRunError, previews

    with opened(policy_module) as site, health.existing_store(site.instance) as existing:
        # Without a store nothing is known of earlier runs, which is what an empty one says.
        known = existing or store.open_store("sqlite://")
        try:
            found = previews(site.instance, known, site.policy, run_id, now(), site.redact, secrets=site.secrets)
        except NoSuchRunError as error:
            raise click.ClickException(str(error)) from error
        finally:
            known.dispose()
    if as_json:
        shown = [
            {
                "facts": dict(one.facts),
                "message": one.message and {"text": one.message.text, "blocks": one.message.blocks},
            }
            for one in found
        ]
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for number, one in enumerate(found):
        click.echo("\n" * (number > 0) + "\n".join(f"{f'{name}:':<13}{value}" for name, value in one.facts))
        if one.message is not None:
            head = "The message:" if one.is_told else "The message, if it were told:"
            click.echo(f"\n{head}\n" + "\n".join(f"  {line}" for line in one.message.text.splitlines()))


@main.command("send-test")
@click.option("--owner", required=True, help="The team whose channel is to be tried, such as team-web-analytics.")
@click.pass_obj
def send_test(policy_module: str, owner: str) -> None:
    """Post a test message to an owner's channel.

    It is marked as a test, and the command says what Slack answered.
    Outside production the message is only logged. An owner without a channel is tried in the default channel, where an
    alert of theirs would go.
    """
    from dags.alerts import message, route, slack
    from dags.alerts.records import Notice, NoticeKind

    with opened(policy_module) as site:
        channel = route.channel_of(owner, site.policy)
        if owner not in site.policy.channel_of_owner:
            click.echo(f"{owner} has no channel: what is theirs goes to the default one, {channel}.", err=True)
        notice = Notice(
            NoticeKind.TEST,
            owner,
            title=f"A test of the alerts of {owner}",
            detail="Nothing has failed. Somebody tried whether messages arrive here.",
            first_failed_at=now(),
        )
        text = message.compose(notice, site.policy, site.secrets)
        client = site.policy_module.client_for(site.settings)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        key = f"test/{owner}/{now():%Y%m%dT%H%M%S%f}"
        answer = slack.post(client, channel, text.text, text.blocks, key)
        is_production = site.settings.cloud_deployment is not None
    if answer.outcome is not slack.SlackOutcome.SENT:
        raise click.ClickException(
            f"{channel}: {answer.outcome} ({answer.note}). The messages of a channel that Slack refuses go to the "
            "default one: mend notification_channel_per_team, or invite the bot."
        )
    click.echo(
        f"Sent to {channel}." if is_production else f"Logged, as it would go to {channel}: nothing has been sent."
    )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_obj
def status(policy_module: str, *, as_json: bool) -> None:
    """Show how far the router is and what is open.

    Lag, last tick, what waits for Slack, what is broken without a run, open incidents, mutes, rescues.
    """
    from dags.alerts import health

    with opened(policy_module) as site, health.existing_store(site.instance) as existing:
        figures = health.read(site.instance, existing, now())
    if as_json:
        click.echo(json.dumps(vars(figures), default=_jsonable, indent=2))
    else:
        click.echo("\n".join(_status_lines(figures, now(), site.settings)))


@main.command(name="health", epilog=EXIT_CODES)
def healthy() -> None:
    """Say whether the router works, for a probe.

    The router cannot report its own death, so something outside must run this.
    """
    from dags.alerts import health

    try:
        import dagster as dg

        with dg.DagsterInstance.get() as instance, health.existing_store(instance) as existing:
            figures = health.read(instance, existing, now())
    except Exception as error:  # noqa: BLE001
        # A probe needs an answer, whatever was in the way of the figures.
        click.echo(f"Cannot tell: {type(error).__name__}: {_first_line(error)}", err=True)
        sys.exit(EXIT_CANNOT_TELL)
    found = health.problems(figures, now())
    for problem in found:
        click.echo(problem, err=True)
    if found:
        sys.exit(EXIT_NOT_HEALTHY)
    ticked_at = figures.ticked_at
    click.echo(f"Healthy. The last tick ended {'' if ticked_at is None else health.ago(now(), ticked_at)}.")


@main.command(epilog=EXAMPLES_OF_MUTES)
@click.option(
    "--match",
    required=True,
    help="What: owner:, job:, location:, asset: or finding: and a pattern, as in job:web_* or asset:web_*.",
)
@click.option(
    "--for", "duration", required=True, help="How long: minutes, hours or days, as in 30m, 4h, 2d; at most 14d."
)
@click.option("--reason", required=True, help="Why. It stands in the summary at the end.")
@click.pass_obj
def mute(policy_module: str, match: str, duration: str, reason: str) -> None:
    """Tell nothing of some failures for a while. They are counted, and summed up in a message at the end.

    A mute by asset holds for a failure when it matches every asset that failed in it.
    """
    from dags.alerts import mutes, store

    with opened(policy_module) as site, writable(site) as engine, as_click_error(mutes.MuteError):
        length = mutes.parse_duration(duration)
        with store.transaction(engine) as connection:
            made = mutes.add(connection, match, length, site.redact(reason), now())
    click.echo(f"Mute {made.id}: {made.match} until {_at(made.ends_at)}. To end it: unmute {made.id}")


@main.command()
@click.argument("mute_id", type=int)
@click.pass_obj
def unmute(policy_module: str, mute_id: int) -> None:
    """End the mute MUTE_ID now. What it has kept back is summed up in a message."""
    from dags.alerts import mutes, store

    with (
        opened(policy_module) as site,
        writable(site) as engine,
        as_click_error(mutes.MuteError),
        store.transaction(engine) as connection,
    ):
        ended = mutes.end(connection, mute_id, now())
        kept = mutes.count(connection, mute_id)
    click.echo(f"Mute {ended.id} ({ended.match}) has ended. It kept back {kept}{'' if kept else ': no summary'}.")


@main.command(name="mutes")
@click.pass_obj
def list_mutes(policy_module: str) -> None:
    """List the mutes in force.

    With what each has kept back so far.
    """
    from dags.alerts import health

    with opened(policy_module) as site, health.existing_store(site.instance) as existing:
        figures = health.read(site.instance, existing, now())
    lines = [_mute_line(one, kept, now()) for one, kept in figures.mutes]
    click.echo("\n".join(lines) if lines else "No mutes.")


@contextlib.contextmanager
def opened(policy_module: str) -> Iterator[Site]:
    """The instance, the settings and the policy; what is wrong with them ends the command with a message."""
    import dagster as dg

    from dags.alerts.health import CannotTellError
    from dags.alerts.redact import secret_values

    with as_click_error(SettingsError, CannotTellError), as_click_error(dg.DagsterError, text=_first_line):
        settings = get_settings()
        module = cast("PolicyModule", importlib.import_module(policy_module))
        with dg.DagsterInstance.get() as instance:
            yield Site(instance, settings, module.alert_policy(settings), module, secret_values(settings))


@contextlib.contextmanager
def writable(site: Site) -> Iterator["sa.Engine"]:
    """The store, made if there is none."""
    from dags.alerts import health, store

    with health.existing_store(site.instance) as existing:
        engine = existing or store.open_store(store.address_of(site.instance))
        try:
            yield engine
        finally:
            engine.dispose()


@contextlib.contextmanager
def as_click_error(*kinds: type[Exception], text: Callable[[Exception], str] = str) -> Iterator[None]:
    """Ends the command with the message of an error that says what to do, and no traceback."""
    try:
        yield
    except kinds as error:
        raise click.ClickException(text(error)) from error


def now() -> dt.datetime:
    """The time, as the commands take it."""
    return dt.datetime.now(dt.UTC)


def _status_lines(figures: "Figures", time: dt.datetime, settings: Settings) -> Iterator[str]:
    """The figures for people."""
    from dags.alerts import health

    def since(moment: dt.datetime | None) -> str:
        return "never" if moment is None else f"{health.ago(time, moment)} ({_at(moment)})"

    if settings.cloud_deployment is None:
        yield "Not production (CLOUD_DEPLOYMENT is not set): messages are logged, none leaves this machine."
    yield f"Last tick:         {since(figures.ticked_at)}"
    yield f"Sensor daemon:     {since(figures.sensor_daemon_at)}"
    behind = "" if figures.unread_since is None else f", the oldest {since(figures.unread_since)}"
    yield f"Lag:               {figures.unread} failures not read yet{behind}"
    yield f"Not judged yet:    {figures.undecided}; {figures.held} wait for a retry"
    yield f"Waiting for Slack: {sum(one.rows for one in figures.waiting)} messages"
    yield from (
        f"  {one.channel}: {one.rows}, the oldest {since(one.oldest_at)}. {one.note}" for one in figures.waiting
    )
    if figures.auth_refusal is not None:
        yield f"  {figures.auth_refusal}"
    yield f"Never confirmed:   {figures.uncertain} messages"
    yield f"Rescued by sweep:  {figures.rescued}, of them {figures.rescued_in_a_day} in a day"
    yield f"Rules last looked: {since(figures.looked_at)}"
    yield from _rule_lines(figures, settings)
    yield f"Open incidents:    {len(figures.incidents)}"
    for incident in figures.incidents[:INCIDENTS_SHOWN]:
        yield (
            f"  {incident.channel}: {incident.title}, {incident.failures} "
            f"{'failure' if incident.failures == 1 else 'failures'}, opened {since(incident.opened_at)}"
        )
    if len(figures.incidents) > INCIDENTS_SHOWN:
        yield f"  and {len(figures.incidents) - INCIDENTS_SHOWN} more"
    yield f"Mutes:             {len(figures.mutes)}"
    yield from (f"  {_mute_line(one, kept, time)}" for one, kept in figures.mutes)


def _rule_lines(figures: "Figures", settings: Settings) -> Iterator[str]:
    if settings.dagster_webserver_url is None:
        yield "  Code locations are not looked at: DAGSTER_WEBSERVER_URL is not set."
    for fault in figures.rule_faults:
        yield f"  Cannot look: {fault}"
    for key in figures.findings:
        yield f"  {key}"


def _mute_line(one: "Mute", kept: int, time: dt.datetime) -> str:
    end = f"until {_at(one.ends_at)}" if one.ends_at > time else "ended, about to be summed up"
    return f"{one.id}: {one.match} {end}, {kept} kept back. Reason: {one.reason}"


def _at(time: dt.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


def _jsonable(value: object) -> object:
    return value.isoformat() if isinstance(value, dt.datetime) else vars(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


if __name__ == "__main__":
    main(prog_name="python -m dags.alerts")
