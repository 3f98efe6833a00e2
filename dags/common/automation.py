"""Assets that follow another asset day by day: the condition, and the sensor that evaluates it."""

import dagster as dg

from dags.common.owners import JobOwners, owner_tags
from dags.common.tags import MAX_RUNTIME_TAG

# How often days are requested. Recomputed days come in batches, so those of some minutes share their runs.
FOLLOW_CRON = "*/5 * * * *"
RETRY_CRON = "35 * * * *"


def follow_days(table: dg.AssetKey) -> dg.AutomationCondition[dg.AssetKey]:
    """Return the condition of a daily asset that is computed from the same day of a table.

    Every day that the table gets or gets again is requested, however late. A day whose run failed is requested again
    every hour, and a day that the table lacks is not. Other dependencies, such as the events, request nothing.
    """
    of_table = dg.AssetSelection.assets(table)
    updated = dg.AutomationCondition.any_deps_updated().allow(of_table).since_last_handled()
    missing = dg.AutomationCondition.any_deps_missing().allow(of_table)
    return (
        (
            (updated & dg.AutomationCondition.cron_tick_passed(FOLLOW_CRON))
            | (dg.AutomationCondition.execution_failed() & dg.AutomationCondition.cron_tick_passed(RETRY_CRON))
        )
        & ~missing
        & ~dg.AutomationCondition.in_progress()
    )


def following_sensor(
    name: str, assets: dg.AssetSelection, owner: JobOwners, max_runtime_seconds: int
) -> dg.AutomationConditionSensorDefinition:
    """Return the sensor, on by default, that evaluates the conditions of these assets. Its runs carry the owner."""
    return dg.AutomationConditionSensorDefinition(
        name,
        target=assets,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Requests the days that follow recomputed days of another table.",
        tags=owner_tags(owner),
        run_tags=owner_tags(owner, **{MAX_RUNTIME_TAG: str(max_runtime_seconds)}),
    )
