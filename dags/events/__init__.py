"""Events from object storage into ClickHouse, each object exactly once. Owned by team-ingestion.

`loading.py` is the entry point and lists the steps of a load. What a line of each format means is in
`product_events.py` and `access_logs.py`.
"""
