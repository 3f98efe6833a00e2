"""Dagster's own daemon: a late object makes its day stale, the day is recomputed, and exports and digest follow."""

import datetime as dt
import shutil
from pathlib import Path

import dagster as dg
import pytest

from dags.common.clickhouse.query import Insert
from dags.tests import webserver
from dags.tests.events.world import World, event, lines
from dags.tests.webserver import ROOT, START_SECONDS, wait_for
from dags.web_preaggregated.jobs import STALE_DAYS_TAG

DAY = dt.date(2026, 3, 11)
# Ticks of four sensors, five minutes between requests of followers, and a backfill of each.
SETTLE_SECONDS = 900


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A separate instance with the project's configuration."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    webserver.write_workspace(
        tmp_path, "locations.ingestion", "locations.web_analytics", "locations.analytics_platform"
    )
    return tmp_path


def put(world: World, name: str, first: int, count: int) -> None:
    found = [
        event(number, timestamp=f"{DAY}T10:{number % 60:02d}:00Z", properties={"$session_id": f"s{number}"})
        for number in range(first, first + count)
    ]
    world.put(name, lines(found))


def wait_for_pageviews(world: World, count: int) -> None:
    """Wait until the table and the digest of the day have so many pageviews."""

    def followed() -> bool | None:
        table = world.rows("SELECT sum(pageviews) FROM web_sessions WHERE toDate(started_at) = %(day)s", day=DAY)
        digest = world.rows("SELECT sum(pageviews) FROM analytics_digest_daily WHERE day = %(day)s", day=DAY)
        return True if [row[0] for row in (*table, *digest)] == [count, count] else None

    wait_for(followed, SETTLE_SECONDS, f"the day and its digest have {count} pageviews")


def export_times(world: World) -> dict[str, dt.datetime]:
    found = world.s3.list_objects_v2(Bucket=world.storage.bucket, Prefix="exports/").get("Contents", [])
    return {one["Key"]: one["LastModified"] for one in found if f"day={DAY}" in one["Key"]}


def let_an_hour_pass(world: World, instance: dg.DagsterInstance) -> None:
    """Date everything that the sensor waits an hour for back."""
    columns = ("day", "input_fingerprint", "sessions", "pageviews", "raw_pageviews", "left_out", "run_id", "version")
    rows = world.rows(f"SELECT {', '.join(columns)} FROM web_session_days FINAL")  # noqa: S608 - names above
    hours_ago = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
    dated = [(*row[:-1], row[-1] + 1, hours_ago) for row in rows]
    world.cluster.any_host(Insert("web_session_days", (*columns, "computed_at"), dated)).result()
    for run in instance.get_runs(dg.RunsFilter(tags={STALE_DAYS_TAG: "true"})):
        if run.is_finished:
            instance.delete_run(run.run_id)


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + 2 * SETTLE_SECONDS + 60)
def test_a_late_object_reaches_table_exports_and_digest(home: Path, world: World) -> None:
    (host,) = world.cluster.hosts
    environment = {
        "CLICKHOUSE_PORT": str(host.port),
        "CLICKHOUSE_DATABASE": world.cluster.database,
        "POSTGRES_PORT": str(world.postgres.port),
        "POSTGRES_DATABASE": world.postgres.database,
        "OBJECT_STORAGE_ENDPOINT": world.storage.bucket_url.removesuffix(f"/{world.storage.bucket}"),
        "OBJECT_STORAGE_BUCKET": world.storage.bucket,
    }
    put(world, "in-time.jsonl", 0, 40)
    with (
        webserver.serving(home, webserver.DEVELOPMENT, environment),
        dg.DagsterInstance.from_config(str(home)) as instance,
    ):
        wait_for_pageviews(world, 40)
        before = export_times(world)
        assert before
        let_an_hour_pass(world, instance)
        put(world, "late.jsonl", 40, 30)
        wait_for_pageviews(world, 70)

        def exported() -> bool | None:
            after = export_times(world)
            return True if all(after.get(key, before[key]) > before[key] for key in before) else None

        wait_for(exported, SETTLE_SECONDS, "the exports follow")
        for run in instance.get_runs():
            assert run.tags.get("owner", "").startswith("team-"), (run.job_name, run.tags)
