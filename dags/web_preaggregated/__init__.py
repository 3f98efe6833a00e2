"""Web analytics by day, hour and page: pageviews, visitors, sessions, bounces. Owned by team-web-analytics.

`statements.py` defines a session in SQL. `aggregate.py` computes days and swaps them in. `raw.py` computes the same
numbers in another way, for the checks. `teams.py` has the selection of teams, `exports.py` the Parquet objects.
"""
