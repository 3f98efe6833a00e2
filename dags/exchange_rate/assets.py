"""The four assets: rates of a day and of an hour, as fetched and as stored in ClickHouse.

Belongs here: partitions, run config, metadata, and how errors end a step. Not here: how rates are got (`providers.py`),
judged (`rates.py`) or written (`storage.py`).
"""

import contextlib
import dataclasses
import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.owners import JobOwners, owner_tags
from dags.common.resources import ClickhouseResource
from dags.common.tags import NO_CHECK_BECAUSE
from dags.exchange_rate.providers import ExchangeRatesError, ExchangeRatesProvider, ExchangeRatesUnavailableError
from dags.exchange_rate.rates import (
    Rates,
    RatesRejectedError,
    check_rates,
    main_currencies_table,
    rates_from_json,
    rates_to_json,
    round_rate,
)
from dags.exchange_rate.resource import ExchangeRatesResource
from dags.exchange_rate.storage import FINAL_GRADE, JumpLimits, Quote, RatesJumpedError, store_rates

OWNER = JobOwners.TEAM_REVENUE_ANALYTICS
GROUP = "revenue_analytics"

# Payments imported from billing systems seldom go further back; an earlier start only adds partitions.
DAILY_PARTITIONS = dg.DailyPartitionsDefinition(start_date="2015-01-01", timezone="UTC")
# No source gives the hours of the past, so earlier ones could never be filled. The current hour is a partition, since
# its rates are fetched at minute 45 of it.
HOURLY_PARTITIONS = dg.HourlyPartitionsDefinition(start_date="2026-01-01-00:00", timezone="UTC", end_offset=1)

# A range of a few months is one run and one INSERT; a longer one is cut, so that a failure repeats little.
BACKFILL_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=100)
RETRY_POLICY = dg.RetryPolicy(max_retries=3, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

# How far the moment of publication may be from the hour that the rates are stored for.
OLDEST_LATEST_RATES = dt.timedelta(hours=24)
LONGEST_DELAY_OF_RUN = dt.timedelta(hours=1)


# Of both assets that fetch.
FETCHED_METADATA = {NO_CHECK_BECAUSE: "The step fails on implausible rates, and the table they go to is checked."}


class FetchConfig(dg.Config):
    """Run config of the assets that fetch."""

    minimum_currencies: int | None = Field(
        default=None,
        ge=1,
        description="Fewer currencies in one answer are an error. Left out: the number that the source is known for. "
        "Lower it for a day on which the source really had fewer.",
    )


class StoreConfig(dg.Config):
    """Run config of the assets in ClickHouse."""

    maximum_change_percent: float = Field(
        default=50.0,
        gt=0,
        description="A rate that differs by more than this many percent from the last stored one is an error, and "
        "nothing is stored. Halving and doubling are both 100 percent.",
    )
    accept_changes_of: list[str] = Field(
        default_factory=list,
        description="Currency codes whose change is stored however large it is: for a devaluation that was looked up.",
    )
    read_back_timeout_seconds: float = Field(
        default=60.0,
        ge=0,
        description="How long the rates may take to show in the dictionary of every host before the run fails.",
    )


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    partitions_def=DAILY_PARTITIONS,
    backfill_policy=BACKFILL_POLICY,
    retry_policy=RETRY_POLICY,
    io_manager_key="json_io_manager",
    metadata=FETCHED_METADATA,
)
def daily_exchange_rates(
    context: dg.AssetExecutionContext,
    config: FetchConfig,
    exchange_rates: ExchangeRatesResource,
) -> dict[str, Any]:
    """A day's final rates: units of each currency for one US dollar, with the day that the source published them."""
    with _failures_as_dagster_wants_them():
        provider = exchange_rates.provider()
        _refuse_uncovered(provider, context.partition_keys)
        fetched = {key: provider.daily_rates(dt.date.fromisoformat(key)) for key in context.partition_keys}
        return _checked(context, config, provider, fetched, hourly=False)


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    partitions_def=HOURLY_PARTITIONS,
    backfill_policy=BACKFILL_POLICY,
    retry_policy=RETRY_POLICY,
    io_manager_key="json_io_manager",
    metadata=FETCHED_METADATA,
)
def hourly_exchange_rates(
    context: dg.AssetExecutionContext,
    config: FetchConfig,
    exchange_rates: ExchangeRatesResource,
) -> dict[str, Any]:
    """The source's latest rates within an hour. Only the current hour, or the one just over, can be had."""
    with _failures_as_dagster_wants_them():
        provider = exchange_rates.provider()
        if not provider.intraday:
            raise ExchangeRatesError(no_intraday_rates(provider))
        latest = provider.latest_rates()
        fetched = {key: _rates_of_hour(latest, _hour(key)) for key in context.partition_keys}
        return _checked(context, config, provider, fetched, hourly=True)


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    partitions_def=DAILY_PARTITIONS,
    backfill_policy=BACKFILL_POLICY,
    retry_policy=RETRY_POLICY,
)
def daily_exchange_rates_in_clickhouse(
    context: dg.AssetExecutionContext,
    config: StoreConfig,
    clickhouse: ClickhouseResource,
    daily_exchange_rates: dict[str, Any],
) -> None:
    """A day's final rates in the table `exchange_rate`, read back through its dictionary on every host."""
    with _failures_as_dagster_wants_them():
        quotes = {
            key: Quote(rates_from_json(value), FINAL_GRADE)
            for key, value in _by_partition(context, daily_exchange_rates).items()
        }
        _store(context, config, clickhouse.cluster(context), quotes)


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    partitions_def=HOURLY_PARTITIONS,
    backfill_policy=BACKFILL_POLICY,
    retry_policy=RETRY_POLICY,
    metadata={NO_CHECK_BECAUSE: "They are read back on every host, and replaced by the day's final rates."},
)
def hourly_exchange_rates_in_clickhouse(
    context: dg.AssetExecutionContext,
    config: StoreConfig,
    clickhouse: ClickhouseResource,
    hourly_exchange_rates: dict[str, Any],
) -> None:
    """The rates of the day so far in the table `exchange_rate`.

    Each hour replaces the one before, and the day's final rates replace them all.
    """
    with _failures_as_dagster_wants_them():
        quotes = {
            key: Quote(rates_from_json(value), _hour(key).hour)
            for key, value in _by_partition(context, hourly_exchange_rates).items()
        }
        _store(context, config, clickhouse.cluster(context), quotes)


def no_intraday_rates(provider: ExchangeRatesProvider) -> str:
    """Return why this source has no hourly rates, and the remedy."""
    return (
        f"{provider.name} publishes once a day and has no hourly rates. Use daily_exchange_rates, or set "
        "OPEN_EXCHANGE_RATES_APP_ID for a source that has them."
    )


@contextlib.contextmanager
def _failures_as_dagster_wants_them() -> Iterator[None]:
    """End the step without retries where trying again cannot help; let transient errors through to the retry policy."""
    try:
        yield
    except ExchangeRatesUnavailableError:
        raise
    except (ExchangeRatesError, RatesRejectedError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _refuse_uncovered(provider: ExchangeRatesProvider, keys: Sequence[str]) -> None:
    reasons = {key: reason for key in keys if (reason := provider.why_not_covered(dt.date.fromisoformat(key)))}
    if reasons:
        raise ExchangeRatesError(
            f"{len(reasons)} of {len(keys)} days are not covered: {', '.join(reasons)}. {next(iter(reasons.values()))}"
        )


def _rates_of_hour(latest: Rates, hour: dt.datetime) -> Rates:
    published_at = latest.published_at
    if published_at is None:
        raise ExchangeRatesError(f"{latest.source} does not tell when its latest rates were published.")
    if not hour - OLDEST_LATEST_RATES <= published_at < hour + dt.timedelta(hours=1) + LONGEST_DELAY_OF_RUN:
        raise ExchangeRatesError(
            f"{latest.source} gives its latest rates only, published {published_at:%Y-%m-%d %H:%M} UTC: they are not "
            f"those of the hour from {hour:%Y-%m-%d %H:%M} UTC. For a day that is over, use daily_exchange_rates."
        )
    # A run in the first minutes after midnight gets rates of the new day for the last hour of the old one.
    return dataclasses.replace(latest, date=hour.date(), published_on=min(latest.published_on, hour.date()))


def _checked(
    context: dg.AssetExecutionContext,
    config: FetchConfig,
    provider: ExchangeRatesProvider,
    fetched: Mapping[str, Rates],
    *,
    hourly: bool,
) -> dict[str, Any]:
    """Check each partition's rates, add its metadata, and return what the IO manager stores."""
    minimum = config.minimum_currencies or provider.minimum_currencies
    for rates in fetched.values():
        check_rates(rates, minimum)
    for key, rates in fetched.items():
        carried = f", carried from {rates.published_on}" if rates.carried_forward else ""
        context.log.info(f"{key}: {len(rates.figures)} currencies from {rates.source}{carried}")
        context.add_asset_metadata(_metadata(rates, hourly=hourly), partition_key=key)
    values = {key: rates_to_json(rates) for key, rates in fetched.items()}
    return values if len(values) > 1 else next(iter(values.values()))


def _store(
    context: dg.AssetExecutionContext,
    config: StoreConfig,
    cluster: ClickhouseCluster,
    quotes: Mapping[str, Quote],
) -> None:
    for quote in quotes.values():
        check_rates(quote.rates, minimum_currencies=1)
    try:
        outcomes = store_rates(
            cluster,
            list(quotes.values()),
            JumpLimits(config.maximum_change_percent, frozenset(config.accept_changes_of)),
            run_id=context.run.run_id,
            read_back_timeout_seconds=config.read_back_timeout_seconds,
        )
    except RatesJumpedError as error:
        accept = {"accept_changes_of": sorted({*config.accept_changes_of, *error.currencies})}
        override = {"ops": {context.asset_key.to_user_string(): {"config": accept}}}
        raise RatesRejectedError(
            f"{error}\nLook these changes up. If they are real, run again with this run config: {json.dumps(override)}"
        ) from error
    for (key, quote), outcome in zip(quotes.items(), outcomes, strict=True):
        metadata = _metadata(quote.rates, hourly=quote.grade != FINAL_GRADE)
        context.add_asset_metadata(metadata | dataclasses.asdict(outcome), partition_key=key)


def _metadata(rates: Rates, *, hourly: bool) -> dict[str, Any]:
    """What people see of one partition's rates.

    The age of a day's rates is from their publication to their day; that of an hour's, to this moment.
    """
    lowest, *_, highest = sorted(rates.figures, key=lambda currency: rates.figures[currency])
    if hourly and rates.published_at:
        age: dict[str, float] = {
            "age_hours": round((dt.datetime.now(dt.UTC) - rates.published_at) / dt.timedelta(hours=1), 2)
        }
    else:
        age = {"age_days": (rates.date - rates.published_on).days}
    return {
        "currencies": len(rates.figures),
        "minimum_rate": float(round_rate(rates.figures[lowest])),
        "minimum_rate_currency": lowest,
        "maximum_rate": float(round_rate(rates.figures[highest])),
        "maximum_rate_currency": highest,
        "source": rates.source,
        "published_date": rates.published_on.isoformat(),
        "carried_forward": rates.carried_forward,
        **age,
        "main_currencies": dg.MetadataValue.md(main_currencies_table(rates)),
    }


def _by_partition(context: dg.AssetExecutionContext, value: dict[str, Any]) -> dict[str, Any]:
    """Return the loaded input by partition key: the IO manager gives a lone partition's value without its key."""
    keys = context.partition_keys
    return {keys[0]: value} if len(keys) == 1 else {key: value[key] for key in keys}


def _hour(key: str) -> dt.datetime:
    """Return the start (UTC) of the hour that a partition key names."""
    return dt.datetime.strptime(key, HOURLY_PARTITIONS.fmt).replace(tzinfo=dt.UTC)
