"""The third part of the demo: the digest of the last day, read from ClickHouse."""

import datetime as dt
from decimal import Decimal
from typing import Any

from dags.common.clickhouse.query import Query
from dags.common.partitions import range_tags
from dags.daily_digest.jobs import analytics_digest_daily_job
from dags.local.demo.stage import DemoError, Stage
from dags.local.text import table
from dags.locations import analytics_platform

DIGEST_STATEMENT = """
SELECT
    team_id, visitors, sessions, pageviews, top_pages[1].2, revenue_events, revenue_usd,
    arrayStringConcat(currencies_without_rate, ', ')
FROM analytics_digest_daily WHERE day = %(day)s ORDER BY team_id
"""


def show(stage: Stage, day: dt.date) -> None:
    """Run the job for a day and print its digest. Raises DemoError when the digest is empty or the job fails."""
    stage.say(f"Dagster: running {analytics_digest_daily_job.name} for {day}")
    tags = range_tags(day, day)
    stage.run(analytics_platform.defs, analytics_digest_daily_job.name, tags=tags)
    rows = stage.cluster.any_host(Query(DIGEST_STATEMENT, {"day": day})).result()
    if not rows:
        raise DemoError(f"the digest of {day} is empty")
    print(f"\nDigest of {day:%a %Y-%m-%d}")
    head = ["team", "visitors", "sessions", "pageviews", "top page", "orders", "US dollars", "without a rate"]
    print(table(head, [[_cell(value) for value in row] for row in rows]))


def _cell(value: Any) -> str:
    return "unknown" if value is None else f"{value:,.2f}" if isinstance(value, Decimal) else str(value)
