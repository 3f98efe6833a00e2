"""The tables of the alert store, and the migrations that bring the tables of an earlier version to this one."""

import datetime as dt
from collections.abc import Callable, Mapping

import sqlalchemy as sa

from dags.alerts.values import OPEN_STATES, AttemptState

SCHEMA = "alerts"

metadata = sa.MetaData()


class Timestamp(sa.types.TypeDecorator[dt.datetime]):
    """An aware time in UTC, to the microsecond, with the same order in SQLite and in Postgres. Rejects naive times."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        """Return the time without its zone, as it is stored."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone: give an aware time in UTC.")
        return value.astimezone(dt.UTC).replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: sa.Dialect) -> dt.datetime | None:
        """Return the stored time with its zone."""
        del dialect
        return None if value is None else value.replace(tzinfo=dt.UTC)


schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))

# Single values that live as long as the store, such as the time of the last sweep.
stored_values = sa.Table("values", metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text))

# How far events had been read at several times: the newest is the position, an older one is where the overlap begins.
positions = sa.Table(
    "positions",
    metadata,
    sa.Column("at", Timestamp, primary_key=True),
    sa.Column("event_id", sa.BigInteger, nullable=False),
)

# Ends of runs and of asset checks, from events. A second event about the same end is absorbed.
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    # Empty for the run itself, else the asset check.
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("status", sa.Text, primary_key=True),
    # 0 for what the sweep found.
    sa.Column("event_id", sa.BigInteger, nullable=False),
    sa.Column("at", Timestamp, nullable=False),
    sa.Column("seen_at", Timestamp, nullable=False),
    sa.Column("job_name", sa.Text, nullable=False),
    sa.Column("detail", sa.Text),
    sa.Column("rescued", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # When it is to be classified: its own time, and for a held one the end of the promise.
    sa.Column("due_at", Timestamp, nullable=False),
    sa.Column("series", sa.Text),
    sa.Column("execution", sa.Text),
    sa.Column("backfill_id", sa.Text),
    # What became of a failure, in words.
    sa.Column("disposition", sa.Text),
    sa.Index("attempts_by_time", "at"),
    sa.Index("attempts_by_job", "job_name", "at"),
)
IS_UNDECIDED = attempts.c.state.in_([AttemptState.NEW.value, AttemptState.HELD.value])
sa.Index("attempts_due", attempts.c.due_at, postgresql_where=IS_UNDECIDED, sqlite_where=IS_UNDECIDED)

# How executions of a series ended, for each owner of what failed.
outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("failed", sa.Boolean, primary_key=True),
    sa.Column("series", sa.Text, primary_key=True),
    # Empty for unowned failures, and for successes, which count for all owners: no part of a key may be null.
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("execution", sa.Text, nullable=False),
    sa.Column("job_name", sa.Text, nullable=False),
    sa.Column("at", Timestamp, nullable=False),
    sa.Column("event_id", sa.BigInteger, nullable=False),
    sa.Column("failure", sa.Text),
    sa.Column("muted_by", sa.Text),
    sa.Column("incident", sa.Text),
    # Whether it is one of the consecutive failures that no success has ended.
    sa.Column("is_open", sa.Boolean, nullable=False),
    # What became of a failure, in words.
    sa.Column("disposition", sa.Text),
    sa.Index("outcomes_by_series", "series", "at"),
    sa.Index("outcomes_by_incident", "incident"),
    sa.Index("outcomes_by_time", "at"),
)
sa.Index(
    "outcomes_open",
    outcomes.c.job_name,
    outcomes.c.series,
    postgresql_where=outcomes.c.is_open,
    sqlite_where=outcomes.c.is_open,
)

incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("opened_at", Timestamp, nullable=False),
    sa.Column("threshold", sa.Integer, nullable=False),
    sa.Column("storm", sa.Text),
    sa.Column("resolved_at", Timestamp),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("last_failed_at", Timestamp),
    sa.Column("posted", sa.Boolean, nullable=False),
    sa.Column("notified_failures", sa.Integer, nullable=False),
    sa.Column("batches", sa.Integer, nullable=False),
    sa.Column("reminders", sa.Integer, nullable=False),
    sa.Column("edited_at", Timestamp),
    sa.Column("finished", sa.Boolean, nullable=False),
    # What it is about, in a line. For a backfill its id, for a finding its key and its facts.
    sa.Column("title", sa.Text, nullable=False, server_default=""),
    sa.Column("subject", sa.Text, nullable=False, server_default=""),
    sa.Column("facts", sa.Text),
    sa.Index("incidents_by_channel", "channel", "opened_at"),
    sa.Index("incidents_by_storm", "storm"),
    sa.Index("incidents_by_subject", "subject"),
)
sa.Index(
    "incidents_unfinished",
    incidents.c.opened_at,
    postgresql_where=sa.not_(incidents.c.finished),
    sqlite_where=sa.not_(incidents.c.finished),
)

# The series of which an incident reports consecutive failures, and when a success ended them.
incident_series = sa.Table(
    "incident_series",
    metadata,
    sa.Column("incident", sa.Text, primary_key=True),
    sa.Column("series", sa.Text, primary_key=True),
    sa.Column("resolved_at", Timestamp),
)

mutes = sa.Table(
    "mutes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("pattern", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("ends_at", Timestamp, nullable=False),
    # When its summary was enqueued. From then on it suppresses nothing, however old.
    sa.Column("summarized_at", Timestamp),
)

# Findings that a mute suppressed. For failures, `outcomes` says so; findings have no outcome.
muted_findings = sa.Table(
    "muted_findings",
    metadata,
    sa.Column("mute", sa.Integer, primary_key=True),
    sa.Column("finding", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("at", Timestamp, nullable=False),
)

# Calls to Slack that are to be made, and those that were.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    # Key of the post that a reply or an edit belongs to; a post's own key.
    sa.Column("thread", sa.Text, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
    # Where it goes. When Slack rejected the channel it was addressed to: that channel, and the reason.
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("refused_channel", sa.Text),
    sa.Column("refusal", sa.Text),
    sa.Column("owner", sa.Text),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("blocks", sa.JSON, nullable=False),
    sa.Column("stub", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("form", sa.Text, nullable=False),
    # A reply that goes into the channel, because its thread does not exist.
    sa.Column("alone", sa.Boolean, nullable=False),
    # Calls whose outcome is not known.
    sa.Column("unsure_calls", sa.Integer, nullable=False),
    sa.Column("lease_until", Timestamp),
    sa.Column("not_before", Timestamp),
    sa.Column("first_called_at", Timestamp),
    sa.Column("last_called_at", Timestamp),
    # Slack's last answer.
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("slack_channel_id", sa.Text),
    sa.Column("ts", sa.Text),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("closed_at", Timestamp),
    sa.Index("outbox_by_thread", "thread", "id"),
    sa.Index("outbox_by_state", "state", "channel"),
)

channels = sa.Table(
    "channels",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    # Slack's own id, learned from its answers: history and edits take no names.
    sa.Column("slack_id", sa.Text),
    sa.Column("wait_until", Timestamp),
    sa.Column("wait_reason", sa.Text),
)


def _to_version_2(connection: sa.Connection) -> None:
    """Rename tables, columns and stored words: what was a thread is an incident, and an incident one of its series."""
    is_postgres = connection.dialect.name == "postgresql"
    prefix = f"{SCHEMA}." if is_postgres else ""

    def run(statement: str) -> None:
        connection.exec_driver_sql(statement)

    for index in ("outcomes_by_thread", "threads_by_channel", "threads_by_storm", "threads_by_subject"):
        run(f"DROP INDEX {prefix}{index}")
    run(f"DROP INDEX {prefix}threads_unfinished")
    for old, new in (("incidents", "incident_series"), ("threads", "incidents")):
        run(f"ALTER TABLE {prefix}{old} RENAME TO {new}")
        if is_postgres:
            run(f"ALTER INDEX {prefix}{old}_pkey RENAME TO {new}_pkey")
    for table, old, new in (
        ("attempts", "fate", "disposition"),
        ("outcomes", "fate", "disposition"),
        ("outcomes", "muted", "muted_by"),
        ("outcomes", "thread", "incident"),
        ("incidents", "closed_at", "resolved_at"),
        ("incidents", "told", "notified_failures"),
        ("incident_series", "thread", "incident"),
        ("incident_series", "ended_at", "resolved_at"),
        ("mutes", "summarised_at", "summarized_at"),
    ):
        run(f"ALTER TABLE {prefix}{table} RENAME COLUMN {old} TO {new}")
    run(f"CREATE INDEX outcomes_by_incident ON {prefix}outcomes (incident)")
    run(f"CREATE INDEX incidents_by_channel ON {prefix}incidents (channel, opened_at)")
    run(f"CREATE INDEX incidents_by_storm ON {prefix}incidents (storm)")
    run(f"CREATE INDEX incidents_by_subject ON {prefix}incidents (subject)")
    # SQLite uses a partial index only where the query repeats its condition, which SQLAlchemy writes like this there.
    condition = "NOT finished" if is_postgres else "finished = 0"
    run(f"CREATE INDEX incidents_unfinished ON {prefix}incidents (opened_at) WHERE {condition}")
    _reword_version_1(connection)


def _reword_version_1(connection: sa.Connection) -> None:
    """Replace the words of version 1 in rows: dispositions, kinds of messages, and keys of what has been sent."""
    told = outcomes.c.disposition.like("told in %")
    notified = sa.literal("notified").concat(sa.func.substr(outcomes.c.disposition, len("told") + 1))
    connection.execute(sa.update(outcomes).where(told).values(disposition=notified))
    for old, new in (
        ("recovered", "resolved"),
        ("failed and recovered", "failed and resolved"),
        ("finding over", "finding resolved"),
    ):
        connection.execute(sa.update(outbox).where(outbox.c.kind == old).values(kind=new))
    # What may be in Slack already is searched for there by the key that it was sent with: that key stays.
    is_closed = outbox.c.state.not_in([state.value for state in OPEN_STATES])
    key = outbox.c.key
    reply = sa.func.substr(key, 1, sa.func.length(key) - len("/over")).concat("/resolved")
    connection.execute(sa.update(outbox).where(key.like("%/over"), is_closed).values(key=reply))
    edit = sa.func.replace(key, "/edit/over/", "/edit/resolved/")
    connection.execute(sa.update(outbox).where(key.like("%/edit/over/%"), is_closed).values(key=edit))


Migration = Callable[[sa.Connection], None]
# The migration to version n from version n - 1. A new store is created at LATEST_VERSION.
MIGRATIONS: Mapping[int, Migration] = {2: _to_version_2}
LATEST_VERSION = 2
