"""The second part of the demo: from events to pre-aggregated tables, their exports, and a report.

What does not belong here: where the events come from (`ingestion.py`), what is printed and drawn (`report.py`), and the
work itself (`dags/web_preaggregated/`).
"""

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
WHERE toDate(timestamp) NOT IN (SELECT toDate(period_bucket) FROM web_stats_daily)
"""


def show(stage: Stage, access_log: Path | None, events: Path | None) -> dt.date:
    """Runs everything, prints what it left, and returns its last day. Raises DemoError, and what the parts raise."""
    given = [path for path in (access_log, events) if path is not None]
    source = put_files(stage, access_log, events) if given else put_sample(stage)
    loaded = ingest(stage, source)
    days = closed_days(stage, Query(DAYS_STATEMENT, {"object_ids": loaded.object_ids, "first": source.first_day}))
    if not days:
        raise DemoError("no line became an event of a day that is over and has a partition")
    # Days that somebody loaded and did not compute come along: else the tables would not be fresh.
    compute(stage, {*days, *closed_days(stage, Query(NOT_COMPUTED_STATEMENT))})
    stage.say("ClickHouse: reading the web tables")
    read = report.read(stage.cluster, source.team_ids, days[0], days[-1])
    if not read.days:
        raise DemoError("the web tables have no rows for these days")
    print(f"\nEvents of {', '.join(map(str, given)) or 'the sample'}")
    left_out = loaded.lines - loaded.events - loaded.rejected
    print(
        f"{loaded.lines} lines in {len(source.keys)} object(s): {loaded.events} events, {loaded.rejected} rejected, "
        f"{left_out} left out by rule (assets, bots, answers that are no page)"
    )
    report.show(read)
    path = report.draw(read, Path(stage.instance.root_directory) / "demo" / PLOT)
    print(f"\nPlot: {path}")
    return days[-1]


def closed_days(stage: Stage, query: Query) -> list[dt.date]:
    """Of the days that a query gives, those that are over and have a partition, in order."""
    first, today = DAILY_PARTITIONS.start.date(), dt.datetime.now(dt.UTC).date()
    return sorted(day for (day,) in stage.cluster.any_host(query).result() if first <= day < today)


def compute(stage: Stage, days: Iterable[dt.date]) -> None:
    """Computes the daily web tables, checks and exports them: so many days in a run as a backfill takes.

    The newest days come first, because the check of freshness looks for days that are newer than those computed.
    """
    for first, last in reversed(list(ranges(days, stage.settings.dagster_web_preaggregated_max_partitions_per_run))):
        stage.say(f"Dagster: running {web_analytics_daily_job.name} for {first} to {last}")
        tags = range_tags(first, last)
        stage.run(web_analytics.defs, web_analytics_daily_job.name, tags=tags)


def ranges(days: Iterable[dt.date], longest: int) -> Iterator[tuple[dt.date, dt.date]]:
    """The first and last day of each range of days that follow one another, none of them longer than `longest`."""
    # Days in a row have the same distance to their positions.
    numbered = enumerate(sorted(days))
    for _, group in itertools.groupby(numbered, lambda pair: pair[1].toordinal() - pair[0]):
        in_a_row = [day for _, day in group]
        for start in range(0, len(in_a_row), longest):
            part = in_a_row[start : start + longest]
            yield part[0], part[-1]
