"""Web analytics, pre-aggregated: pageviews, visitors, sessions, bounces and durations by day, by hour and by page.

`statements.py` is what a session is, in SQL; `aggregate.py` computes days and swaps them in; `raw.py` says the same in
another way, for the check; `teams.py` is which teams are computed; `assets.py`, `checks.py` and `schedules.py` are what
Dagster runs; `exports.py` writes objects. What a location registers of it is in `dags/locations/`.
"""
