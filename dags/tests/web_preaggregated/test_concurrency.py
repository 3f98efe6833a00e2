"""At most one run computes web tables at a time, with the limits of the project's own instance and a real daemon."""

import contextlib
import datetime as dt
import itertools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest

from dags.local.pools import record_pool_limits
from dags.tests import webserver
from dags.tests.web_preaggregated.events import DAY, Event, Numbers, Web, at
from dags.tests.webserver import LOOK_SECONDS, ROOT, START_SECONDS, Webserver, wait_for
from dags.web_preaggregated.assets import POOL

BACKFILL_SECONDS = 600
TEST_SECONDS = START_SECONDS + BACKFILL_SECONDS + 60
IN_PROGRESS = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
OVER = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
DAILY_KEYS = ["web_analytics_stats_table_daily", "web_analytics_bounces_daily"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An instance of its own with the project's configuration."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    webserver.write_workspace(tmp_path, "locations.web_analytics")
    return tmp_path


@contextlib.contextmanager
def serving(home: Path, web: Web) -> Iterator[Webserver]:
    """As in `make dev`: the limits recorded, then a web server, a daemon and a code server. A run takes one day."""
    # Without it the runs that the queue sees first of all start at once, whatever the limit is.
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


@dataclass(frozen=True)
class Watched:
    """What was seen of runs from the first to the end of the last: how they ended, and how many went on at once."""

    statuses: Mapping[str, dg.DagsterRunStatus]
    jobs: Sequence[str]
    most_at_once: int
    waited: bool
    spans: Sequence[tuple[float, float]]

    @property
    def overlap(self) -> bool:
        """Whether two runs went on at once, by their events: what a look sees may be too late."""
        return any(earlier[1] > later[0] for earlier, later in itertools.pairwise(self.spans))


def watch(home: Path, count: int) -> Watched:
    """Look at the runs until so many are over."""
    most_at_once, waited = 0, False
    statuses: dict[str, dg.DagsterRunStatus] = {}
    deadline = time.monotonic() + BACKFILL_SECONDS
    with dg.DagsterInstance.from_config(str(home)) as instance:
        while not (len(statuses) == count and set(statuses.values()) <= OVER):
            assert time.monotonic() < deadline, statuses
            time.sleep(LOOK_SECONDS)
            statuses = {run.run_id: run.status for run in instance.get_runs()}
            most_at_once = max(most_at_once, sum(status in IN_PROGRESS for status in statuses.values()))
            waited = waited or dg.DagsterRunStatus.QUEUED in statuses.values()
        spans = sorted(
            (stats.start_time, stats.end_time)
            for stats in map(instance.get_run_stats, statuses)
            if stats.start_time is not None and stats.end_time is not None
        )
        return Watched(statuses, sorted(run.job_name for run in instance.get_runs()), most_at_once, waited, spans)


def days(count: int) -> list[dt.date]:
    return [DAY + dt.timedelta(days=n) for n in range(count)]


@pytest.mark.slow
@pytest.mark.timeout(TEST_SECONDS)
def test_a_backfill_of_five_days_and_a_job_beside_it_run_one_at_a_time(home: Path, web: Web) -> None:
    web.add(*(Event(at("10:00:00", day=n), f"session {n}") for n in range(5)))
    with serving(home, web) as server:
        server.backfill(DAILY_KEYS, list(map(str, days(5))))
        with dg.DagsterInstance.from_config(str(home)) as instance:
            wait_for(lambda: instance.get_runs() or None, BACKFILL_SECONDS, "the backfill has runs")
        server.launch("web_analytics", "web_pre_aggregate_current_day_hourly_job")
        seen = watch(home, 6)
    assert set(seen.statuses.values()) == {dg.DagsterRunStatus.SUCCESS}, seen.statuses
    assert seen.jobs == ["__ASSET_JOB"] * 5 + ["web_pre_aggregate_current_day_hourly_job"]
    assert seen.waited, "no run was ever queued: the test proves nothing"
    assert seen.most_at_once == 1
    assert not seen.overlap, seen.spans
    assert [web.totals(day) for day in days(5)] == [Numbers(1, 1, 1, 1, 0)] * 5


@pytest.mark.slow
@pytest.mark.timeout(TEST_SECONDS)
def test_without_the_limit_of_the_pool_runs_go_on_at_once_and_the_watch_sees_it(home: Path, web: Web) -> None:
    configuration = home / "dagster.yaml"
    limited = configuration.read_text()
    configuration.write_text(limited.replace("default_limit: 1\n", "default_limit: 5\n"))
    assert configuration.read_text() != limited
    with serving(home, web) as server:
        server.backfill(DAILY_KEYS, list(map(str, days(3))))
        seen = watch(home, 3)
    assert seen.most_at_once > 1
    assert seen.overlap
