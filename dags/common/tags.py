"""Tags that Dagster itself heeds and has no public name for. The owner's tag is in `owners.py`."""

# Seconds after which run monitoring ends a run.
MAX_RUNTIME_TAG = "dagster/max_runtime"
