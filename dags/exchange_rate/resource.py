"""The Dagster resource `exchange_rates`: the source of rates that this deployment uses.

Not here: the sources themselves.
"""

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


@dg.resource(description="The source of exchange rates: Open Exchange Rates with an app id, else the ECB's figures.")
def exchange_rates_resource(_context: dg.InitResourceContext) -> ExchangeRatesProvider:
    """Choose by settings when a run or a tick first needs the source, so that loading code reads no environment."""
    return exchange_rates_provider(get_settings())
