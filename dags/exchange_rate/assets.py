"""The four assets: rates of a day and of an hour, as fetched into S3 and as stored in ClickHouse."""

import contextlib
import dataclasses
import datetime as dt
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.tables import EXCHANGE_RATE
from dags.common.metadata import PARTITION_ROW_COUNT, table_metadata
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

# Payments imported from billing systems seldom go further back. An earlier start would only add partitions.
DAILY_PARTITIONS = dg.DailyPartitionsDefinition(start_date="2015-01-01", timezone="UTC")
# No source has the hours of the past. The current hour is a partition, since its rates are fetched at its minute 45.
HOURLY_PARTITIONS = dg.HourlyPartitionsDefinition(start_date="2026-01-01-00:00", timezone="UTC", end_offset=1)

# A range of a few months is one run and one INSERT. A longer range is split, so that a failed run repeats little.
BACKFILL_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=100)
RETRY_POLICY = dg.RetryPolicy(max_retries=3, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

# How far the time of publication may be from the hour that the rates are stored for.
MAX_AGE_OF_LATEST_RATES = dt.timedelta(hours=24)
MAX_RUN_DELAY = dt.timedelta(hours=1)

FETCHED_METADATA = {NO_CHECK_BECAUSE: "The step fails on implausible rates, and the table they go to is checked."}
TABLE_METADATA = table_metadata(EXCHANGE_RATE)


class FetchConfig(dg.Config):
    """Run config of the assets that fetch."""

    minimum_currencies: int | None = Field(
        default=None,
        ge=1,
        description="Fewer currencies in one response are an error. Default: the number that the source is known to "
        "have. Lower it for a day on which the source really had fewer.",
    )


class StoreConfig(dg.Config):
    """Run config of the assets in ClickHouse."""

    maximum_change_percent: float = Field(
        default=50.0,
        gt=0,
        description="A rate that differs by more percent from the last stored one is an error, and nothing is stored. "
        "Halving and doubling are both 100 percent.",
    )
    accept_changes_of: list[str] = Field(
        default_factory=list,
        description="Currency codes whose rate is stored whatever its change, such as for a confirmed devaluation.",
    )
    read_back_timeout_seconds: float = Field(
        default=60.0,
        ge=0,
        description="How long the rates may take to appear in the dictionary of every host before the run fails.",
    )


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    partitions_def=DAILY_PARTITIONS,
    backfill_policy=BACKFILL_POLICY,
    retry_policy=RETRY_POLICY,
    io_manager_key="json_io_manager",
    kinds={"python", "s3"},
    metadata=FETCHED_METADATA,
)
def daily_exchange_rates(
    context: dg.AssetExecutionContext,
    config: FetchConfig,
    exchange_rates: ExchangeRatesResource,
) -> dict[str, Any]:
    """A day's final rates: units of each currency for one US dollar, and the day of their publication."""
    with _fail_without_retry():
        provider = exchange_rates.provider()
        _require_coverage(provider, context.partition_keys)
        fetched = {key: provider.daily_rates(dt.date.fromisoformat(key)) for key in context.partition_keys}
        return _checked(context, config, provider, fetched, hourly=False)


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    partitions_def=HOURLY_PARTITIONS,
    backfill_policy=BACKFILL_POLICY,
    retry_policy=RETRY_POLICY,
    io_manager_key="json_io_manager",
    kinds={"python", "s3"},
    metadata=FETCHED_METADATA,
)
def hourly_exchange_rates(
    context: dg.AssetExecutionContext,
    config: FetchConfig,
    exchange_rates: ExchangeRatesResource,
) -> dict[str, Any]:
    """The source's latest rates within an hour. Only the current hour and the one before it can be fetched."""
    with _fail_without_retry():
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
    kinds={"clickhouse"},
    metadata=TABLE_METADATA,
)
def daily_exchange_rates_in_clickhouse(
    context: dg.AssetExecutionContext,
    config: StoreConfig,
    clickhouse: ClickhouseResource,
    daily_exchange_rates: dict[str, Any],
) -> None:
    """A day's final rates in the table `exchange_rate`, read back through its dictionary on every host."""
    with _fail_without_retry():
        rates_by_key = _from_stored(context.partition_keys, daily_exchange_rates)
        quotes = {key: Quote(rates, FINAL_GRADE) for key, rates in rates_by_key.items()}
        _store(context, config, clickhouse.cluster(context), quotes)


@dg.asset(
    op_tags=owner_tags(OWNER),
    group_name=GROUP,
    partitions_def=HOURLY_PARTITIONS,
    backfill_policy=BACKFILL_POLICY,
    retry_policy=RETRY_POLICY,
    kinds={"clickhouse"},
    metadata={
        **TABLE_METADATA,
        NO_CHECK_BECAUSE: "They are read back on every host, and replaced by the day's final rates.",
    },
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
    with _fail_without_retry():
        rates_by_key = _from_stored(context.partition_keys, hourly_exchange_rates)
        quotes = {key: Quote(rates, _hour(key).hour) for key, rates in rates_by_key.items()}
        _store(context, config, clickhouse.cluster(context), quotes)


def no_intraday_rates(provider: ExchangeRatesProvider) -> str:
    """Return why this source has no hourly rates, and the remedy."""
    return (
        f"{provider.name} publishes once a day and has no hourly rates. Use daily_exchange_rates, or set "
        "OPEN_EXCHANGE_RATES_APP_ID for a source that has them."
    )


@contextlib.contextmanager
def _fail_without_retry() -> Iterator[None]:
    """Fail the step without retries for errors that a retry cannot fix. Others are left to the retry policy."""
    try:
        yield
    except ExchangeRatesUnavailableError:
        raise
    except (ExchangeRatesError, RatesRejectedError) as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def _require_coverage(provider: ExchangeRatesProvider, keys: Sequence[str]) -> None:
    reasons = {key: reason for key in keys if (reason := provider.why_not_covered(dt.date.fromisoformat(key)))}
    if reasons:
        raise ExchangeRatesError(
            f"{len(reasons)} of {len(keys)} days are not covered: {', '.join(reasons)}. {next(iter(reasons.values()))}"
        )


def _rates_of_hour(latest: Rates, hour: dt.datetime) -> Rates:
    published_at = latest.published_at
    if published_at is None:
        raise ExchangeRatesError(f"{latest.source} does not say when its latest rates were published.")
    if not hour - MAX_AGE_OF_LATEST_RATES <= published_at < hour + dt.timedelta(hours=1) + MAX_RUN_DELAY:
        raise ExchangeRatesError(
            f"{latest.source} has only its latest rates, published at {published_at:%Y-%m-%d %H:%M} UTC: they are not "
            f"those of the hour from {hour:%Y-%m-%d %H:%M} UTC. For a past day, use daily_exchange_rates."
        )
    # A run just after midnight gets rates of the new day for the last hour of the day before.
    return dataclasses.replace(latest, date=hour.date(), published_on=min(latest.published_on, hour.date()))


def _checked(
    context: dg.AssetExecutionContext,
    config: FetchConfig,
    provider: ExchangeRatesProvider,
    fetched: Mapping[str, Rates],
    *,
    hourly: bool,
) -> dict[str, Any]:
    """Check each partition's rates, add its metadata, and return the value for the IO manager."""
    minimum = config.minimum_currencies or provider.minimum_currencies
    for rates in fetched.values():
        check_rates(rates, minimum)
    for key, rates in fetched.items():
        carried = f", carried from {rates.published_on}" if rates.carried_forward else ""
        context.log.info(f"{key}: {len(rates.figures)} currencies from {rates.source}{carried}")
        context.add_asset_metadata(_metadata(rates, hourly=hourly), partition_key=key)
    return _to_stored(fetched)


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
            f"{error}\nVerify these changes. If they are real, run again with this run config: {json.dumps(override)}"
        ) from error
    for (key, quote), outcome in zip(quotes.items(), outcomes, strict=True):
        metadata = {
            **_metadata(quote.rates, hourly=quote.grade != FINAL_GRADE),
            **dataclasses.asdict(outcome),
            PARTITION_ROW_COUNT: len(quote.rates.figures),
        }
        context.add_asset_metadata(metadata, partition_key=key)


def _metadata(rates: Rates, *, hourly: bool) -> dict[str, Any]:
    """Return the metadata of one partition's rates.

    The age of a day's rates is counted from their publication to that day; the age of an hour's rates, to now.
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


def _to_stored(rates_by_key: Mapping[str, Rates]) -> dict[str, Any]:
    """Return what the IO manager stores: a dict by partition key, and the bare value of a single partition."""
    values = {key: rates_to_json(rates) for key, rates in rates_by_key.items()}
    return values if len(values) > 1 else next(iter(values.values()))


def _from_stored(keys: Sequence[str], value: Mapping[str, Any]) -> dict[str, Rates]:
    """Return the rates of each partition key from what `_to_stored` returned for these keys."""
    values = {keys[0]: value} if len(keys) == 1 else value
    return {key: rates_from_json(values[key]) for key in keys}


def _hour(key: str) -> dt.datetime:
    """Return the start (UTC) of the hour that a partition key names."""
    return dt.datetime.strptime(key, HOURLY_PARTITIONS.fmt).replace(tzinfo=dt.UTC)
