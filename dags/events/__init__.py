"""Events from object storage into ClickHouse, each object once. team-ingestion.

`objects.py` says what an object is, `batches.py` what is loaded together, `loading.py` how it becomes exactly once.
What a line means is in `product_events.py` (JSON lines, Parquet) and `access_logs.py`. What is computed from events
lives with other teams.
"""
