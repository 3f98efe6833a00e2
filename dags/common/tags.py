"""Keys of tags and metadata that have no public name in Dagster, or that the policies require.

The owner tag is in `owners.py`.
"""

# Seconds after which run monitoring terminates a run.
MAX_RUNTIME_TAG = "dagster/max_runtime"
# How often a run whose process died is retried, "0" for never.
MAX_RETRIES_TAG = "dagster/max_retries"

# Queued runs start in descending order of it; 0 without the tag.
PRIORITY_TAG = "dagster/priority"

# The backfill and the partition of a run.
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

# Dagster's job name of runs that were started on assets and not on a job.
ASSET_JOB = "__ASSET_JOB"

# The pool of every step that computes web tables or reads them to compute more: deletions must not run beside one.
WEB_TABLES_POOL = "web_pre_aggregation"

# On each job with `dry_run` in its config: "true" if it destroys data, and then it is a dry run by default.
DESTRUCTIVE_TAG = "destructive"

# Metadata of an asset without a check: the reason.
NO_CHECK_BECAUSE = "no_check_because"
