"""The Dagster resource `exchange_rates`: the source of rates that this deployment uses."""

import dagster as dg

from dags.common.settings import Settings, get_settings
from dags.exchange_rate.european_central_bank import EuropeanCentralBank
from dags.exchange_rate.open_exchange_rates import OpenExchangeRates
from dags.exchange_rate.providers import ExchangeRatesProvider


def exchange_rates_provider(settings: Settings) -> ExchangeRatesProvider:
    """Return Open Exchange Rates where its app id is set, else the European Central Bank's reference rates."""
    if settings.open_exchange_rates_app_id is None:
        return EuropeanCentralBank()
    return OpenExchangeRates(settings.open_exchange_rates_app_id)


class ExchangeRatesResource(dg.ConfigurableResource["ExchangeRatesResource"]):
    """The source of exchange rates: Open Exchange Rates where its app id is set, else the European Central Bank."""

    def provider(self) -> ExchangeRatesProvider:
        """Return the source that the settings choose."""
        return exchange_rates_provider(get_settings())
