"""Asset checks of the stored rates, on every ClickHouse host. `rates.py` validates rates before they are stored."""

import datetime as dt
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Query, Rows
from dags.common.owners import owner_tags
from dags.common.resources import ClickhouseResource
from dags.exchange_rate.assets import OWNER, daily_exchange_rates_in_clickhouse
from dags.exchange_rate.rates import MAIN_CURRENCIES
from dags.exchange_rate.resource import ExchangeRatesResource
from dags.exchange_rate.storage import FINAL_GRADE, TABLE, VERSIONS_PER_GRADE

# Yesterday's rates are stored each night, so the newest day is 1 or 2 days old, and older over a long weekend.
MAX_AGE_DAYS = 4
MAX_LISTED_GAPS = 20

NEWEST_STATEMENT = f"SELECT max(date), count() FROM {TABLE}"  # noqa: S608 - the table's name is a constant
PRESENT_STATEMENT = f"""
SELECT date, groupUniqArrayIf(currency, currency IN %(main)s AND (version >= %(final)s OR date >= %(open_since)s))
FROM {TABLE} GROUP BY date
"""  # noqa: S608 - the table's name is a constant


@dataclass(frozen=True)
class Gap:
    """Consecutive days, both ends included, without the same main currencies."""

    first: dt.date
    last: dt.date
    missing: tuple[str, ...]

    def __str__(self) -> str:
        days = str(self.first) if self.first == self.last else f"{self.first} to {self.last}"
        return f"{days}: {'all' if len(self.missing) == len(MAIN_CURRENCIES) else ', '.join(self.missing)}"


def find_gaps(present: Mapping[dt.date, Collection[str]]) -> list[Gap]:
    """Return every gap between the first and the last day of `present`, which has the main currencies of each day."""
    gaps: list[Gap] = []
    if not present:
        return gaps
    first, last = min(present), max(present)
    for days in range((last - first).days + 1):
        day = first + dt.timedelta(days=days)
        missing = tuple(currency for currency in MAIN_CURRENCIES if currency not in present.get(day, ()))
        if not missing:
            continue
        if gaps and gaps[-1].last == day - dt.timedelta(days=1) and gaps[-1].missing == missing:
            gaps[-1] = Gap(gaps[-1].first, day, missing)
        else:
            gaps.append(Gap(day, day, missing))
    return gaps


@dg.asset_check(
    asset=daily_exchange_rates_in_clickhouse,
    description=f"The newest stored day is at most {MAX_AGE_DAYS} days old on every host. A warning if the source has "
    "nothing newer, else an error.",
    op_tags=owner_tags(OWNER),
)
def exchange_rates_are_fresh(
    context: dg.AssetCheckExecutionContext,
    clickhouse: ClickhouseResource,
    exchange_rates: ExchangeRatesResource,
) -> dg.AssetCheckResult:
    """Compare the newest stored day with today (UTC)."""
    found = _on_every_host(clickhouse.cluster(context), Query(NEWEST_STATEMENT))
    today = dt.datetime.now(dt.UTC).date()
    empty = [host for host, ((_, rows),) in found.items() if rows == 0]
    if empty:
        return dg.AssetCheckResult(
            passed=False,
            description=f"{TABLE} is empty on {', '.join(empty)}: run daily_exchange_rates_job for the days needed.",
        )
    host, newest = min(((host, newest) for host, ((newest, _),) in found.items()), key=lambda item: item[1])
    age_days = (today - newest).days
    nothing_newer = exchange_rates.provider().why_not_covered(newest + dt.timedelta(days=1))
    remedy = nothing_newer or "Check the runs of daily_exchange_rates_job, and materialize the missing days."
    return dg.AssetCheckResult(
        passed=age_days <= MAX_AGE_DAYS,
        severity=dg.AssetCheckSeverity.WARN if nothing_newer else dg.AssetCheckSeverity.ERROR,
        description=None
        if age_days <= MAX_AGE_DAYS
        else f"The newest rates on {host} are of {newest}, {age_days} days ago. {remedy}",
        metadata={"newest_date": newest.isoformat(), "age_days": age_days, "max_age_days": MAX_AGE_DAYS},
    )


@dg.asset_check(
    asset=daily_exchange_rates_in_clickhouse,
    description="Every day from the first to the last stored one has the final rate of every main currency, on every "
    f"host; yesterday and today may have an hourly rate. Main currencies: {', '.join(MAIN_CURRENCIES)}.",
    op_tags=owner_tags(OWNER),
)
def exchange_rates_are_complete(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Find days, or main currencies of a day, that are not stored or have no final rate."""
    parameters = {
        "main": MAIN_CURRENCIES,
        "final": FINAL_GRADE * VERSIONS_PER_GRADE,
        "open_since": dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1),
    }
    found = _on_every_host(clickhouse.cluster(context), Query(PRESENT_STATEMENT, parameters))
    gaps = [f"{host}: {gap}" for host, rows in found.items() for gap in find_gaps(dict(rows))]
    return dg.AssetCheckResult(
        # Days that were never requested are gaps too, so this is less severe than stale rates.
        severity=dg.AssetCheckSeverity.WARN,
        passed=not gaps,
        description="Materialize the missing days:\n- " + "\n- ".join(gaps[:MAX_LISTED_GAPS]) if gaps else None,
        metadata={"gaps": len(gaps), "days": max(len(rows) for rows in found.values())},
    )


def _on_every_host(cluster: ClickhouseCluster, query: Query) -> dict[str, Rows]:
    return {str(host): rows for host, rows in cluster.map_all_hosts(query).result().items()}
