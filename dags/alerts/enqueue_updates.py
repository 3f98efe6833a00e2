"""Incidents with a due message into rows of the outbox."""

import datetime as dt
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import dagster as dg
import sqlalchemy as sa

from dags.alerts import outbox
from dags.alerts.compose_updates import compose_update, facts_of_failures, facts_of_finding, facts_of_storm
from dags.alerts.decide import STORM_WINDOW, is_due
from dags.alerts.queries import incidents, outcomes
from dags.alerts.store import reading, transaction
from dags.alerts.values import Incident, IncidentKind, Notice, Policy
from dags.common.tags import ASSET_JOB

logger = logging.getLogger(__name__)

# New incidents whose last success is looked up in one tick.
MAX_LAST_SUCCESSES_PER_TICK = 40


def enqueue_updates(
    instance: dg.DagsterInstance,
    store: sa.Engine,
    policy: Policy,
    horizon: dt.datetime,
    now: dt.datetime,
    secrets: Collection[str],
) -> int:
    """Put the messages that are due into the outbox, and return how many are new."""
    with reading(store) as connection:
        unfinished = incidents.unfinished(connection)
    if not any(is_due(incident, horizon) or incident.kind is IncidentKind.STORM for incident in unfinished):
        return 0
    last_successes = _last_successes(instance, store, [incident for incident in unfinished if not incident.posted])
    drafts = []
    with transaction(store) as connection:
        _resolve_storms(connection, horizon)
        # The message of a storm comes before the replies about its incidents.
        for incident in sorted(incidents.unfinished(connection), key=lambda one: one.kind is not IncidentKind.STORM):
            if is_due(incident, horizon):
                facts = _facts(connection, incident, last_successes)
                after, due = compose_update(incident, facts, horizon)
                incidents.update(connection, after)
                drafts += due
        return outbox.enqueue(connection, drafts, policy, now, secrets)


def last_success(
    instance: dg.DagsterInstance, job_name: str, asset_keys: Sequence[str], before: dt.datetime
) -> dt.datetime | None:
    """Return when a job, or for runs of assets the first of these assets, last succeeded before a time."""
    if job_name == ASSET_JOB and asset_keys:
        event = instance.get_latest_materialization_event(dg.AssetKey.from_user_string(asset_keys[0]))
        time = None if event is None else dt.datetime.fromtimestamp(event.timestamp, dt.UTC)
        return time if time is not None and time < before else None
    records = instance.get_run_records(
        dg.RunsFilter(job_name=job_name, statuses=[dg.DagsterRunStatus.SUCCESS], updated_before=before), limit=1
    )
    if not records or records[0].end_time is None:
        return None
    return dt.datetime.fromtimestamp(records[0].end_time, dt.UTC)


def _facts(connection: sa.Connection, incident: Incident, last_successes: Mapping[str, dt.datetime]) -> Notice:
    if incident.kind is IncidentKind.STORM:
        members = incidents.members_of(connection, incident.key)
        return facts_of_storm(incident, members, incidents.titles_of(connection, incident.key))
    if incident.kind is IncidentKind.FINDING:
        return facts_of_finding(incident, incidents.finding_of(connection, incident.key))
    facts = facts_of_failures(incident, outcomes.failures_of(connection, incident.key))
    return replace(facts, last_success_at=last_successes.get(incident.key))


def _resolve_storms(connection: sa.Connection, horizon: dt.datetime) -> None:
    """Resolve the storms that no new incident can join and whose incidents are all resolved."""
    for storm in incidents.open_of_kind(connection, IncidentKind.STORM):
        times = [member.resolved_at for member in incidents.members_of(connection, storm.key)]
        if None not in times and (last := storm.last_failed_at) is not None and last + STORM_WINDOW < horizon:
            incidents.resolve(connection, [storm.key], max(time for time in times if time is not None))


def _last_successes(
    instance: dg.DagsterInstance, store: sa.Engine, new: Sequence[Incident]
) -> Mapping[str, dt.datetime]:
    """Return when the jobs or assets of new incidents last succeeded before, by incident, without unknown times."""
    found: dict[str, dt.datetime] = {}
    for incident in [one for one in new if one.kind is IncidentKind.RUN][:MAX_LAST_SUCCESSES_PER_TICK]:
        with reading(store) as connection:
            failures = outcomes.failures_of(connection, incident.key)
        failure = failures[0].failure if failures else None
        if failure is None:
            continue
        try:
            time = last_success(instance, failure.job_name, failure.asset_keys, failures[0].at)
        except Exception:
            # In doubt, notify: the message goes out without it.
            logger.exception("The last success of %s cannot be looked up.", failure.job_name)
            continue
        if time is not None:
            found[incident.key] = time
    return found
