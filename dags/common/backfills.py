"""The partitions of asset backfills in progress, which Dagster has no public name for; `test_backfills.py` pins it."""

from collections.abc import Collection

import dagster as dg
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, BulkActionsFilter, BulkActionStatus

IN_PROGRESS = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]


def partitions_in_backfills(instance: dg.DagsterInstance, asset_keys: Collection[dg.AssetKey]) -> set[str]:
    """Return the partitions of these assets that an unfinished backfill of the assets is to materialize."""
    found: set[str] = set()
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=IN_PROGRESS)):
        data = backfill.asset_backfill_data
        if data is not None:
            for key in data.target_subset.asset_keys & set(asset_keys):
                found.update(data.get_target_partitions_subset(key).get_partition_keys())
    return found
