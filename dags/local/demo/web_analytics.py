"""The second part of the demo: from events to pre-aggregated tables, their exports, and a report."""

import datetime as dt
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from dags.common.clickhouse.query import Query
from dags.common.partitions import range_tags
from dags.local.demo import report
from dags.local.demo.ingestion import ingest, put_files, put_sample
from dags.local.demo.stage import DemoError, Stage
from dags.locations import web_analytics
from dags.web_preaggregated.assets import DAILY_PARTITIONS
from dags.web_preaggregated.jobs import web_analytics_daily_job

PLOT = "web_analytics.png"

DAYS_STATEMENT = """
SELECT DISTINCT toDate(timestamp) FROM events WHERE object_id IN %(object_ids)s AND toDate(timestamp) >= %(first)s
"""
NOT_COMPUTED_STATEMENT = """
SELECT DISTINCT toDate(timestamp) FROM events
WHERE toDate(timestamp) NOT IN (SELECT day FROM web_session_days)
"""


def show(stage: Stage, access_log: Path | None, events: Path | None) -> dt.date:
    """Load the events, compute their days, print the report; return the last day. Raises DemoError on a failure."""
    given = [path for path in (access_log, events) if path is not None]
    source = put_files(stage, access_log, events) if given else put_sample(stage)
    loaded = ingest(stage, source)
    days = closed_days(stage, Query(DAYS_STATEMENT, {"object_ids": loaded.object_ids, "first": source.first_day}))
    if not days:
        raise DemoError("no line became an event of a past day that has a partition")
    # Earlier days that were loaded but not computed are included: otherwise the freshness check would warn.
    compute(stage, {*days, *closed_days(stage, Query(NOT_COMPUTED_STATEMENT))})
    stage.say("ClickHouse: reading the web tables")
    web_report = report.read(stage.cluster, source.team_ids, days[0], days[-1])
    print(f"\nEvents of {', '.join(map(str, given)) or 'the sample'}")
    print(
        f"{loaded.lines} lines in {len(source.keys)} object(s): {loaded.events} events, {loaded.rejected} rejected, "
        f"{sum(loaded.skipped.values())} skipped by rule"
    )
    for rule, lines in sorted(loaded.skipped.items()):
        print(f"- {lines} skipped: {rule.replace('_', ' ')}")
    report.show_accounting(web_report.accounting)
    if not web_report.days:
        print("\nThere are no sessions on these days.")
        return days[-1]
    report.show(web_report)
    path = report.draw(web_report, Path(stage.instance.root_directory) / "demo" / PLOT)
    print(f"\nPlot: {path}")
    return days[-1]


def closed_days(stage: Stage, query: Query) -> list[dt.date]:
    """Return the past days of a query that have a partition, in order."""
    first, today = DAILY_PARTITIONS.start.date(), dt.datetime.now(dt.UTC).date()
    return sorted(day for (day,) in stage.cluster.any_host(query).result() if first <= day < today)


def compute(stage: Stage, days: Iterable[dt.date]) -> None:
    """Compute, check and export the sessions, with as many days in a run as in a backfill.

    The newest days come first, because the freshness check looks for events that are newer than the computed days.
    """
    for first, last in reversed(list(ranges(days, stage.settings.dagster_web_preaggregated_max_partitions_per_run))):
        stage.say(f"Dagster: running {web_analytics_daily_job.name} for {first} to {last}")
        tags = range_tags(first, last)
        stage.run(web_analytics.defs, web_analytics_daily_job.name, tags=tags)


def ranges(days: Iterable[dt.date], max_days: int) -> Iterator[tuple[dt.date, dt.date]]:
    """Yield the first and last day of each range of consecutive days, split after `max_days`."""
    # Consecutive days have the same distance from their positions.
    numbered = enumerate(sorted(days))
    for _, group in itertools.groupby(numbered, lambda pair: pair[1].toordinal() - pair[0]):
        consecutive = [day for _, day in group]
        for start in range(0, len(consecutive), max_days):
            part = consecutive[start : start + max_days]
            yield part[0], part[-1]
