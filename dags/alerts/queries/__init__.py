"""The queries of the alert store, a module for each group of tables. Those of the outbox are in `outbox.py`."""
