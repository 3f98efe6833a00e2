"""Keys of tags and metadata that Dagster heeds without a public name for them, or that the policies hold us to.

The owner's tag is in `owners.py`.
"""

# Seconds after which run monitoring ends a run.
MAX_RUNTIME_TAG = "dagster/max_runtime"
# How often a run whose process died is started again; "0" says that it is not.
MAX_RETRIES_TAG = "dagster/max_retries"

# The backfill that a run belongs to, and the partition that it is for.
BACKFILL_TAG = "dagster/backfill"
PARTITION_TAG = "dagster/partition"

# On a failed run: whether Dagster will retry it, and the retry's run id. On the retry: which retry it is, from 1.
WILL_RETRY_TAG = "dagster/will_retry"
RETRY_RUN_TAG = "dagster/auto_retry_run_id"
RETRY_NUMBER_TAG = "dagster/retry_number"

# On a run that a schedule, a sensor or an automation condition started.
AUTOMATION_TAGS = (
    "dagster/schedule_name",
    "dagster/sensor_name",
    "dagster/auto_materialize",
    "dagster/from_automation_condition",
)

# Dagster's name for the job of every run that was started on assets and not on a job.
ASSET_JOB = "__ASSET_JOB"

# Of each job with a `dry_run` in its config: "true" where it destroys data and is a dry run by default, else "false".
DESTRUCTIVE_TAG = "destructive"

# Metadata of an asset without a check: why it has none.
NO_CHECK_BECAUSE = "no_check_because"
