"""The check of the daily digest against the web tables."""

import dagster as dg

from dags.common.clickhouse.query import Query
from dags.common.owners import owner_tags
from dags.common.partitions import days_of_run
from dags.common.resources import ClickhouseResource
from dags.daily_digest.assets import OWNER, analytics_digest_daily

# A check outside a run of certain days reads the newest ones stored.
MAX_CHECKED_DAYS = 31

STORED_DAYS_STATEMENT = "SELECT DISTINCT day FROM analytics_digest_daily ORDER BY day DESC LIMIT %(days)s"
DIGEST_STATEMENT = """
SELECT day, team_id, visitors, sessions, pageviews FROM analytics_digest_daily
WHERE day IN %(days)s AND visitors IS NOT NULL
"""
# The digest counts rows of sessions; this counts their pages.
WEB_STATEMENT = """
SELECT toDate(started_at) AS day, team_id, uniqExact(person_id), uniqExact(session_id), count()
FROM web_sessions ARRAY JOIN pages AS page WHERE toDate(started_at) IN %(days)s GROUP BY day, team_id
"""


@dg.asset_check(
    asset=analytics_digest_daily,
    description="Visitors, sessions and pageviews by team equal those in the web tables.",
    op_tags=owner_tags(OWNER),
)
def analytics_digest_daily_equals_web_tables(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Compare the days of the run, or the newest ones stored, with the web tables."""
    cluster = clickhouse.cluster(context)
    days = days_of_run(context.op_execution_context)
    if days is None:
        days = [day for (day,) in cluster.any_host(Query(STORED_DAYS_STATEMENT, {"days": MAX_CHECKED_DAYS})).result()]
    if not days:
        return dg.AssetCheckResult(passed=False, description="The table is empty: run analytics_digest_daily_job.")
    stored, expected = (
        {
            (day, team_id): counts
            for day, team_id, *counts in cluster.any_host(Query(statement, {"days": days})).result()
        }
        for statement in (DIGEST_STATEMENT, WEB_STATEMENT)
    )
    different = sorted(key for key in {*stored, *expected} if stored.get(key) != expected.get(key))
    stale_days = sorted({str(day) for day, _ in different})
    return dg.AssetCheckResult(
        passed=not different,
        description=f"The web tables were recomputed after the digest: materialize {', '.join(stale_days)} again."
        if different
        else None,
        metadata={"days_compared": len(days), "rows_compared": len(expected), "rows_different": len(different)},
    )
