import datetime as dt
import threading
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from dags.alerts import store as stores
from dags.alerts import tables
from dags.alerts.queries.stored_values import get_value, set_value
from dags.alerts.store import StoreVersionError, migrate, open_store, reading, transaction, version_of
from dags.alerts.tables import attempts


def test_a_new_store_has_every_table_at_the_latest_version(store: sa.Engine) -> None:
    schema = tables.SCHEMA if store.dialect.name == "postgresql" else None
    assert set(sa.inspect(store).get_table_names(schema=schema)) == set(tables.metadata.tables)
    with reading(store) as connection:
        assert version_of(connection) == tables.LATEST_VERSION


def test_a_store_opens_again_with_what_is_in_it(store: sa.Engine, store_url: str) -> None:
    with transaction(store) as connection:
        set_value(connection, "name", "one")
        set_value(connection, "name", "two")
    again = open_store(store_url)
    with reading(again) as connection:
        assert get_value(connection, "name") == "two"
        assert get_value(connection, "other") is None
    again.dispose()


def test_a_transaction_that_fails_leaves_nothing(store: sa.Engine) -> None:
    def broken() -> None:
        with transaction(store) as connection:
            set_value(connection, "name", "one")
            raise LookupError("half-way")

    with pytest.raises(LookupError, match="half-way"):
        broken()
    with reading(store) as connection:
        assert get_value(connection, "name") is None


def test_transactions_run_one_after_another(store: sa.Engine) -> None:
    def count() -> None:
        for _ in range(10):
            with transaction(store) as connection:
                set_value(connection, "count", str(int(get_value(connection, "count") or 0) + 1))

    counters = [threading.Thread(target=count) for _ in range(4)]
    for one in counters:
        one.start()
    for one in counters:
        one.join()
    with reading(store) as connection:
        assert get_value(connection, "count") == "40"


def test_several_processes_may_create_the_same_store_at_once(store_url: str) -> None:
    opened: list[sa.Engine] = []
    openers = [threading.Thread(target=lambda: opened.append(open_store(store_url))) for _ in range(4)]
    for one in openers:
        one.start()
    for one in openers:
        one.join()
    assert len(opened) == 4
    for engine in opened:
        with reading(engine) as connection:
            assert version_of(connection) == tables.LATEST_VERSION
        engine.dispose()


def test_an_older_store_is_migrated_through_each_version_once(store: sa.Engine) -> None:
    latest = tables.LATEST_VERSION

    def add(name: str) -> tables.Migration:
        return lambda connection: set_value(connection, name, str((get_value(connection, name) or "") + "x"))

    steps = {latest + 1: add("first"), latest + 2: add("second")}
    for _ in range(2):
        migrate(store, steps, latest + 2)
    with reading(store) as connection:
        assert version_of(connection) == latest + 2
        assert (get_value(connection, "first"), get_value(connection, "second")) == ("x", "x")


def test_a_migration_that_fails_leaves_the_previous_version(store: sa.Engine) -> None:
    latest = tables.LATEST_VERSION

    def broken(connection: sa.Connection) -> None:
        set_value(connection, "half", "done")
        raise LookupError("half-way")

    with pytest.raises(LookupError, match="half-way"):
        migrate(store, {latest + 1: broken}, latest + 1)
    with reading(store) as connection:
        assert version_of(connection) == latest
        assert get_value(connection, "half") is None


def test_a_store_that_a_newer_release_wrote_is_refused(store: sa.Engine) -> None:
    with transaction(store) as connection:
        connection.execute(sa.update(tables.schema_version).values(version=99))
    with pytest.raises(StoreVersionError, match="at version 99"):
        migrate(store)


def test_every_version_has_its_migration() -> None:
    assert sorted(tables.MIGRATIONS) == list(range(2, tables.LATEST_VERSION + 1))


def test_times_come_back_aware_and_in_order(store: sa.Engine) -> None:
    east = dt.timezone(dt.timedelta(hours=5))
    times = [dt.datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=dt.UTC), dt.datetime(2026, 3, 1, 18, tzinfo=east)]
    row = {"subject": "", "status": "failed", "event_id": 1, "job_name": "j", "rescued": False, "state": "new"}
    with transaction(store) as connection:
        for number, time in enumerate(times):
            connection.execute(
                sa.insert(attempts).values(run_id=str(number), at=time, seen_at=time, due_at=time, **row)
            )
        found = list(connection.execute(sa.select(attempts.c.at).order_by(attempts.c.at)).scalars())
    assert found == sorted(times)
    assert all(time.utcoffset() == dt.timedelta() for time in found)


def test_a_time_without_a_zone_is_refused(store: sa.Engine) -> None:
    naive = dt.datetime(2026, 3, 1)  # noqa: DTZ001 - what is refused
    with pytest.raises(sa.exc.StatementError, match="no time zone"), reading(store) as connection:
        connection.execute(sa.select(attempts).where(attempts.c.at == naive))


def test_the_store_of_an_instance_in_files_is_a_file_beside_it(tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        assert stores.address_of(instance) == tmp_path / "alerts.sqlite"
