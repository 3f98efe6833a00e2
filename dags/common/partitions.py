"""Daily partitions: which a run is for, and how one run is asked for several."""

import datetime as dt

import dagster as dg

# Dagster has no public name for them.
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def range_tags(first: dt.date, last: dt.date) -> dict[str, str]:
    """The tags of one run that is for every day from the first to the last."""
    return {RANGE_START_TAG: first.isoformat(), RANGE_END_TAG: last.isoformat()}


def days_of_run(context: dg.OpExecutionContext) -> list[dt.date] | None:
    """The days of a run over daily partitions, one or a range of them; None when the run is for no partition."""
    if not (context.has_partition_key or context.has_partition_key_range):
        return None
    return [dt.date.fromisoformat(key) for key in context.partition_keys]
