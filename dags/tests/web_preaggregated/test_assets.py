import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pytest

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.staging import staging_name
from dags.common.clickhouse.tables import WEB_SESSIONS
from dags.common.metadata import PARTITION_ROW_COUNT
from dags.locations import web_analytics
from dags.tests.resources import clickhouse_resource
from dags.tests.web_preaggregated.events import DAY, Event, Numbers, Web, at, modelled_rows, sessions_of
from dags.web_preaggregated.assets import POOL, web_sessions_current_day, web_sessions_daily
from dags.web_preaggregated.assets import web_analytics_team_selection as team_selection
from dags.web_preaggregated.checks import SESSIONS_EQUAL_RAW_EVENTS

RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"
DAILY_KEY = "web_sessions_daily"
EQUALITY = "web_sessions_daily_equals_raw_events"
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
            assets=[web_sessions_daily(14), web_sessions_current_day, team_selection],
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
        """Run the days with their checks, as the daily job does."""
        selection = dg.AssetSelection.assets(DAILY_KEY) - dg.AssetSelection.checks(SESSIONS_EQUAL_RAW_EVENTS)
        return self.run(selection, *days)

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
    metadata = platform.metadata(DAILY_KEY, str(DAY))
    assert (metadata["pageviews"], metadata["visitors"], metadata["sessions"]) == (2, 1, 1)
    assert (metadata["raw_pageviews"], metadata["left_out_pageviews"]) == (1, 0)
    assert (metadata["bounce_rate_percent"], metadata["mean_session_duration_seconds"]) == (0, 1200)
    assert metadata["days_in_run"] == 2
    assert "| 1 | `example.com` | `/out` | 1 | 1 |" in metadata["top_pages"]
    assert platform.metadata(DAILY_KEY, str(AFTER))["bounce_rate_percent"] == 100
    for name in (
        PARTITION_ROW_COUNT,
        "seconds_of_run",
        "rows_read_by_run",
        "bytes_read_by_run",
        "peak_memory_of_run_bytes",
    ):
        assert metadata[name] > 0
    checks = checks_of(result)
    assert len(checks) == 3
    assert all(check.passed for check in checks.values())
    assert checks[EQUALITY].metadata["days_compared"].value == 2
    assert checks[EQUALITY].metadata["groups_compared"].value in range(10, 100)


def test_a_day_without_sessions_has_no_rates(web: Web, platform: Platform) -> None:
    assert platform.days(DAY).success
    metadata = platform.metadata(DAILY_KEY, str(DAY))
    assert metadata["sessions"] == 0
    assert "bounce_rate_percent" not in metadata
    assert web.totals() == Numbers()


def test_late_data_fails_the_check_with_the_numbers_and_the_remedy(web: Web, platform: Platform) -> None:
    web.add(Event(at("10:00:00")))
    assert platform.days(DAY).success
    web.add(Event(at("10:00:05"), pathname="/late"))
    result = platform.run(dg.AssetSelection.checks_for_assets(dg.AssetKey(DAILY_KEY)))
    check = checks_of(result)[EQUALITY]
    assert not check.passed
    for text in (
        f"team 1, {DAY}, example.com/late: pageviews 0 stored, 1 in the events",
        f"team 1, {DAY}, all pages: pageviews 1 stored, 2 in the events",
        "bounces 1 stored, 0 in the events; session_seconds 0 stored, 5 in the events",
        f"{DAY}, all teams: pageviews in sessions 1 stored, 2 in the events",
        f"Materialize {DAY} again",
    ):
        assert text in (check.description or "")
    assert checks_of(platform.days(DAY))[EQUALITY].passed


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE web_sessions DELETE WHERE entry_pathname = '/' SETTINGS mutations_sync = 2",
        "ALTER TABLE web_sessions UPDATE pages = [pages[1], ('', '', pages[2].3)] WHERE 1 SETTINGS mutations_sync = 2",
        "ALTER TABLE web_sessions UPDATE browser = 'Safari' WHERE 1 SETTINGS mutations_sync = 2",
        "ALTER TABLE web_session_days UPDATE left_out = map('no_session_id', 1) WHERE 1 SETTINGS mutations_sync = 2",
        "INSERT INTO web_sessions SELECT * REPLACE ('again' AS session_id) FROM web_sessions",
        "INSERT INTO web_sessions SELECT * REPLACE (9 AS team_id) FROM web_sessions",
    ],
)
def test_any_difference_from_the_raw_events_fails_the_check(web: Web, platform: Platform, change: str) -> None:
    web.add(Event(at("10:00:00")), Event(at("10:00:05"), pathname="/b"))
    assert platform.days(DAY).success
    web.rows(change)
    result = platform.run(dg.AssetSelection.checks_for_assets(dg.AssetKey(DAILY_KEY)))
    assert not checks_of(result)[EQUALITY].passed


def test_the_check_of_the_morning_compares_the_last_31_closed_days_computed_or_not(
    web: Web, platform: Platform
) -> None:
    newest = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=2)

    def morning() -> dg.AssetCheckEvaluation:
        result = platform.run(dg.AssetSelection.checks(SESSIONS_EQUAL_RAW_EVENTS))
        (found,) = result.get_asset_check_evaluations()
        return found

    def event(days_before: int) -> Event:
        day = newest - dt.timedelta(days=days_before)
        return Event(dt.datetime.combine(day, dt.time(10), tzinfo=dt.UTC), f"session {days_before}")

    web.add(event(0), event(30), event(31))
    check = morning()
    assert not check.passed
    assert check.metadata["days_compared"].value == 31
    assert f"{newest - dt.timedelta(days=30)}, all pages" in (check.description or "")
    assert f"{newest - dt.timedelta(days=31)}" not in (check.description or "")
    web.compute(newest, newest - dt.timedelta(days=30))
    assert morning().passed


def test_a_day_whose_sessions_may_continue_is_not_compared(web: Web, platform: Platform) -> None:
    yesterday = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1)
    web.add(Event(dt.datetime.combine(yesterday, dt.time(0, 1), tzinfo=dt.UTC)))
    check = checks_of(platform.days(yesterday))[EQUALITY]
    assert check.passed
    assert (check.metadata["days_compared"].value, check.metadata["days_not_closed"].value) == (0, 1)
    assert "None of these days is closed" in (check.description or "")


def test_a_day_without_rows_and_a_day_with_events_that_is_not_computed_are_reported(
    web: Web, platform: Platform
) -> None:
    web.add(Event(at("10:00:00")), Event(at("10:00:00", day=1), "next"))
    assert platform.days(DAY).success
    checks = checks_of(platform.run(dg.AssetSelection.checks_for_assets(dg.AssetKey(DAILY_KEY))))
    assert checks["web_sessions_daily_has_data"].passed
    assert not checks["web_sessions_daily_is_fresh"].passed
    assert str(AFTER) in (checks["web_sessions_daily_is_fresh"].description or "")
    empty = checks_of(platform.days(DAY - dt.timedelta(days=1)))["web_sessions_daily_has_data"]
    assert not empty.passed
    assert empty.severity is dg.AssetCheckSeverity.WARN


def test_the_current_day_is_computed_with_yesterday_shortly_after_midnight_and_other_days_stay(
    web: Web, platform: Platform
) -> None:
    today = [Event(at("10:59:00")), Event(at("11:01:00"), pathname="/b"), Event(at("11:05:00"), "next")]
    yesterday = [Event(at("10:00:00", day=-1), "yesterday")]
    before = [Event(at("10:00:00", day=-2), "before")]
    web.add(*today, *yesterday, *before)
    web.compute(DAY - dt.timedelta(days=2))

    def current_day(now: str) -> dg.ExecuteInProcessResult:
        selection = dg.AssetSelection.assets("web_sessions_current_day").without_checks()
        return platform.run(selection, config={"web_sessions_current_day": {"config": {"now": now}}})

    assert current_day(f"{DAY}T12:20:00+00:00").success
    assert web.sessions() == modelled_rows(sessions_of([*today, *before], []))
    assert platform.metadata("web_sessions_current_day")["pageviews"] == 3
    # Shortly after midnight yesterday is computed again, because the daily job may not have done it yet.
    assert current_day(f"{DAY}T01:20:00+00:00").success
    assert web.sessions() == modelled_rows(sessions_of([*today, *yesterday, *before], []))
    assert not current_day(f"{DAY}T01:20:00").success


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
    assert (metadata["added"], metadata["removed"], metadata["sessions_removed"]) == ([1, 2], [], 1)
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
    name = staging_name(WEB_SESSIONS, dead)
    cluster.any_host(Query(f"CREATE TABLE {name} (x UInt8) ENGINE = MergeTree ORDER BY x")).result()
    assert platform.days(DAY).success
    assert web.rows("SELECT count() FROM system.tables WHERE name = %(name)s", name=name) == [(0,)]


def test_a_permanent_failure_is_not_retried_and_leaves_the_tables_unchanged(web: Web, platform: Platform) -> None:
    web.add(Event(at("10:00:00")))
    platform.days(DAY)
    web.rows("ALTER TABLE web_sessions ADD COLUMN strange UInt8")
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
    for assets in (web_sessions_daily(3), web_sessions_current_day, team_selection):
        assert assets.op.pool == POOL


def test_a_backfill_packs_the_given_number_of_days_into_a_run() -> None:
    policy = web_sessions_daily(3).backfill_policy
    assert policy is not None
    assert policy.max_partitions_per_run == 3
