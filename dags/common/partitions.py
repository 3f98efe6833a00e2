"""Daily partitions: the days of a run, and the tags of a run over several days."""

import datetime as dt
from collections.abc import Mapping

import dagster as dg

from dags.common.tags import PARTITION_TAG

# Dagster has no public names for these.
RANGE_START_TAG = "dagster/asset_partition_range_start"
RANGE_END_TAG = "dagster/asset_partition_range_end"


def range_tags(first: dt.date, last: dt.date) -> dict[str, str]:
    """Return the tags of one run over every day from the first to the last."""
    return {RANGE_START_TAG: first.isoformat(), RANGE_END_TAG: last.isoformat()}


def days_of_run(context: dg.OpExecutionContext) -> list[dt.date] | None:
    """Return the days of a run over one or several daily partitions; None for a run without partitions."""
    if not (context.has_partition_key or context.has_partition_key_range):
        return None
    return [dt.date.fromisoformat(key) for key in context.partition_keys]


def days_of_tags(tags: Mapping[str, str]) -> set[dt.date]:
    """Return the days that a run with these tags is to compute; none for a run without partitions."""
    if PARTITION_TAG in tags:
        return {dt.date.fromisoformat(tags[PARTITION_TAG])}
    if RANGE_START_TAG not in tags or RANGE_END_TAG not in tags:
        return set()
    first, last = (dt.date.fromisoformat(tags[tag]) for tag in (RANGE_START_TAG, RANGE_END_TAG))
    return {first + dt.timedelta(days=n) for n in range((last - first).days + 1)}
