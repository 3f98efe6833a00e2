"""Asset checks on the stored rates: are they fresh, and are they complete.

Belongs here: what is looked at in ClickHouse, on every host. Not here: the checks of an answer before it is stored
(`rates.py`).
"""

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

# Yesterday's rates are stored each night, so the newest day is 1 or 2 days old; Friday's may stand over a long weekend.
LONGEST_AGE_DAYS = 4

_SHOWN_HOLES = 20

NEWEST_STATEMENT = f"SELECT max(date), count() FROM {TABLE}"  # noqa: S608 - the table's name is a constant
PRESENT_STATEMENT = f"""
SELECT date, groupUniqArrayIf(currency, currency IN %(main)s AND (version >= %(final)s OR date >= %(open_since)s))
FROM {TABLE} GROUP BY date
"""  # noqa: S608 - the table's name is a constant


@dataclass(frozen=True)
class Hole:
    """Days in a row, both ends included, that lack the same main currencies."""

    first: dt.date
    last: dt.date
    missing: tuple[str, ...]

    def __str__(self) -> str:
        days = str(self.first) if self.first == self.last else f"{self.first} to {self.last}"
        return f"{days}: {'all' if len(self.missing) == len(MAIN_CURRENCIES) else ', '.join(self.missing)}"


def find_holes(present: Mapping[dt.date, Collection[str]]) -> list[Hole]:
    """Return every hole between the first and the last day of `present` (day -> its main currencies)."""
    holes: list[Hole] = []
    if not present:
        return holes
    first, last = min(present), max(present)
    for days in range((last - first).days + 1):
        day = first + dt.timedelta(days=days)
        missing = tuple(currency for currency in MAIN_CURRENCIES if currency not in present.get(day, ()))
        if not missing:
            continue
        if holes and holes[-1].last == day - dt.timedelta(days=1) and holes[-1].missing == missing:
            holes[-1] = Hole(holes[-1].first, day, missing)
        else:
            holes.append(Hole(day, day, missing))
    return holes


@dg.asset_check(
    asset=daily_exchange_rates_in_clickhouse,
    description=f"The newest day stored is at most {LONGEST_AGE_DAYS} days old on every host. It is a warning, not an "
    "error, where the source itself has nothing newer.",
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
    remedy = nothing_newer or "Look at the runs of daily_exchange_rates_job, and materialise the days that are missing."
    return dg.AssetCheckResult(
        passed=age_days <= LONGEST_AGE_DAYS,
        severity=dg.AssetCheckSeverity.WARN if nothing_newer else dg.AssetCheckSeverity.ERROR,
        description=None
        if age_days <= LONGEST_AGE_DAYS
        else f"The newest rates on {host} are of {newest}, {age_days} days ago. {remedy}",
        metadata={"newest_date": newest.isoformat(), "age_days": age_days, "longest_age_days": LONGEST_AGE_DAYS},
    )


@dg.asset_check(
    asset=daily_exchange_rates_in_clickhouse,
    description="Every day from the first to the last one stored has the final rate of every main currency, on every "
    f"host; yesterday and today may have an hourly one. The main currencies: {', '.join(MAIN_CURRENCIES)}.",
    op_tags=owner_tags(OWNER),
)
def exchange_rates_are_complete(
    context: dg.AssetCheckExecutionContext, clickhouse: ClickhouseResource
) -> dg.AssetCheckResult:
    """Look for days, or main currencies of a day, that are not stored, or were never made final."""
    parameters = {
        "main": MAIN_CURRENCIES,
        "final": FINAL_GRADE * VERSIONS_PER_GRADE,
        "open_since": dt.datetime.now(dt.UTC).date() - dt.timedelta(days=1),
    }
    found = _on_every_host(clickhouse.cluster(context), Query(PRESENT_STATEMENT, parameters))
    holes = [f"{host}: {hole}" for host, rows in found.items() for hole in find_holes(dict(rows))]
    return dg.AssetCheckResult(
        # Days that nobody asked for yet are holes too, so this does not cry as loud as stale rates.
        severity=dg.AssetCheckSeverity.WARN,
        passed=not holes,
        description="Materialise the days that are missing:\n- " + "\n- ".join(holes[:_SHOWN_HOLES]) if holes else None,
        metadata={"holes": len(holes), "days": max(len(rows) for rows in found.values())},
    )


def _on_every_host(cluster: ClickhouseCluster, query: Query) -> dict[str, Rows]:
    return {str(host): rows for host, rows in cluster.map_all_hosts(query).result().items()}
