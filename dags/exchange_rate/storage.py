"""Exchange rates in ClickHouse: planning the rows, finding jumps, writing, and reading back.

A row's version is `grade * 1,000,000 + corrections`. The grade is the hour (0 to 23) of an hourly rate and 24 for a
day's final rate, so the final rate replaces the hourly rates of its day, and a later hour replaces an earlier one, in
whatever order they are written. `corrections` counts how often a rate of the same grade was replaced by another value.
No clock is involved: writing the same rates again writes nothing.
"""

import datetime as dt
import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert, Query
from dags.exchange_rate.rates import Rates, RatesRejectedError, shown

if TYPE_CHECKING:
    from clickhouse_driver import Client

TABLE = "exchange_rate"
DICTIONARY = "exchange_rate_dict"

FINAL_GRADE = 24
VERSIONS_PER_GRADE = 1_000_000

# A rate is compared with the last one stored within this many days. A comparison with an older one means nothing.
MAX_JUMP_LOOKBACK_DAYS = 10

_READ_BACK_PAUSE_SECONDS = 0.5

STORED_STATEMENT = f"""
SELECT date, currency, rate, version FROM {TABLE} FINAL WHERE date BETWEEN %(first)s AND %(last)s
"""  # noqa: S608 - the table's name is a constant

DICTIONARY_STATEMENT = f"""
SELECT date, currency, dictGet('{DICTIONARY}', 'rate', currency, date)
FROM {TABLE} FINAL WHERE date BETWEEN %(first)s AND %(last)s
"""  # noqa: S608 - the names are constants


@dataclass(frozen=True)
class Quote:
    """One day's rates with their grade: their hour, or `FINAL_GRADE`."""

    rates: Rates
    grade: int


@dataclass(frozen=True)
class StoredRate:
    """The row of one currency on one day that counts, after replacing."""

    rate: Decimal
    version: int


Key = tuple[dt.date, str]
Stored = Mapping[Key, StoredRate]


@dataclass(frozen=True)
class StorageOutcome:
    """The numbers of currencies of one quote that were written, unchanged, and superseded."""

    rows_written: int
    rows_unchanged: int
    rows_superseded: int


@dataclass(frozen=True)
class StoragePlan:
    """The rows to insert on every host, and the rows that every host then has for the quoted keys."""

    rows: Mapping[Key, StoredRate]
    expected: Mapping[Key, StoredRate]
    outcomes: Sequence[StorageOutcome]


@dataclass(frozen=True)
class JumpLimits:
    """The largest change of a rate, and the currencies that may change by more."""

    maximum_change_percent: float
    accepted: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Jump:
    """A rate that changed by more than the limit."""

    currency: str
    date: dt.date
    rate: Decimal
    previous_date: dt.date
    previous_rate: Decimal

    @property
    def change_percent(self) -> Decimal:
        """The change from the smaller to the larger rate: halving and doubling are both 100 percent."""
        low, high = sorted((self.rate, self.previous_rate))
        return (high / low - 1) * 100


class RatesJumpedError(RatesRejectedError):
    """Rates that changed by more than the limit, so nothing was stored. `currencies` names theirs."""

    def __init__(self, jumps: Sequence[Jump], limits: JumpLimits) -> None:
        self.currencies = sorted({jump.currency for jump in jumps})
        lines = [
            f"{jump.currency} on {jump.date} is {shown(jump.rate)}, was {shown(jump.previous_rate)} on "
            f"{jump.previous_date}: {jump.change_percent:.1f} percent apart"
            for jump in jumps
        ]
        super().__init__(
            f"{len(jumps)} rates changed by more than {limits.maximum_change_percent:g} percent against the last "
            "stored ones, so nothing was stored:\n- " + "\n- ".join(lines)
        )


class ReadBackError(Exception):
    """The dictionary does not return the rates that were written. The message names hosts, rates and the remedy."""


def merge_views(views: Iterable[Stored]) -> dict[Key, StoredRate]:
    """Return the row with the highest version of each key, from the rows of several hosts."""
    merged: dict[Key, StoredRate] = {}
    for view in views:
        for key, stored in view.items():
            if key not in merged or stored.version > merged[key].version:
                merged[key] = stored
    return merged


def plan_rows(quotes: Sequence[Quote], views: Sequence[Stored]) -> StoragePlan:
    """Return the rows that bring every host to the quoted rates, given the rows of each host (`views`).

    A row is written if it is new, if its rate differs and its grade is not below the stored one, if a final rate
    replaces an equal hourly one, and if a host lacks a row of another. Quotes are applied in order of date and grade.
    """
    current = merge_views(views)
    last_quote_of: dict[Key, int] = {}
    superseded: list[set[Key]] = [set() for _ in quotes]
    for index, quote in sorted(enumerate(quotes), key=lambda item: (item[1].rates.date, item[1].grade)):
        for currency, rate in quote.rates.rounded().items():
            key = (quote.rates.date, currency)
            last_quote_of[key] = index
            before = current.get(key)
            if before is not None and before.version // VERSIONS_PER_GRADE > quote.grade:
                superseded[index].add(key)
            elif (version := _next_version(before, rate, quote.grade)) is not None:
                current[key] = StoredRate(rate, version)
    expected = {key: current[key] for key in last_quote_of}
    rows = {key: stored for key, stored in expected.items() if any(view.get(key) != stored for view in views)}
    outcomes = []
    for index, quote in enumerate(quotes):
        written = {key for key in rows if last_quote_of[key] == index and key not in superseded[index]}
        unchanged = len(quote.rates.figures) - len(written) - len(superseded[index])
        outcomes.append(StorageOutcome(len(written), unchanged, len(superseded[index])))
    return StoragePlan(rows, expected, tuple(outcomes))


def _next_version(before: StoredRate | None, rate: Decimal, grade: int) -> int | None:
    """Return the version to write `rate` with; None if the stored row stays."""
    if before is None:
        return grade * VERSIONS_PER_GRADE
    same_grade = before.version // VERSIONS_PER_GRADE == grade
    if before.rate == rate and (same_grade or grade != FINAL_GRADE):
        return None
    return before.version + 1 if same_grade else grade * VERSIONS_PER_GRADE


def find_jumps(quotes: Sequence[Quote], stored: Stored, limits: JumpLimits) -> list[Jump]:
    """Return every rate that changed too much from the one before it, among the stored rates and the quotes.

    A final rate is compared with the day before, an hourly rate also with the stored rate of its own day. A stored rate
    and a currency without a rate in the days before are not compared.
    """
    by_date: dict[dt.date, list[Quote]] = {}
    for quote in sorted(quotes, key=lambda quote: quote.grade):
        by_date.setdefault(quote.rates.date, []).append(quote)
    stored_by_date: dict[dt.date, dict[str, Decimal]] = {}
    for (date, currency), row in stored.items():
        stored_by_date.setdefault(date, {})[currency] = row.rate
    last: dict[str, tuple[dt.date, Decimal]] = {}
    jumps = []
    for date in sorted({*by_date, *stored_by_date}):
        day = by_date.get(date, [])
        if all(quote.grade != FINAL_GRADE for quote in day):
            last |= {currency: (date, rate) for currency, rate in stored_by_date.get(date, {}).items()}
        for quote in day:
            for currency, rate in quote.rates.rounded().items():
                previous_date, previous_rate = last.get(currency, (date, rate))
                last[currency] = (date, rate)
                jump = Jump(currency, date, rate, previous_date, previous_rate)
                known = stored_by_date.get(date, {}).get(currency) == rate or currency in limits.accepted
                old = (date - previous_date).days > MAX_JUMP_LOOKBACK_DAYS
                if not known and not old and jump.change_percent > limits.maximum_change_percent:
                    jumps.append(jump)
    return jumps


def store_rates(
    cluster: ClickhouseCluster,
    quotes: Sequence[Quote],
    limits: JumpLimits,
    *,
    run_id: str,
    read_back_timeout_seconds: float,
) -> Sequence[StorageOutcome]:
    """Write the rates that are new or differ, reload the dictionary on every host, and read the rates back.

    Returns one outcome for each quote. Any number of quotes takes one read, one INSERT, one reload and one read-back on
    each host; a replicated table takes the INSERT once. The read-back is repeated for `read_back_timeout_seconds`,
    since a replica may lag. Raises `RatesJumpedError` before anything is written, `ReadBackError`, and what the cluster
    raises.
    """
    dates = sorted(quote.rates.date for quote in quotes)
    first, last = dates[0], dates[-1]
    read = _Read(first - dt.timedelta(days=MAX_JUMP_LOOKBACK_DAYS), last)
    views = list(cluster.map_all_hosts(read).result().values())
    jumps = find_jumps(quotes, merge_views(views), limits)
    if jumps:
        raise RatesJumpedError(jumps, limits)
    plan = plan_rows(quotes, views)
    _insert(cluster, plan.rows, run_id)
    _read_back(cluster, plan.expected, first, last, read_back_timeout_seconds)
    return plan.outcomes


@dataclass(frozen=True)
class _Read:
    """A query for the rows of one host between two dates, both included."""

    first: dt.date
    last: dt.date
    retryable = True

    def __call__(self, client: "Client") -> dict[Key, StoredRate]:
        rows = Query(STORED_STATEMENT, {"first": self.first, "last": self.last})(client)
        return {(date, currency): StoredRate(rate, version) for date, currency, rate, version in rows}


def _insert(cluster: ClickhouseCluster, rows: Mapping[Key, StoredRate], run_id: str) -> None:
    if not rows:
        return
    values = [(currency, date, stored.rate, stored.version) for (date, currency), stored in sorted(rows.items())]
    insert = Insert(
        table=TABLE,
        columns=("currency", "date", "rate", "version"),
        rows=values,
        # A later run may write the same rows again, after they were deleted.
        deduplication_token=f"{run_id}-{hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()}",
    )
    cluster.map_write_hosts(TABLE, insert).result()


@dataclass(frozen=True)
class _ReloadAndRead:
    """A query that reloads the dictionary of one host and reads it for every key of the table between two dates."""

    first: dt.date
    last: dt.date
    retryable = True

    def __call__(self, client: "Client") -> dict[Key, Decimal | None]:
        Query(f"SYSTEM RELOAD DICTIONARY {DICTIONARY}")(client)
        rows = Query(DICTIONARY_STATEMENT, {"first": self.first, "last": self.last})(client)
        return {(date, currency): rate for date, currency, rate in rows}


def _read_back(
    cluster: ClickhouseCluster,
    expected: Mapping[Key, StoredRate],
    first: dt.date,
    last: dt.date,
    timeout_seconds: float,
) -> None:
    deadline = time.monotonic() + timeout_seconds
    while True:
        found = cluster.map_all_hosts(_ReloadAndRead(first, last)).result()
        problems = [
            f"{host}: {currency} on {date} is {_shown(rates, (date, currency))}, {shown(stored.rate)} was written"
            for host, rates in found.items()
            for (date, currency), stored in sorted(expected.items())
            if rates.get((date, currency)) != stored.rate
        ]
        if not problems:
            return
        if time.monotonic() >= deadline:
            break
        time.sleep(_READ_BACK_PAUSE_SECONDS)
    raise ReadBackError(
        f"The dictionary {DICTIONARY} returned {len(problems)} rates that differ from those written to {TABLE}, for "
        f"{timeout_seconds:g} seconds:\n- "
        + "\n- ".join(problems[:10])
        + "\nA replica lags, or another run writes the same days: check system.replicas and "
        "system.dictionaries.last_exception on these hosts, then run the partition again."
    )


def _shown(found: Mapping[Key, Decimal | None], key: Key) -> str:
    rate = found.get(key)
    if rate is not None:
        return shown(rate)
    return "unknown to the dictionary" if key in found else "not in the table"
