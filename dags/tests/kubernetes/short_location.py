"""A code location for tests: a short job that adds a line to a file for each attempt."""

import os
from pathlib import Path

import dagster as dg

# The file. A variable of the process, because run config would be stored for hundreds of runs.
FILE_VARIABLE = "SHORT_JOB_ADDS_TO"


@dg.op(retry_policy=dg.RetryPolicy(max_retries=3))
def add_line(context: dg.OpExecutionContext) -> None:
    """Add the id of the run and the number of the attempt to the file, in one write."""
    with Path(os.environ[FILE_VARIABLE]).open("a") as file:
        file.write(f"{context.run_id} {context.retry_number}\n")


@dg.job(executor_def=dg.in_process_executor, tags={"dagster/max_retries": "3"})
def short_job() -> None:
    """A job that takes no time."""
    add_line()


defs = dg.Definitions(jobs=[short_job])
