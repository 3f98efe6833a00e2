"""Keys of tags and metadata that Dagster heeds without a public name for them, or that the policies hold us to.

The owner's tag is in `owners.py`.
"""

# Seconds after which run monitoring ends a run.
MAX_RUNTIME_TAG = "dagster/max_runtime"
# How often a run whose process died is started again; "0" says that it is not.
MAX_RETRIES_TAG = "dagster/max_retries"

# The backfill that a run belongs to.
BACKFILL_TAG = "dagster/backfill"

# Of each job with a `dry_run` in its config: "true" where it destroys data and is a dry run by default, else "false".
DESTRUCTIVE_TAG = "destructive"

# Metadata of an asset without a check: why it has none.
NO_CHECK_BECAUSE = "no_check_because"
