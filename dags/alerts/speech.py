"""What there is to say: threads that are due, into drafts in the outbox.

Belongs here: gathering the facts of a thread. Not here: when what is said (`decide.py`), and its words (`message.py`).
"""

import dataclasses
import datetime as dt
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import dagster as dg
import sqlalchemy as sa

from dags.alerts import incidents, mutes, outbox, route, tables
from dags.alerts.decide import STORM_WINDOW, is_due, notice_of, speak, storm_notice
from dags.alerts.store import reading, transaction
from dags.alerts.values import Finding, Incident, IncidentKind, Notice, NoticeKind, Policy
from dags.alerts.verdicts import Opening, open_thread
from dags.common.tags import ASSET_JOB

logger = logging.getLogger(__name__)

# New incidents whose last success is looked up in one tick.
LAST_SUCCESSES_IN_A_TICK = 40
# A backfill that was deleted ends this long after its last failure.
DELETED_BACKFILL = dt.timedelta(hours=1)
BACKFILL_ENDS = frozenset({"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"})


def tell(
    instance: dg.DagsterInstance,
    store: sa.Engine,
    policy: Policy,
    horizon: dt.datetime,
    now: dt.datetime,
    secrets: Collection[str],
) -> int:
    """Puts into the outbox what is to be said by now. How many drafts were new."""
    with reading(store) as connection:
        unfinished = _speaking(connection)
    if not any(is_due(thread, horizon) or thread.kind is IncidentKind.STORM for thread in unfinished):
        return 0
    last_success = _last_successes(instance, store, [thread for thread in unfinished if not thread.posted])
    drafts = []
    with transaction(store) as connection:
        _close_storms(connection, horizon)
        # The message of a storm comes before its details.
        for thread in sorted(_speaking(connection), key=lambda one: one.kind is not IncidentKind.STORM):
            if is_due(thread, horizon):
                failures = incidents.failures_of(connection, thread.key)
                notice = _notice(connection, thread)
                if notice is None:
                    notice = replace(notice_of(thread, failures), last_success_at=last_success.get(thread.key))
                after, found = speak(thread, failures, horizon, notice)
                incidents.keep_thread(connection, after)
                drafts += found
        return outbox.enqueue(connection, drafts, policy, now, secrets)


def end_backfills(instance: dg.DagsterInstance, store: sa.Engine, horizon: dt.datetime) -> None:
    """Closes the threads of backfills that have ended."""
    with reading(store) as connection:
        query = sa.select(tables.incidents.c.key, tables.incidents.c.subject, tables.incidents.c.last_failed_at).where(
            sa.not_(tables.incidents.c.finished),
            tables.incidents.c.resolved_at.is_(None),
            tables.incidents.c.kind == IncidentKind.BACKFILL.value,
        )
        rows = connection.execute(query).all()
    ended: dict[str, dt.datetime] = {}
    for row in rows:
        try:
            backfill = instance.get_backfill(row.subject)
        except (sa.exc.SQLAlchemyError, OSError):
            raise
        except Exception:
            # One that this version of Dagster cannot read stays open, and holds up nothing else.
            logger.exception("Backfill %s cannot be read: whether it has ended is not known.", row.subject)
            continue
        if backfill is None:
            ended[row.key] = row.last_failed_at + DELETED_BACKFILL
        elif backfill.status.value in BACKFILL_ENDS:
            seconds = backfill.backfill_end_timestamp
            ended[row.key] = row.last_failed_at if seconds is None else dt.datetime.fromtimestamp(seconds, dt.UTC)
    due = {key: time for key, time in ended.items() if time <= horizon}
    if due:
        with transaction(store) as connection:
            for key, time in due.items():
                connection.execute(
                    sa.update(tables.incidents).where(tables.incidents.c.key == key).values(resolved_at=time)
                )


def compare_findings(connection: sa.Connection, findings: Sequence[Finding], policy: Policy, now: dt.datetime) -> None:
    """Opens a thread for each finding that is new, and closes those of findings that are gone."""
    known = {
        row.subject: row.key
        for row in connection.execute(
            sa.select(tables.incidents.c.subject, tables.incidents.c.key).where(
                sa.not_(tables.incidents.c.finished),
                tables.incidents.c.kind == IncidentKind.FINDING.value,
                tables.incidents.c.resolved_at.is_(None),
            )
        )
    }
    current = {finding.key: finding for finding in findings}
    new = [finding for key, finding in sorted(current.items()) if key not in known]
    for finding in mutes.keep_back(connection, new, now):
        thread = Incident(
            key=f"finding/{finding.key}/{now:%Y%m%dT%H%M%S}",
            kind=IncidentKind.FINDING,
            channel=route.channel_of(finding.owner, policy),
            owner=finding.owner,
            opened_at=now,
            failures=1,
        )
        open_thread(connection, Opening(thread, finding.title, finding.key), facts=_finding_to_json(finding))
    gone = [thread for subject, thread in known.items() if subject not in current]
    for chunk in incidents.chunks(gone, incidents.ROWS_IN_A_STATEMENT):
        connection.execute(
            sa.update(tables.incidents).where(tables.incidents.c.key.in_(list(chunk))).values(resolved_at=now)
        )


def _speaking(connection: sa.Connection) -> Sequence[Incident]:
    """Threads of which there may be something to say."""
    return incidents.find_threads(connection, sa.not_(tables.incidents.c.finished))


def _notice(connection: sa.Connection, thread: Incident) -> Notice | None:
    """The facts of a thread that has no failures of its own."""
    if thread.kind is IncidentKind.STORM:
        members = incidents.find_threads(connection, tables.incidents.c.storm == thread.key)
        titles = connection.execute(
            sa.select(tables.incidents.c.key, tables.incidents.c.title).where(tables.incidents.c.storm == thread.key)
        )
        return storm_notice(thread, members, {row.key: row.title for row in titles})
    if thread.kind is IncidentKind.FINDING:
        facts = json.loads(
            connection.execute(sa.select(tables.incidents.c.facts).where(tables.incidents.c.key == thread.key)).scalar()
            or "{}"
        )
        return Notice(
            kind=NoticeKind.FINDING,
            owner=thread.owner,
            location=facts.get("location"),
            first_failed_at=dt.datetime.fromisoformat(facts["since"]),
            resolved_at=thread.resolved_at,
            title=facts["title"],
            detail=facts["detail"],
        )
    return None


def _close_storms(connection: sa.Connection, horizon: dt.datetime) -> None:
    """Closes storms that no new incident can join any more and whose incidents are all over."""
    storms = incidents.find_threads(
        connection,
        sa.and_(
            tables.incidents.c.kind == IncidentKind.STORM.value,
            sa.not_(tables.incidents.c.finished),
            tables.incidents.c.resolved_at.is_(None),
        ),
    )
    for storm in storms:
        members = incidents.find_threads(connection, tables.incidents.c.storm == storm.key)
        ends = [member.resolved_at for member in members]
        if None not in ends and (last := storm.last_failed_at) is not None and last + STORM_WINDOW < horizon:
            incidents.keep_thread(
                connection, replace(storm, resolved_at=max(time for time in ends if time is not None))
            )


def _last_successes(
    instance: dg.DagsterInstance, store: sa.Engine, new: Sequence[Incident]
) -> Mapping[str, dt.datetime]:
    """When what a new thread tells of last succeeded before, by key. What is not known is left out."""
    found: dict[str, dt.datetime] = {}
    for thread in [one for one in new if one.kind is IncidentKind.RUN][:LAST_SUCCESSES_IN_A_TICK]:
        with reading(store) as connection:
            failures = incidents.failures_of(connection, thread.key)
        failure = failures[0].failure if failures else None
        if failure is None:
            continue
        try:
            time = last_success(instance, failure.job_name, failure.asset_keys, failures[0].at)
        except Exception:
            # In doubt, tell: the message goes out without it.
            logger.exception("The last success of %s could not be looked up.", failure.job_name)
            continue
        if time is not None:
            found[thread.key] = time
    return found


def last_success(
    instance: dg.DagsterInstance, job_name: str, asset_keys: Sequence[str], before: dt.datetime
) -> dt.datetime | None:
    """When a job, or the first of these assets, last succeeded before a time."""
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


def _finding_to_json(finding: Finding) -> str:
    return json.dumps(dataclasses.asdict(finding) | {"since": finding.since.isoformat()})
