"""At most one run computes web tables at a time, with the limits of the project's own instance and a real daemon."""

import contextlib
import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from dags.local.pools import record_pool_limits
from dags.tests import webserver
from dags.tests.run_watch import Watched, watch
from dags.tests.web_preaggregated.events import DAY, Event, Numbers, Web, at
from dags.tests.webserver import ROOT, START_SECONDS, Webserver, wait_for
from dags.web_preaggregated.assets import POOL

BACKFILL_SECONDS = 600
TEST_SECONDS = START_SECONDS + BACKFILL_SECONDS + 60
DAILY_KEYS = ["web_sessions_daily"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An instance of its own with the project's configuration."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    webserver.write_workspace(tmp_path, "locations.web_analytics")
    return tmp_path


@contextlib.contextmanager
def serving(home: Path, web: Web) -> Iterator[Webserver]:
    """As in `make dev`: recorded limits, a web server, a daemon and a code server. A run computes one day."""
    # Without it, the first runs in the queue all start at once, regardless of the limit.
    with dg.DagsterInstance.from_config(str(home)) as instance:
        record_pool_limits(instance, [POOL])
    (host,) = web.cluster.hosts
    environment = {
        "CLICKHOUSE_PORT": str(host.port),
        "CLICKHOUSE_DATABASE": web.cluster.database,
        "DAGSTER_WEB_PREAGGREGATED_MAX_PARTITIONS_PER_RUN": "1",
    }
    with webserver.serving(home, webserver.DEVELOPMENT, environment) as server:
        yield server


def watched(home: Path, count: int) -> Watched:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        return watch(instance, count, BACKFILL_SECONDS)


def days(count: int) -> list[dt.date]:
    return [DAY + dt.timedelta(days=n) for n in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(TEST_SECONDS)
def test_the_runs_of_a_backfill_and_of_a_job_run_one_at_a_time(home: Path, web: Web) -> None:
    web.add(*(Event(at("10:00:00", day=n), f"session {n}") for n in range(5)))
    with serving(home, web) as server:
        server.backfill(DAILY_KEYS, list(map(str, days(5))))
        with dg.DagsterInstance.from_config(str(home)) as instance:
            wait_for(lambda: instance.get_runs() or None, BACKFILL_SECONDS, "the backfill has runs")
        server.launch("web_analytics", "web_pre_aggregate_current_day_hourly_job")
        seen = watched(home, 6)
    assert set(seen.statuses.values()) == {dg.DagsterRunStatus.SUCCESS}, seen.statuses
    assert seen.jobs == ["__ASSET_JOB"] * 5 + ["web_pre_aggregate_current_day_hourly_job"]
    assert seen.waited, "no run was ever queued: the test proves nothing"
    assert seen.most_at_once == 1
    assert not seen.overlap, seen.spans
    assert [web.totals(day) for day in days(5)] == [Numbers(1, 1, 1, 1, 0)] * 5


@pytest.mark.slow
@pytest.mark.timeout(TEST_SECONDS)
def test_without_the_limit_of_the_pool_runs_overlap_and_the_test_detects_it(home: Path, web: Web) -> None:
    configuration = home / "dagster.yaml"
    limited = configuration.read_text()
    configuration.write_text(limited.replace("default_limit: 1\n", "default_limit: 5\n"))
    assert configuration.read_text() != limited
    with serving(home, web) as server:
        server.backfill(DAILY_KEYS, list(map(str, days(3))))
        seen = watched(home, 3)
    assert seen.most_at_once > 1
    assert seen.overlap
