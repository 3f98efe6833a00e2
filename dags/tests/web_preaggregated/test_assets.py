import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.staging import staging_name
from dags.common.metadata import PARTITION_ROW_COUNT
from dags.locations import web_analytics
from dags.tests.resources import clickhouse_resource
from dags.tests.web_preaggregated.events import DAY, Event, Numbers, Web, at, modelled_entries, sessions_of
from dags.web_preaggregated.assets import POOL, daily_web_tables, web_analytics_hourly_tables
from dags.web_preaggregated.assets import web_analytics_team_selection as team_selection
from dags.web_preaggregated.statements import DAILY, HOURLY

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
DAILY_KEYS = ("web_analytics_stats_table_daily", "web_analytics_bounces_daily")
AFTER = DAY + dt.timedelta(days=1)


@dataclass(frozen=True)
class Platform:
    """The real assets and checks of the location, in a real Dagster instance on a real ClickHouse."""

    instance: dg.DagsterInstance
    cluster: ClickhouseCluster

    def run(
        self, selection: dg.AssetSelection, *days: dt.date, config: Mapping[str, Any] | None = None
    ) -> dg.ExecuteInProcessResult:
        """Run a selection for no day, one day, or a range of days; errors are in the result."""
        job = dg.define_asset_job("some_job", selection)
        definitions = dg.Definitions(
            assets=[daily_web_tables(14), web_analytics_hourly_tables, team_selection],
            asset_checks=list(web_analytics.defs.asset_checks or []),
            jobs=[job],
            resources={"clickhouse": clickhouse_resource(self.cluster)},
        )
        return definitions.resolve_job_def("some_job").execute_in_process(
            instance=self.instance,
            partition_key=str(days[0]) if len(days) == 1 else None,
            tags={RANGE_START_TAG: str(days[0]), RANGE_END_TAG: str(days[1])} if len(days) == 2 else None,
            run_config=config and {"ops": dict(config)},
            raise_on_error=False,
        )

    def days(self, *days: dt.date) -> dg.ExecuteInProcessResult:
        """Run the daily tables with their checks."""
        return self.run(dg.AssetSelection.assets(*DAILY_KEYS), *days)

    def metadata(self, key: str, partition: str | None = None) -> Mapping[str, Any]:
        """The metadata of the newest materialization."""
        records = self.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key=dg.AssetKey(key), asset_partitions=None if partition is None else [partition]
            ),
            limit=1,
        ).records
        found = records[0].asset_materialization
        assert found is not None
        return {name: value.value for name, value in found.metadata.items()}


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {one.check_name: one for one in result.get_asset_check_evaluations()}


@pytest.fixture
def platform(cluster: ClickhouseCluster) -> Iterator[Platform]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Platform(instance, cluster)


def test_days_are_computed_in_one_run_with_metadata_for_each_and_checked_against_the_raw_events(
    web: Web, platform: Platform
) -> None:
    web.add(Event(at("23:50:00")), Event(at("00:10:00", day=1), pathname="/out"), Event(at("09:00:00", day=1), "b"))
    result = platform.days(DAY, AFTER)
    assert result.success
    assert web.totals() == Numbers(2, 1, 1, 0, 1200)
    for key in DAILY_KEYS:
        metadata = platform.metadata(key, str(DAY))
        assert (metadata["pageviews"], metadata["visitors"], metadata["sessions"]) == (2, 1, 1)
        assert (metadata["bounce_rate_percent"], metadata["mean_session_duration_seconds"]) == (0, 1200)
        assert metadata["days_in_run"] == 2
        assert "| 1 | `example.com` | `/out` | 1 | 1 |" in metadata["top_pages"]
        assert platform.metadata(key, str(AFTER))["bounce_rate_percent"] == 100
        for name in (
            PARTITION_ROW_COUNT,
            "seconds_of_run",
            "rows_read_by_run",
            "bytes_read_by_run",
            "peak_memory_of_run_bytes",
        ):
            assert metadata[name] > 0
    checks = checks_of(result)
    assert len(checks) == 5
    assert all(check.passed for check in checks.values())
    for name in ("web_stats_daily_equals_raw_events", "web_bounces_daily_equals_raw_events"):
        assert checks[name].metadata["days_compared"].value == 2
        assert checks[name].metadata["groups_compared"].value in range(4, 100)


def test_a_day_without_sessions_has_no_rates(web: Web, platform: Platform) -> None:
    assert platform.days(DAY).success
    metadata = platform.metadata(DAILY_KEYS[0], str(DAY))
    assert metadata["sessions"] == 0
    assert "bounce_rate_percent" not in metadata
    assert web.totals() == Numbers()


def test_late_data_fails_the_check_with_the_numbers_and_the_remedy(web: Web, platform: Platform) -> None:
    web.add(Event(at("10:00:00")))
    assert platform.days(DAY).success
    web.add(Event(at("10:00:05"), pathname="/late"))
    result = platform.run(dg.AssetSelection.checks_for_assets(*map(dg.AssetKey, DAILY_KEYS)))
    checks = checks_of(result)
    stats = checks["web_stats_daily_equals_raw_events"]
    assert not stats.passed
    assert f"team 1, {DAY}, /late: pageviews 0 stored, 1 in the events" in (stats.description or "")
    assert f"team 1, {DAY}, all paths: pageviews 1 stored, 2 in the events" in (stats.description or "")
    assert f"Materialize {DAY} again" in (stats.description or "")
    bounces = checks["web_bounces_daily_equals_raw_events"]
    assert "bounces 1 stored, 0 in the events; session_seconds 0 stored, 5 in the events" in (bounces.description or "")
    assert checks_of(platform.days(DAY))["web_stats_daily_equals_raw_events"].passed


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE web_stats_daily DELETE WHERE pathname = '/b' SETTINGS mutations_sync = 2",
        "INSERT INTO web_stats_daily SELECT * REPLACE ('/c' AS pathname) FROM web_stats_daily",
        "INSERT INTO web_stats_daily SELECT * REPLACE (9 AS team_id) FROM web_stats_daily",
    ],
)
def test_any_difference_from_the_raw_events_fails_the_check(web: Web, platform: Platform, change: str) -> None:
    web.add(Event(at("10:00:00")), Event(at("10:00:05"), pathname="/b"))
    assert platform.days(DAY).success
    web.rows(change)
    result = platform.run(dg.AssetSelection.checks_for_assets(dg.AssetKey(DAILY_KEYS[0])))
    assert not checks_of(result)["web_stats_daily_equals_raw_events"].passed


def test_a_day_whose_sessions_may_continue_is_not_compared(web: Web, platform: Platform) -> None:
    yesterday = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    web.add(Event(dt.datetime.combine(yesterday, dt.time(0, 1), tzinfo=dt.UTC)))
    check = checks_of(platform.days(yesterday))["web_stats_daily_equals_raw_events"]
    assert check.passed
    assert (check.metadata["days_compared"].value, check.metadata["days_not_closed"].value) == (0, 1)
    assert "None of these days is closed" in (check.description or "")


def test_a_day_without_rows_and_a_day_with_events_that_is_not_computed_are_reported(
    web: Web, platform: Platform
) -> None:
    web.add(Event(at("10:00:00")), Event(at("10:00:00", day=1), "next"))
    assert platform.days(DAY).success
    checks = checks_of(platform.run(dg.AssetSelection.checks_for_assets(dg.AssetKey(DAILY_KEYS[0]))))
    assert checks["web_stats_daily_has_data"].passed
    assert not checks["web_stats_daily_is_fresh"].passed
    assert str(AFTER) in (checks["web_stats_daily_is_fresh"].description or "")
    empty = checks_of(platform.days(DAY - dt.timedelta(days=1)))["web_stats_daily_has_data"]
    assert not empty.passed
    assert empty.severity is dg.AssetCheckSeverity.WARN


def test_the_current_day_is_computed_by_hour_and_older_days_are_dropped(web: Web, platform: Platform) -> None:
    events = [Event(at("10:59:00")), Event(at("11:01:00"), pathname="/b"), Event(at("11:05:00"), "next")]
    web.add(*events, Event(at("10:00:00", day=-1), "yesterday"), Event(at("10:00:00", day=-2), "before"))
    web.compute(DAY - dt.timedelta(days=2), grain=HOURLY)

    def hourly(now: str) -> dg.ExecuteInProcessResult:
        selection = dg.AssetSelection.assets(
            "web_analytics_stats_table_hourly", "web_analytics_bounces_hourly"
        ).without_checks()
        return platform.run(selection, config={"web_analytics_hourly_tables": {"config": {"now": now}}})

    assert hourly(f"{DAY}T12:20:00+00:00").success
    assert web.entries(HOURLY) == modelled_entries(sessions_of(events, []), HOURLY)
    assert platform.metadata("web_analytics_stats_table_hourly")["pageviews"] == 3
    # Shortly after midnight yesterday is computed again, because the daily table may not have it yet.
    assert hourly(f"{DAY}T01:20:00+00:00").success
    assert web.rows("SELECT DISTINCT toDate(period_bucket) AS day FROM web_bounces_hourly ORDER BY day") == [
        (DAY - dt.timedelta(days=1),),
        (DAY,),
    ]
    assert not hourly(f"{DAY}T01:20:00").success


def test_the_selection_of_teams_applies_to_the_next_run_and_removes_the_others(web: Web, platform: Platform) -> None:
    def select(*teams: int) -> Mapping[str, Any]:
        config = {"web_analytics_team_selection": {"config": {"team_ids": list(teams)}}}
        assert platform.run(dg.AssetSelection.assets("web_analytics_team_selection"), config=config).success
        return platform.metadata("web_analytics_team_selection")

    def pageviews() -> list[int]:
        return [web.totals(team_id=team).pageviews for team in (1, 2, 3)]

    web.add(*(Event(at("10:00:00"), team_id=team) for team in (1, 2, 3)))
    platform.days(DAY)
    assert pageviews() == [1, 1, 1]
    metadata = select(1, 2)
    assert pageviews() == [1, 1, 0]
    assert (metadata["added"], metadata["removed"], metadata["rows_removed_from_web_stats_daily"]) == ([1, 2], [], 1)
    assert select(2)["removed"] == [1]
    assert pageviews() == [0, 1, 0]
    result = platform.days(DAY)
    assert all(check.passed for check in checks_of(result).values())
    assert pageviews() == [0, 1, 0]
    assert select()["all_teams"] is True
    platform.days(DAY)
    assert pageviews() == [1, 1, 1]


def test_the_next_run_drops_the_staging_tables_of_finished_runs(
    web: Web, platform: Platform, cluster: ClickhouseCluster
) -> None:
    dead = platform.days(DAY).run_id
    name = staging_name(DAILY.stats, dead)
    cluster.any_host(Query(f"CREATE TABLE {name} (x UInt8) ENGINE = MergeTree ORDER BY x")).result()
    assert platform.days(DAY).success
    assert web.rows("SELECT count() FROM system.tables WHERE name = %(name)s", name=name) == [(0,)]


def test_a_permanent_failure_is_not_retried_and_leaves_the_tables_unchanged(web: Web, platform: Platform) -> None:
    web.add(Event(at("10:00:00")))
    platform.days(DAY)
    web.rows("ALTER TABLE web_stats_daily ADD COLUMN strange UInt8")
    result = platform.days(DAY)
    assert not result.success
    assert not any(event.is_step_up_for_retry for event in result.all_events)
    assert web.totals().pageviews == 1


def test_queries_are_tagged_with_run_job_asset_and_owner(web: Web, platform: Platform) -> None:
    run_id = platform.days(DAY).run_id
    web.rows("SYSTEM FLUSH LOGS")
    rows = web.rows(
        "SELECT DISTINCT JSONExtractString(log_comment, 'owner') FROM system.query_log "
        "WHERE current_database = currentDatabase() AND JSONExtractString(log_comment, 'run_id') = %(run_id)s",
        run_id=run_id,
    )
    assert rows == [("team-web-analytics",)]


def test_every_step_that_computes_web_tables_is_in_the_pool() -> None:
    for assets in (daily_web_tables(3), web_analytics_hourly_tables, team_selection):
        assert assets.op.pool == POOL


def test_a_backfill_packs_the_given_number_of_days_into_a_run() -> None:
    policy = daily_web_tables(3).backfill_policy
    assert policy is not None
    assert policy.max_partitions_per_run == 3
