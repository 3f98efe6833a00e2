"""The rows that a condition matches, counted by shard and partition."""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from dags.common.markdown import markdown_table


@dataclass(frozen=True)
class MatchedRows:
    """The rows of one partition of one shard that a condition matches, and the parts that they are in."""

    rows: int
    parts: int
    # The days (UTC) of the rows; only where the query asks for them.
    days: frozenset[dt.date] = frozenset()


# By shard, then by partition (its id in system.parts). Partitions without a match are left out.
Matches = Mapping[int, Mapping[str, MatchedRows]]


def total(matches: Matches) -> MatchedRows:
    """Return the rows and parts of all shards together."""
    every = [matched for partitions in matches.values() for matched in partitions.values()]
    return MatchedRows(sum(one.rows for one in every), sum(one.parts for one in every))


def partitions_of(matches: Matches) -> list[str]:
    """Return the partitions that have a match on any shard."""
    return sorted({partition for partitions in matches.values() for partition in partitions})


def summary(matches: Matches) -> str:
    """Return one line for logs and errors."""
    matched = total(matches)
    return f"{matched.rows} rows in {matched.parts} parts of {len(partitions_of(matches))} partitions"


def as_markdown(matches: Matches) -> str:
    """Return the matches as a table."""
    rows = [
        [shard, partition, matched.rows, matched.parts]
        for shard, partitions in sorted(matches.items())
        for partition, matched in sorted(partitions.items())
    ]
    return markdown_table(["shard", "partition", "rows", "parts"], "rlrr", rows) or "Nothing."
