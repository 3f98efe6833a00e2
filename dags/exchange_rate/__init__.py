"""Exchange rates against the US dollar: fetched, checked, stored in ClickHouse, served by a dictionary.

`providers.py` is the interface of a source, with `open_exchange_rates.py` and `european_central_bank.py` behind it;
`rates.py` is one day's rates and their rules; `storage.py` writes them to ClickHouse.
"""
