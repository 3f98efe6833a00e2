"""Accounting for staged lines: each line of each object is an event, skipped by a named rule, or rejected."""

import datetime as dt
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from dags.common.clickhouse.query import quoted
from dags.events.manifest import EPOCH, Entry, Manifest, ObjectState, known_version
from dags.events.objects import ObjectProblem, ObjectVersion, team_of
from dags.events.staging import StagedBatch
from dags.events.staging_table import IS_EVENT

BOT_RULE = "bot"
BLANK_RULE = "blank line"

COUNTS_STATEMENT = """
SELECT
    object, etag, any(object_id), count(), max(line), countIf({is_event}), countIf(rejected_because != ''),
    minIf(timestamp, {is_event}), maxIf(timestamp, {is_event}), anyIf(rejected_because, rejected_because != '')
FROM {table} GROUP BY object, etag
"""
SKIPPED_STATEMENT = "SELECT object, skipped_by, count() FROM {table} WHERE skipped_by != '' GROUP BY object, skipped_by"
BOTS_STATEMENT = """
SELECT object, count() FROM {table}
WHERE {is_event} AND chunk >= %(first_log_chunk)s AND agent IN (SELECT agent FROM {agents} WHERE is_bot)
GROUP BY object
"""
DAYS_STATEMENT = """
SELECT object, toDate(timestamp), count() FROM {table} WHERE {is_event}{no_bot} GROUP BY ALL
"""
NO_BOT = " AND (chunk < %(first_log_chunk)s OR agent NOT IN (SELECT agent FROM {agents} WHERE is_bot))"


class LineCounts(NamedTuple):
    """What the staging table holds of one object."""

    key: str
    etag: str
    object_id: int
    lines: int
    last_line: int
    events: int
    rejected: int
    first_timestamp: dt.datetime
    last_timestamp: dt.datetime
    example_reason: str


def account_for_lines(
    staged: StagedBatch, versions: Iterable[ObjectVersion], known: Manifest
) -> tuple[list[Entry], list[ObjectProblem]]:
    """Return the manifest entries of the staged objects, and the objects that cannot be loaded."""
    skipped = _skipped_lines(staged)
    days = _rows_by_day(staged)
    found: dict[str, list[LineCounts]] = {}
    for counts in map(LineCounts._make, staged.rows(COUNTS_STATEMENT.format(**_names(staged)))):
        found.setdefault(counts.key, []).append(counts)
    entries, problems = [], []
    for version in versions:
        of_object = found.get(version.key, [])
        if any(counts.etag != version.etag for counts in of_object):
            problems.append(changed_problem(version.key))
            continue
        counts_or_none = of_object[0] if of_object else None
        entry = new_entry(version, known, counts_or_none, skipped.get(version.key, {}), days.get(version.key, {}))
        if (reason := _unreadable_reason(entry, counts_or_none)) is not None:
            problems.append(ObjectProblem(version.key, reason, is_unreadable=True))
        else:
            entries.append(entry)
    return entries, problems


def new_entry(
    version: ObjectVersion,
    known: Manifest,
    counts: LineCounts | None = None,
    skipped: Mapping[str, int] | None = None,
    rows_by_day: Mapping[dt.date, int] | None = None,
    reason: str = "",
) -> Entry:
    """Return the manifest entry of an object before it has a state; without `counts` it has no lines."""
    skipped = skipped or {}
    return Entry(
        key=version.key,
        etag=version.etag,
        version=known_version(known, version),
        object_id=counts.object_id if counts else 0,
        team_id=team_of(version.key),
        format=version.format.value,
        state=ObjectState.LOADING,
        lines=counts.lines if counts else 0,
        rows=counts.events - skipped.get(BOT_RULE, 0) if counts else 0,
        rows_by_day=rows_by_day or {},
        rejected_rows=counts.rejected if counts else 0,
        skipped_rows=skipped,
        size_bytes=version.size_bytes,
        first_timestamp=counts.first_timestamp if counts else EPOCH,
        last_timestamp=counts.last_timestamp if counts else EPOCH,
        reason=reason,
    )


def changed_problem(key: str) -> ObjectProblem:
    """Return the problem of an object whose content changed during the load."""
    return ObjectProblem(key, "was replaced or removed while it was read, so it was not loaded", is_unreadable=False)


def _skipped_lines(staged: StagedBatch) -> dict[str, dict[str, int]]:
    """Return the number of skipped lines by object and rule."""
    skipped: dict[str, dict[str, int]] = {}
    for key, rule, lines in staged.rows(SKIPPED_STATEMENT.format(**_names(staged))):
        skipped.setdefault(key, {})[rule] = lines
    if staged.first_log_chunk is not None:
        parameters = {"first_log_chunk": staged.first_log_chunk}
        for key, lines in staged.rows(BOTS_STATEMENT.format(**_names(staged)), parameters):
            skipped.setdefault(key, {})[BOT_RULE] = lines
    return skipped


def _rows_by_day(staged: StagedBatch) -> dict[str, dict[dt.date, int]]:
    """Return the number of events by object and UTC day."""
    logs = staged.first_log_chunk
    statement = DAYS_STATEMENT.replace("{no_bot}", "" if logs is None else NO_BOT)
    days: dict[str, dict[dt.date, int]] = {}
    for key, day, rows in staged.rows(statement.format(**_names(staged)), {"first_log_chunk": logs or 0}):
        days.setdefault(key, {})[day] = rows
    return days


def _unreadable_reason(entry: Entry, counts: LineCounts | None) -> str | None:
    """Return why an object cannot be loaded, given the lines that were staged of it; None when it can."""
    if counts is None:
        return None
    if counts.last_line != entry.lines:
        return f"{entry.lines} lines were read, but the last one has number {counts.last_line}"
    if entry.lines != entry.rows + entry.rejected_rows + sum(entry.skipped_rows.values()):
        return f"its {entry.lines} lines do not add up: {entry}"
    if entry.rows != sum(entry.rows_by_day.values()):
        return f"its {entry.rows} events by day do not add up: {entry}"
    if _has_only_rejected_lines(entry):
        return f"none of its {entry.lines} lines can be read: {counts.example_reason}"
    return None


def _has_only_rejected_lines(entry: Entry) -> bool:
    is_all = entry.rejected_rows + entry.skipped_rows.get(BLANK_RULE, 0) == entry.lines
    return entry.rejected_rows > 0 and is_all


def _names(staged: StagedBatch) -> dict[str, str]:
    return {"table": quoted(staged.table), "agents": quoted(staged.agents), "is_event": IS_EVENT}
