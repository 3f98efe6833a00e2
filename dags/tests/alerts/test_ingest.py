import datetime as dt

import dagster as dg
import pytest
import sqlalchemy as sa

from dags.alerts import ingest
from dags.alerts.ingest import Ingested
from dags.alerts.store import reading
from dags.alerts.tables import attempts, positions
from dags.common.event_log import reading as event_log
from dags.common.event_log.run_records import read_records
from dags.tests.alerts.site import Site
from dags.tests.alerts.world import asset_job, op_job

JOB = op_job("plain")


def take(site: Site, until: dt.datetime | None = None) -> Ingested:
    until = until or site.world.now + dt.timedelta(minutes=1)
    return ingest.ingest(site.world.instance, site.store, site.world, str, until)


def rows(site: Site) -> list[tuple[str, str, str]]:
    with reading(site.store) as connection:
        query = sa.select(attempts.c.run_id, attempts.c.subject, attempts.c.status).order_by(attempts.c.event_id)
        return [(row.run_id, row.subject, row.status) for row in connection.execute(query)]


def test_each_ended_run_is_one_row_however_often_it_is_read(site: Site) -> None:
    failed, succeeded, canceled = site.world.fail(JOB), site.world.succeed(JOB), site.world.cancel(JOB)
    assert [take(site).events for _ in range(3)] == [3, 0, 0]
    assert rows(site) == [(failed, "", "failed"), (succeeded, "", "succeeded"), (canceled, "", "canceled")]


def test_a_second_failure_event_of_a_run_is_absorbed(site: Site) -> None:
    run_id = site.world.fail(JOB)
    site.world.end(run_id, JOB.name, dg.DagsterEventType.RUN_FAILURE)
    take(site)
    assert rows(site) == [(run_id, "", "failed")]


def test_more_events_than_a_chunk_holds_are_all_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "MAX_EVENTS_PER_CHUNK", 3)
    runs = [site.world.fail(JOB) for _ in range(8)]
    assert take(site).events == 8
    assert [run_id for run_id, _, _ in rows(site)] == runs


def test_reading_stops_at_its_time_and_returns_until_when_everything_is_known(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MAX_EVENTS_PER_CHUNK", 2)
    begin = site.world.now
    for _ in range(5):
        site.world.fail(JOB)
        site.world.forward(10)
    found = take(site, until=site.world.now)
    assert found.events == 2
    assert found.known_until == begin
    later = take(site)
    assert later.events == 3
    assert later.known_until == site.world.now


def test_the_overlap_is_bounded_in_time(site: Site) -> None:
    for _ in range(30):
        site.world.fail(JOB)
        site.world.forward(30)
        take(site)
    with reading(site.store) as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(positions)).scalar_one() <= 6


def test_an_event_of_a_machine_whose_clock_is_ahead_is_not_delayed(site: Site) -> None:
    now = site.world.now
    site.world.forward(3600)
    site.world.fail(JOB)
    site.world.now = now
    take(site)
    with reading(site.store) as connection:
        assert connection.execute(sa.select(attempts.c.at)).scalar_one() == now


def test_a_check_that_fails_as_a_warning_is_no_attempt(site: Site) -> None:
    job = asset_job((("x", "team-a"),))
    site.world.check(job, "x", "rows", passed=False, severity=dg.AssetCheckSeverity.WARN)
    failed = site.world.check(job, "x", "rows", passed=False)
    take(site)
    assert [row for row in rows(site) if row[1]] == [(failed, "x:rows", "failed")]


def test_records_that_cannot_be_read_do_not_hide_the_others(site: Site) -> None:
    runs = [site.world.fail(JOB) for _ in range(4)]
    from dagster._core.storage.runs.schema import RunsTable

    storage: object = site.world.instance.run_storage
    with storage.connect() as connection:  # type: ignore[attr-defined]
        connection.execute(sa.update(RunsTable).where(RunsTable.c.run_id == runs[1]).values(run_body="{"))
    records, unreadable = read_records(site.world.instance, runs)
    assert set(records) == {runs[0], runs[2], runs[3]}
    assert list(unreadable) == [runs[1]]
    site.settle()
    assert site.without_disposition() == []
    assert set(site.dispositions()) == set(runs)
    assert len(site.posts("#default")) == 1


def test_a_database_that_does_not_answer_is_an_error_and_no_unreadable_run() -> None:
    class Gone:
        def get_run_records(self, *_: object, **__: object) -> None:
            raise sa.exc.OperationalError("SELECT", {}, ConnectionError("gone"))

    with pytest.raises(sa.exc.OperationalError):
        read_records(Gone(), ["a_run"])  # type: ignore[arg-type]


def test_the_sweep_rescues_no_run_that_was_read(site: Site) -> None:
    site.world.fail(JOB)
    site.tick()
    site.world.forward(600)
    assert list(ingest.sweep(site.world.instance, site.store, site.world.now)) == []
