"""The tables of the alert store as version 1 had them, frozen for the test of the migration to version 2."""

import sqlalchemy as sa

from dags.alerts.tables import Timestamp

metadata = sa.MetaData()

schema_version = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True))
attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("status", sa.Text, primary_key=True),
    sa.Column("event_id", sa.BigInteger, nullable=False),
    sa.Column("at", Timestamp, nullable=False),
    sa.Column("seen_at", Timestamp, nullable=False),
    sa.Column("job_name", sa.Text, nullable=False),
    sa.Column("detail", sa.Text),
    sa.Column("rescued", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("due_at", Timestamp, nullable=False),
    sa.Column("series", sa.Text),
    sa.Column("execution", sa.Text),
    sa.Column("backfill_id", sa.Text),
    sa.Column("fate", sa.Text),
    sa.Index("attempts_by_time", "at"),
    sa.Index("attempts_by_job", "job_name", "at"),
)
sa.Index(
    "attempts_due",
    attempts.c.due_at,
    postgresql_where=attempts.c.state.in_(["new", "held"]),
    sqlite_where=attempts.c.state.in_(["new", "held"]),
)
positions = sa.Table(
    "positions",
    metadata,
    sa.Column("at", Timestamp, primary_key=True),
    sa.Column("event_id", sa.BigInteger, nullable=False),
)
values = sa.Table("values", metadata, sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.Text))
outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("failed", sa.Boolean, primary_key=True),
    sa.Column("series", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, primary_key=True),
    sa.Column("execution", sa.Text, nullable=False),
    sa.Column("job_name", sa.Text, nullable=False),
    sa.Column("at", Timestamp, nullable=False),
    sa.Column("event_id", sa.BigInteger, nullable=False),
    sa.Column("failure", sa.Text),
    sa.Column("muted", sa.Text),
    sa.Column("thread", sa.Text),
    sa.Column("is_open", sa.Boolean, nullable=False),
    sa.Column("fate", sa.Text),
    sa.Index("outcomes_by_series", "series", "at"),
    sa.Index("outcomes_by_thread", "thread"),
    sa.Index("outcomes_by_time", "at"),
)
sa.Index(
    "outcomes_open",
    outcomes.c.job_name,
    outcomes.c.series,
    postgresql_where=outcomes.c.is_open,
    sqlite_where=outcomes.c.is_open,
)
threads = sa.Table(
    "threads",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("owner", sa.Text),
    sa.Column("opened_at", Timestamp, nullable=False),
    sa.Column("threshold", sa.Integer, nullable=False),
    sa.Column("storm", sa.Text),
    sa.Column("closed_at", Timestamp),
    sa.Column("failures", sa.Integer, nullable=False),
    sa.Column("last_failed_at", Timestamp),
    sa.Column("posted", sa.Boolean, nullable=False),
    sa.Column("told", sa.Integer, nullable=False),
    sa.Column("batches", sa.Integer, nullable=False),
    sa.Column("reminders", sa.Integer, nullable=False),
    sa.Column("edited_at", Timestamp),
    sa.Column("finished", sa.Boolean, nullable=False),
    sa.Column("title", sa.Text, nullable=False, server_default=""),
    sa.Column("subject", sa.Text, nullable=False, server_default=""),
    sa.Column("facts", sa.Text),
    sa.Index("threads_by_channel", "channel", "opened_at"),
    sa.Index("threads_by_storm", "storm"),
    sa.Index("threads_by_subject", "subject"),
)
sa.Index(
    "threads_unfinished",
    threads.c.opened_at,
    postgresql_where=sa.not_(threads.c.finished),
    sqlite_where=sa.not_(threads.c.finished),
)
incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("thread", sa.Text, primary_key=True),
    sa.Column("series", sa.Text, primary_key=True),
    sa.Column("ended_at", Timestamp),
)
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("thread", sa.Text, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
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
    sa.Column("alone", sa.Boolean, nullable=False),
    sa.Column("unsure_calls", sa.Integer, nullable=False),
    sa.Column("lease_until", Timestamp),
    sa.Column("not_before", Timestamp),
    sa.Column("first_called_at", Timestamp),
    sa.Column("last_called_at", Timestamp),
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
    sa.Column("slack_id", sa.Text),
    sa.Column("wait_until", Timestamp),
    sa.Column("wait_reason", sa.Text),
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
    sa.Column("summarised_at", Timestamp),
)
muted_findings = sa.Table(
    "muted_findings",
    metadata,
    sa.Column("mute", sa.Integer, primary_key=True),
    sa.Column("finding", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("at", Timestamp, nullable=False),
)
