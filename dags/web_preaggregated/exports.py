"""Exports of the sessions: one Parquet object per team and day in object storage, written by ClickHouse.

Keys are `exports/<name>/team=<team id>/day=<YYYY-MM-DD>.parquet`: `web_sessions` has the rows of the table, and
`web_report_daily` the finished numbers by page. The same rows give the same bytes.
"""

import datetime as dt
import itertools
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from dags.common.automation import follow_days
from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import one_line
from dags.common.clickhouse.object_storage import OBJECT, ObjectQuery, ObjectStorage, object_storage_from_settings
from dags.common.clickhouse.query import Query, quoted
from dags.common.clickhouse.retry import is_transient
from dags.common.clickhouse.tables import WEB_SESSIONS
from dags.common.clickhouse.views import PAGE_NUMBERS, page_rows
from dags.common.metadata import PARTITION_ROW_COUNT, URI
from dags.common.owners import owner_tags
from dags.common.resources import ClickhouseResource, S3Resource
from dags.common.settings import get_settings
from dags.common.tags import NO_CHECK_BECAUSE
from dags.web_preaggregated.assets import (
    DAILY_PARTITIONS,
    GROUP,
    OWNER,
    RETRY_POLICY,
    SESSIONS_DAILY,
    backfill_policy,
)
from dags.web_preaggregated.teams import selected_teams

if TYPE_CHECKING:
    from clickhouse_driver import Client
    from types_boto3_s3 import S3Client

MAX_CONCURRENT_WRITES = 4
OBJECT_TIMEOUT_SECONDS = 600.0
COMPUTED_STATEMENT = "SELECT DISTINCT day FROM web_session_days WHERE day IN %(days)s"
MAX_LISTED_FAILURES = 20

SESSIONS_EXPORT_KEY = dg.AssetKey("web_sessions_export")
REPORT_EXPORT_KEY = dg.AssetKey("web_report_export")

BOUNDED_SETTINGS = {
    "max_memory_usage": 2 * 1024**3,
    "max_bytes_before_external_group_by": 512 * 1024**2,
    "max_bytes_before_external_sort": 512 * 1024**2,
}
WRITE_SETTINGS = {
    **BOUNDED_SETTINGS,
    "s3_truncate_on_insert": 1,
    # One writer and one order, so that the same rows give the same bytes.
    "max_threads": 1,
    "output_format_parquet_parallel_encoding": 0,
}

Counts = tuple[int, ...]


class ExportError(Exception):
    """Objects that could not be written or differ from the table.

    `is_transient` is whether a retry may succeed. It may when an object differs: the table was recomputed meanwhile.
    """

    def __init__(self, message: str, *, is_transient: bool) -> None:
        super().__init__(message)
        self.is_transient = is_transient


@dataclass(frozen=True)
class FailedObject:
    """An object that could not be written or differs from the table."""

    key: str
    reason: str
    is_transient: bool


@dataclass(frozen=True)
class Export:
    """The rows of an object: a SELECT of the sessions of one day, and the columns that are added up to compare them."""

    name: str
    rows: str
    measures: tuple[str, ...]

    @property
    def prefix(self) -> str:
        """The prefix of every key of this export."""
        return f"exports/{self.name}/"

    def key(self, team_id: int, day: dt.date) -> str:
        """Return the key of the object of a team and day."""
        return f"{self.team_prefix(team_id)}day={day}.parquet"

    def rows_statement(self, condition: str) -> str:
        """Return the SELECT of the rows of one day, of the teams that match a condition."""
        return self.rows.format(condition=f"toYYYYMMDD(started_at) = toYYYYMMDD(toDate(%(day)s)) AND {condition}")

    def counts(self) -> str:
        """Return the expressions of the number of rows and the sum of each measure."""
        return ", ".join(["count()", *(f"sum({quoted(name)})" for name in self.measures)])

    def team_prefix(self, team_id: int) -> str:
        """Return the prefix of the objects of a team."""
        return f"{self.prefix}team={team_id}/"


SESSIONS_EXPORT = Export(
    "web_sessions",
    f"SELECT {', '.join(quoted(column.name) for column in WEB_SESSIONS.columns)} FROM web_sessions WHERE {{condition}}",  # noqa: S608 - names of the schema
    ("pageviews", "is_bounce", "duration_seconds"),
)
_PAGE_ROWS = page_rows("team_id, started_at", "web_sessions", "{condition}")
REPORT_EXPORT = Export(
    "web_report_daily",
    f"""
    SELECT team_id, toDate(started_at) AS day, toString(host) AS host, toString(pathname) AS pathname, {PAGE_NUMBERS}
    FROM ({_PAGE_ROWS}) GROUP BY team_id, day, host, pathname
    """,  # noqa: S608 - names of the schema
    ("pageviews", "entries", "exits", "visitors", "sessions"),
)


@dataclass(frozen=True)
class WriteObject:
    """A call that writes the object of a team and day, and returns the counts read back from it."""

    export: Export
    storage: ObjectStorage
    team_id: int
    day: dt.date
    # Another attempt overwrites the object with the same rows.
    retryable: bool = field(default=True, init=False)

    @property
    def key(self) -> str:
        """The key of the object."""
        return self.export.key(self.team_id, self.day)

    def __call__(self, client: "Client") -> Counts:
        """Run both statements on the client."""
        rows = self.export.rows_statement("team_id = %(team_id)s")
        write = f"INSERT INTO FUNCTION s3({OBJECT}, 'Parquet') {rows} ORDER BY ALL"
        read = f"SELECT {self.export.counts()} FROM s3({OBJECT}, 'Parquet')"  # noqa: S608 - names of the schema
        parameters = {"team_id": self.team_id, "day": self.day}
        ObjectQuery(write, self.storage, self.key, parameters, WRITE_SETTINGS)(client)
        ((*counts,),) = ObjectQuery(read, self.storage, self.key, settings=BOUNDED_SETTINGS)(client)
        return tuple(counts)


@dataclass
class ExportedDay:
    """The result of exporting a day: objects written and removed, and the rows and bytes in them."""

    objects: int = 0
    objects_removed: int = 0
    rows: int = 0
    size_bytes: int = 0
    pageviews: int = 0


def counts_in_table(
    cluster: ClickhouseCluster, export: Export, days: Iterable[dt.date]
) -> dict[dt.date, dict[int, Counts]]:
    """Return the expected counts of each day and team: the number of rows, and the sum of each measure."""
    counts = export.counts()
    statement = f"SELECT team_id, {counts} FROM ({export.rows_statement('true')}) GROUP BY team_id ORDER BY team_id"  # noqa: S608 - names of the schema
    found = {}
    for day in days:
        query = Query(statement, {"day": day}, BOUNDED_SETTINGS)
        rows = cluster.any_host(query, timeout_seconds=OBJECT_TIMEOUT_SECONDS).result()
        found[day] = {team_id: tuple(numbers) for team_id, *numbers in rows}
    return found


def export_days(
    cluster: ClickhouseCluster,
    s3: "S3Client",
    storage: ObjectStorage,
    export: Export,
    expected: Mapping[dt.date, Mapping[int, Counts]],
) -> dict[dt.date, ExportedDay]:
    """Write the objects of `expected`, as `counts_in_table` returns it, and remove all others of these days.

    Every object is tried. Raises ExportError, naming those that failed or differ from `expected`.
    """
    writes = [WriteObject(export, storage, team_id, day) for day, teams in expected.items() for team_id in teams]
    failures = list(_write_objects(cluster, writes, expected))
    exported = {day: _exported_day(export, teams) for day, teams in expected.items()}
    wanted = {write.key for write in writes}
    present = dict(_objects_present(s3, storage.bucket, export, expected))
    for key, (day, size) in present.items():
        if key in wanted:
            exported[day].size_bytes += size
        else:
            s3.delete_object(Bucket=storage.bucket, Key=key)
            exported[day].objects_removed += 1
    failed = {one.key for one in failures}
    failures += [FailedObject(key, "is missing", is_transient=True) for key in sorted(wanted - present.keys() - failed)]
    if failures:
        lines = [f"- {one.key}: {one.reason}" for one in failures[:MAX_LISTED_FAILURES]]
        if len(failures) > MAX_LISTED_FAILURES:
            lines.append(f"- and {len(failures) - MAX_LISTED_FAILURES} more")
        raise ExportError(
            f"{len(failures)} of {len(wanted)} objects of {export.name} were not exported to "
            f"s3://{storage.bucket}:\n" + "\n".join(lines) + "\nThe others are complete. Materialize these days again.",
            is_transient=all(one.is_transient for one in failures),
        )
    return exported


def remove_other_teams(s3: "S3Client", bucket: str, export: Export, team_ids: Collection[int]) -> int:
    """Remove the objects of every day of the teams that are not listed; return their number."""
    kept = {export.team_prefix(team_id) for team_id in team_ids}
    removed = 0
    pages = s3.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=f"{export.prefix}team=", Delimiter="/"):
        for team in page.get("CommonPrefixes", []):
            if team["Prefix"] in kept:
                continue
            for objects in pages.paginate(Bucket=bucket, Prefix=f"{team['Prefix']}day="):
                for key in [item["Key"] for item in objects.get("Contents", []) if item["Key"].endswith(".parquet")]:
                    s3.delete_object(Bucket=bucket, Key=key)
                    removed += 1
    return removed


def _exported_day(export: Export, teams: Mapping[int, Counts]) -> ExportedDay:
    pageviews = ("rows", *export.measures).index("pageviews")
    return ExportedDay(
        objects=len(teams),
        rows=sum(rows for rows, *_ in teams.values()),
        pageviews=sum(counts[pageviews] for counts in teams.values()),
    )


def _write_objects(
    cluster: ClickhouseCluster, writes: Iterable[WriteObject], expected: Mapping[dt.date, Mapping[int, Counts]]
) -> Iterator[FailedObject]:
    """Write and compare every object; yield those that failed or differ."""
    waiting = iter(writes)
    # A few at a time, because the deadline of a call starts when it is submitted.
    while batch := list(itertools.islice(waiting, MAX_CONCURRENT_WRITES)):
        calls = [(write, cluster.any_host(write, timeout_seconds=OBJECT_TIMEOUT_SECONDS)) for write in batch]
        for write, call in calls:
            error = call.exception()
            if error is not None:
                yield FailedObject(write.key, one_line(error), is_transient(error))
            elif difference := _difference(write.export, call.result(), expected[write.day][write.team_id]):
                yield FailedObject(write.key, difference, is_transient=True)


def _difference(export: Export, found: Counts, wanted: Counts) -> str:
    """Describe the counts that were read back and differ from the table; empty when all are equal."""
    names = ("rows", *export.measures)
    different = [
        f"{one_found} {name} read back, {one_wanted} in the table"
        for name, one_found, one_wanted in zip(names, found, wanted, strict=True)
        if one_found != one_wanted
    ]
    return "; ".join(different)


def _objects_present(
    s3: "S3Client", bucket: str, export: Export, days: Iterable[dt.date]
) -> Iterator[tuple[str, tuple[dt.date, int]]]:
    """Yield key, day and bytes of every object of these days, including teams that the table no longer has."""
    by_name = {f"day={day}.parquet": day for day in days}
    pages = s3.get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=bucket, Prefix=export.prefix, Delimiter="/"):
        for team in page.get("CommonPrefixes", []):
            # Starts just before the first day, so that years of earlier days are not listed.
            after = team["Prefix"] + min(by_name).removesuffix(".parquet")
            last = team["Prefix"] + max(by_name)
            for objects in pages.paginate(Bucket=bucket, Prefix=team["Prefix"], StartAfter=after):
                found = [item for item in objects.get("Contents", []) if item["Key"] <= last]
                for item in found:
                    day = by_name.get(item["Key"].removeprefix(team["Prefix"]))
                    if day is not None:
                        yield item["Key"], (day, item["Size"])
                if len(found) < len(objects.get("Contents", [])):
                    break


def web_exports(partitions_per_run: int) -> list[dg.AssetsDefinition]:
    """Return the export assets."""
    return [
        _export_asset(SESSIONS_EXPORT_KEY, SESSIONS_EXPORT, SESSIONS_DAILY, partitions_per_run),
        _export_asset(REPORT_EXPORT_KEY, REPORT_EXPORT, SESSIONS_DAILY, partitions_per_run),
    ]


def _export_asset(key: dg.AssetKey, export: Export, table: dg.AssetKey, partitions_per_run: int) -> dg.AssetsDefinition:
    @dg.asset(
        key=key,
        description=f"{export.name} as Parquet: one object per team and day, "
        f"under {export.prefix}team=<team id>/day=<day>.parquet.",
        deps=[table],
        group_name=GROUP,
        kinds={"s3", "parquet"},
        partitions_def=DAILY_PARTITIONS,
        automation_condition=follow_days(table),
        backfill_policy=backfill_policy(partitions_per_run),
        retry_policy=RETRY_POLICY,
        metadata={NO_CHECK_BECAUSE: "The step itself reads each object back and compares it with the table."},
        op_tags=owner_tags(OWNER),
    )
    def exported(context: dg.AssetExecutionContext, clickhouse: ClickhouseResource, s3: S3Resource) -> None:
        _export_partitions(context, clickhouse.cluster(context), s3.client(), export, table)

    return exported


def _export_partitions(
    context: dg.AssetExecutionContext, cluster: ClickhouseCluster, s3: "S3Client", export: Export, table: dg.AssetKey
) -> None:
    """Export the days of the run, with metadata for each.

    Raises dagster.Failure for a day that has no rows and was never computed, because its objects must not be removed.
    """
    started = time.monotonic()
    storage = object_storage_from_settings(get_settings())
    days = [dt.date.fromisoformat(key) for key in context.partition_keys]
    expected = counts_in_table(cluster, export, days)
    computed = {day for (day,) in cluster.any_host(Query(COMPUTED_STATEMENT, {"days": tuple(days)})).result()}
    unknown = [str(day) for day in days if not expected[day] and day not in computed]
    if unknown:
        raise dg.Failure(
            f"{export.name} has no rows of {', '.join(unknown)}, and these days were never computed. Materialize "
            f"{table.to_user_string()} for them first. Nothing was written or removed.",
            allow_retries=False,
        )
    teams = selected_teams(cluster)
    if teams is not None and (removed := remove_other_teams(s3, storage.bucket, export, teams)):
        context.log.info(f"Removed {removed} objects of teams that are not selected")
    try:
        exported = export_days(cluster, s3, storage, export, expected)
    except ExportError as error:
        raise dg.Failure(str(error), allow_retries=error.is_transient) from error
    seconds = time.monotonic() - started
    context.log.info(
        f"{len(days)} days: {sum(one.objects for one in exported.values())} objects written, "
        f"{sum(one.objects_removed for one in exported.values())} removed, in {seconds:.1f} seconds"
    )
    for day, outcome in exported.items():
        metadata = {
            PARTITION_ROW_COUNT: outcome.rows,
            "objects": outcome.objects,
            "objects_removed": outcome.objects_removed,
            "size_bytes": outcome.size_bytes,
            "pageviews": outcome.pageviews,
            "seconds_of_run": round(seconds, 3),
            URI: f"s3://{storage.bucket}/{export.prefix}team=*/day={day}.parquet",
        }
        context.add_asset_metadata(metadata, partition_key=day.isoformat())
