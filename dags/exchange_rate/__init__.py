"""Exchange rates against the US dollar: fetched, checked, stored in ClickHouse, served by a dictionary.

`rates.py` is the value and its rules; `providers.py`, `open_exchange_rates.py` and `european_central_bank.py` are the
sources; `storage.py` is ClickHouse; `assets.py`, `checks.py` and `schedules.py` are what Dagster runs. What a location
registers of it is in `dags/locations/`.
"""
