"""Watches for what breaks without a failed run: ticks, code locations, daemons, stale assets, runs that never finish.

Each rule may fail alone. While a rule fails, its last observations stand, and that it fails is a finding too.
"""

import datetime as dt
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import sqlalchemy as sa

from dags.alerts import route, watch_rules, watch_sources
from dags.alerts.queries.stored_values import get_value, set_value
from dags.alerts.steps import Plans, only_owner
from dags.alerts.store import reading, transaction
from dags.alerts.values import Finding, Policy
from dags.alerts.watch_rules import Observation, WatchContext
from dags.alerts.watch_sources import WebserverError, Workspace

logger = logging.getLogger(__name__)

# The name of the last observations among the store's values, and in them the name of rules that failed.
OBSERVATIONS = "watch"
FAULTS = "faults"


@dataclass(frozen=True)
class Sources:
    """What the rules read from. `webserver_error` says why the workspace could not be read."""

    instance: dg.DagsterInstance
    webserver_error: Exception | None = None


Rule = Callable[[Sources, WatchContext], Iterable[Observation]]
# Observations by key, each with the time when it was first made.
Observed = Mapping[str, tuple[dt.datetime, Observation]]


def findings(
    instance: dg.DagsterInstance,
    store: sa.Engine,
    policy: Policy,
    clock: Callable[[], dt.datetime],
    redact: Callable[[str], str],
    *,
    webserver_url: str | None = None,
    rules: "Mapping[str, Rule] | None" = None,
) -> Sequence[Finding]:
    """Return what is broken now, and has been for long enough. Without an address, code locations are not checked.

    Raises what the store raises, and nothing else.
    """
    now = clock()
    workspace, webserver_error = _read_workspace(webserver_url)
    context = WatchContext(policy, now, redact, workspace)
    sources = Sources(instance, webserver_error)
    before = last_observations(store)
    after: dict[str, Observed] = {}
    # By title: a web interface that does not answer is one fault, however many rules need it.
    faults: dict[str, Observation] = {}
    for name, rule in (RULES if rules is None else rules).items():
        try:
            after[name] = _aged(rule(sources, context), before.get(name, {}), now)
        except Exception as error:
            # One broken rule must stop neither the others nor the alerts of failed runs.
            trace = None if isinstance(error, WebserverError) else error
            logger.warning("Watch rule '%s' failed: %s", name, error, exc_info=trace)
            after[name] = before.get(name, {})
            fault = watch_rules.failed_rule(context, name, error)
            faults.setdefault(fault.finding.title, fault)
    after[FAULTS] = _aged(faults.values(), before.get(FAULTS, {}), now)
    if after != before:
        with transaction(store) as connection:
            set_value(connection, OBSERVATIONS, _to_json(after))
    return [
        replace(one.finding, title=redact(one.finding.title), detail=redact(one.finding.detail))
        for observed in after.values()
        for first_observed_at, one in observed.values()
        if now - first_observed_at >= one.grace
    ]


def _failed_ticks(sources: Sources, context: WatchContext) -> Iterable[Observation]:
    return watch_rules.failed_ticks(context, watch_sources.read_instigators(sources.instance))


def _broken_locations(sources: Sources, context: WatchContext) -> Iterable[Observation]:
    if sources.webserver_error is not None:
        raise sources.webserver_error
    return watch_rules.broken_locations(context)


def _silent_daemons(sources: Sources, context: WatchContext) -> Iterable[Observation]:
    return watch_rules.silent_daemons(context, watch_sources.read_heartbeats(sources.instance))


def _stale_assets(sources: Sources, context: WatchContext) -> Iterable[Observation]:
    if sources.webserver_error is not None:
        raise sources.webserver_error
    assets = [key for location in (context.workspace or {}).values() for key in location.freshness_policies]
    return watch_rules.stale_assets(context, watch_sources.read_freshness(sources.instance, assets))


def _overdue_runs(sources: Sources, context: WatchContext) -> Iterable[Observation]:
    plans = Plans(sources.instance)

    def owner_of(run: dg.DagsterRun) -> str | None:
        step_owner = (only_owner(plans.of(run)) or (None,))[0]
        return route.get_job_owner_for_alert(run, step_owner, context.policy.team_of_location)

    runs = watch_sources.read_unfinished_runs(sources.instance, context.now, watch_rules.MIN_AGES)
    return watch_rules.overdue_runs(context, runs, owner_of)


RULES: Mapping[str, Rule] = {
    "ticks": _failed_ticks,
    "locations": _broken_locations,
    "daemons": _silent_daemons,
    "freshness": _stale_assets,
    "runs": _overdue_runs,
}


def last_observations(store: sa.Engine) -> Mapping[str, Observed]:
    """Return the last observations by rule, and none when they cannot be read."""
    with reading(store) as connection:
        text = get_value(connection, OBSERVATIONS)
    if text is None:
        return {}
    try:
        return {
            rule: {key: _from_json(one) for key, one in observed.items()} for rule, observed in json.loads(text).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        # They only say since when something is observed: at worst a finding is reported a little later.
        logger.exception("The last observations of the watch rules cannot be read. They are started over.")
        return {}


def _read_workspace(url: str | None) -> tuple[Workspace | None, Exception | None]:
    if url is None:
        return None, None
    try:
        return watch_sources.read_workspace(url), None
    except Exception as error:  # noqa: BLE001
        # The rule that needs the workspace raises it.
        return None, error


def _aged(observations: Iterable[Observation], before: Observed, now: dt.datetime) -> Observed:
    found: dict[str, tuple[dt.datetime, Observation]] = {}
    for one in observations:
        first_observed_at = before[one.finding.key][0] if one.finding.key in before else now
        since = min(one.finding.since, first_observed_at)
        found[one.finding.key] = (first_observed_at, replace(one, finding=replace(one.finding, since=since)))
    return found


def _from_json(values: Mapping[str, Any]) -> tuple[dt.datetime, Observation]:
    finding = Finding(**values["finding"] | {"since": dt.datetime.fromisoformat(values["finding"]["since"])})
    grace = dt.timedelta(seconds=values["grace_seconds"])
    return dt.datetime.fromisoformat(values["first_seen_at"]), Observation(finding, grace)


def _to_json(after: Mapping[str, Observed]) -> str:
    return json.dumps(
        {
            rule: {
                key: {
                    "first_seen_at": first_observed_at.isoformat(),
                    "grace_seconds": one.grace.total_seconds(),
                    "finding": vars(one.finding) | {"since": one.finding.since.isoformat()},
                }
                for key, (first_observed_at, one) in observed.items()
            }
            for rule, observed in after.items()
        }
    )
