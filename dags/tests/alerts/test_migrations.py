import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from dags.alerts import outbox, store, tables
from dags.alerts.queries import incidents, outcomes
from dags.alerts.queries.mutes import without_summary
from dags.alerts.values import IncidentKind, NoticeKind
from dags.tests.alerts import store_version_1 as version_1

NOW = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
OPEN, RESOLVED = "run_1/team-a", "run_0/team-a"


@pytest.fixture
def migrated(store_url: str) -> Iterator[sa.Engine]:
    """A store that version 1 made and filled, opened by this version."""
    former = store.connect(store_url)
    with store.transaction(former) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.schema.CreateSchema(tables.SCHEMA))
        version_1.metadata.create_all(connection)
        _fill(connection)
    former.dispose()
    engine = store.open_store(store_url)
    yield engine
    engine.dispose()


def _fill(connection: sa.Connection) -> None:
    run = {"failed": True, "series": "s", "owner": "team-a", "job_name": "nightly_job", "at": NOW, "event_id": 1}
    thread = {"kind": "run", "channel": "#a", "owner": "team-a", "opened_at": NOW, "threshold": 1, "failures": 2}
    thread |= {"posted": True, "told": 1, "batches": 3, "reminders": 0}
    row = {"operation": "reply", "channel": "#a", "text": "t", "blocks": [], "stub": "s", "version": 1}
    row |= {"form": "blocks", "alone": False, "unsure_calls": 0, "note": "", "created_at": NOW}
    rows: dict[sa.Table, list[dict[str, object]]] = {
        version_1.schema_version: [{"version": 1}],
        version_1.outcomes: [
            {"run_id": "run_0", "execution": "run_0", "is_open": False, "thread": RESOLVED, **run},
            {
                "run_id": "run_1",
                "execution": "run_1",
                "is_open": True,
                "thread": OPEN,
                "fate": f"told in {OPEN}",
                **run,
            },
            {"run_id": "run_2", "execution": "run_2", "is_open": False, "muted": "mute 1", **run},
        ],
        version_1.threads: [
            {"key": RESOLVED, "closed_at": NOW, "finished": True, **thread},
            {"key": OPEN, "finished": False, **thread},
        ],
        version_1.incidents: [
            {"thread": RESOLVED, "series": "s", "ended_at": NOW},
            {"thread": OPEN, "series": "s", "ended_at": None},
        ],
        version_1.outbox: [
            {"key": f"{RESOLVED}/over", "thread": RESOLVED, "kind": "recovered", "state": "sent", **row},
            {"key": "overdue/x/edit/over/2", "thread": "overdue/x", "kind": "finding over", "state": "sent", **row},
            {"key": "run_9/team-a/over", "thread": "run_9/team-a", "kind": "recovered", "state": "pending", **row},
        ],
        version_1.mutes: [
            {"kind": "job", "pattern": "a", "reason": "r", "created_at": NOW, "ends_at": NOW, "summarised_at": None}
        ],
    }
    for table, values in rows.items():
        for one in values:
            connection.execute(sa.insert(table).values(**one))


def test_a_store_of_version_1_opens_and_keeps_its_rows(migrated: sa.Engine) -> None:
    with store.reading(migrated) as connection:
        assert store.version_of(connection) == tables.LATEST_VERSION
        opened = incidents.get(connection, OPEN)
        resolved = incidents.get(connection, RESOLVED)
        assert opened is not None
        assert resolved is not None
        assert (opened.kind, opened.failures, opened.notified_failures) == (IncidentKind.RUN, 2, 1)
        assert (opened.resolved_at, opened.finished) == (None, False)
        assert (resolved.resolved_at, resolved.finished) == (NOW, True)
        assert incidents.series_resolved_at(connection, RESOLVED) == NOW
        assert incidents.series_resolved_at(connection, OPEN) is None
        assert [one.run_id for one in outcomes.failures_of(connection, OPEN)] == ["run_1"]
        found = {row.run_id: row for row in connection.execute(sa.select(tables.outcomes))}
        assert found["run_1"].disposition == f"notified in {OPEN}"
        assert found["run_2"].muted_by == "mute 1"
        assert [mute.match for mute in without_summary(connection)] == ["job:a"]


def test_the_kinds_and_keys_of_messages_are_reworded_and_unsent_messages_keep_their_key(migrated: sa.Engine) -> None:
    with store.reading(migrated) as connection:
        found = {row.key: row.kind for row in connection.execute(sa.select(tables.outbox))}
        assert found == {
            f"{RESOLVED}/resolved": "resolved",
            "overdue/x/edit/resolved/2": "finding resolved",
            "run_9/team-a/over": "resolved",
        }
        row = outbox.next_row(connection, "#a", NOW)
        assert row is not None
        assert row.kind is NoticeKind.RESOLVED


def test_a_migrated_store_has_the_same_tables_and_indexes_as_a_new_one(migrated: sa.Engine, store_url: str) -> None:
    schema = tables.SCHEMA if migrated.dialect.name == "postgresql" else None
    form = _form(migrated, schema)
    with migrated.begin() as connection:
        for table in form:
            connection.exec_driver_sql(f'DROP TABLE {schema}."{table}"' if schema else f'DROP TABLE "{table}"')
    new = store.open_store(store_url)
    assert _form(new, schema) == form
    new.dispose()


def _form(engine: sa.Engine, schema: str | None) -> dict[str, object]:
    """Columns, primary key and indexes of every table."""
    inspector = sa.inspect(engine)
    return {
        name: (
            [(one["name"], str(one["type"]), one["nullable"]) for one in inspector.get_columns(name, schema)],
            inspector.get_pk_constraint(name, schema),
            sorted(
                (str(one["name"]), one["column_names"], {key: str(value) for key, value in _options(one).items()})
                for one in inspector.get_indexes(name, schema)
            ),
        )
        for name in inspector.get_table_names(schema)
    }


def _options(index: Any) -> dict[str, object]:
    options: dict[str, object] = index.get("dialect_options", {})
    return options
