import datetime as dt

import dagster as dg
import pytest

from dags.common.automation import follow_days, following_sensor
from dags.common.owners import JobOwners

DAYS = dg.DailyPartitionsDefinition("2026-03-01")
TABLE = dg.AssetKey("table")
NOON = dt.datetime(2026, 3, 20, 12, 1, tzinfo=dt.UTC)


@dg.asset
def events() -> None: ...


@dg.asset(partitions_def=DAYS, deps=[events])
def table() -> None: ...


@dg.asset(partitions_def=DAYS, deps=[table, events], automation_condition=follow_days(TABLE))
def follower() -> None: ...


@dg.asset(partitions_def=DAYS, deps=[table], automation_condition=follow_days(TABLE))
def failing() -> None:
    raise dg.Failure("as a test wants", allow_retries=False)


DEFS = dg.Definitions(assets=[events, table, follower, failing])


class Ticks:
    """Evaluates the condition of an asset again and again, a minute apart."""

    def __init__(self, asset: dg.AssetsDefinition = follower) -> None:
        self.instance = dg.DagsterInstance.ephemeral()
        self.asset = asset
        self.now = NOON
        self.cursor: object = None
        self.requested()

    def computed(self, key: dg.AssetKey, *days: str) -> None:
        for day in days:
            self.instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=day))

    def requested(self, minutes: int = 10) -> set[str]:
        """Return the days that are requested within some minutes."""
        found: set[str] = set()
        for _ in range(minutes):
            self.now += dt.timedelta(minutes=1)
            result = dg.evaluate_automation_conditions(
                DEFS,
                self.instance,
                asset_selection=dg.AssetSelection.assets(self.asset),
                evaluation_time=self.now,
                cursor=self.cursor,  # type: ignore[arg-type]
            )
            self.cursor = result.cursor
            found |= {key for key in result.get_requested_partitions(self.asset.key) if key is not None}
        return found


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


def test_every_recomputed_day_is_requested_once_however_old(ticks: Ticks) -> None:
    assert ticks.requested() == set()
    ticks.computed(TABLE, "2026-03-02", "2026-03-19")
    assert ticks.requested() == {"2026-03-02", "2026-03-19"}
    assert ticks.requested() == set()
    ticks.computed(TABLE, "2026-03-02")
    assert ticks.requested() == {"2026-03-02"}


def test_a_day_that_was_computed_with_its_follower_is_not_requested_again(ticks: Ticks) -> None:
    ticks.computed(TABLE, "2026-03-05")
    ticks.computed(follower.key, "2026-03-05")
    assert ticks.requested() == set()


def test_new_events_alone_request_nothing(ticks: Ticks) -> None:
    ticks.computed(TABLE, "2026-03-05")
    ticks.requested()
    ticks.instance.report_runless_asset_event(dg.AssetMaterialization(events.key))
    assert ticks.requested() == set()


def test_a_day_whose_run_failed_is_requested_again_within_the_hour() -> None:
    ticks = Ticks(failing)
    ticks.computed(TABLE, "2026-03-05")
    assert ticks.requested() == {"2026-03-05"}
    dg.materialize(
        [failing, table],
        instance=ticks.instance,
        partition_key="2026-03-05",
        selection=[failing],
        raise_on_error=False,
    )
    assert ticks.requested(60) == {"2026-03-05"}


def test_the_sensor_is_on_and_its_runs_carry_owner_and_maximum_runtime() -> None:
    sensor = following_sensor("follows", dg.AssetSelection.assets(follower), JobOwners.TEAM_CLICKHOUSE, 60)
    assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert dict(sensor.run_tags) == {"owner": "team-clickhouse", "dagster/max_runtime": "60"}
