"""A code location for tests: a job that takes no time, and leaves a line in a file for each attempt at it."""

import os
from pathlib import Path

import dagster as dg

# Where the lines go: a variable of the process, since a run's configuration would be stored hundreds of times.
FILE_VARIABLE = "SHORT_JOB_ADDS_TO"


@dg.op(retry_policy=dg.RetryPolicy(max_retries=3))
def add_line(context: dg.OpExecutionContext) -> None:
    """Adds its run's id and the number of the attempt to the file, in one write."""
    with Path(os.environ[FILE_VARIABLE]).open("a") as file:
        file.write(f"{context.run_id} {context.retry_number}\n")


@dg.job(executor_def=dg.in_process_executor, tags={"dagster/max_retries": "3"})
def short_job() -> None:
    """Takes no time."""
    add_line()


defs = dg.Definitions(jobs=[short_job])
