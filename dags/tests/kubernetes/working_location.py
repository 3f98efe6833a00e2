"""A code location for tests: jobs that wait until they are let, and leave a line in a file each time they run."""

import time
from pathlib import Path

import dagster as dg

from dags.common.owners import JobOwners, owned_by
from dags.common.resilient_kubernetes import resilient_k8s_job_executor

LONGEST_WAIT_SECONDS = 300


class Work(dg.Config):
    """A file that the step waits for, and one that it adds a line to."""

    until: str = ""
    add_to: str


@dg.op(out=dg.Out(dg.Nothing))
def wait_and_write(context: dg.OpExecutionContext, config: Work) -> None:
    """Adds its run's id to the file, in one write, once it is let."""
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    while config.until and not Path(config.until).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Nobody has made {config.until}.")
        time.sleep(0.05)
    with Path(config.add_to).open("a") as file:
        file.write(f"{context.run_id}\n")


@dg.op(ins={"after": dg.In(dg.Nothing)})
def write_again(context: dg.OpExecutionContext, config: Work) -> None:
    """Adds its run's id to the file."""
    with Path(config.add_to).open("a") as file:
        file.write(f"{context.run_id}\n")


@dg.job(**owned_by(JobOwners.TEAM_INGESTION), executor_def=dg.in_process_executor)
def working_job() -> None:
    """Waits and writes, in the pod of its run."""
    wait_and_write()


@dg.job(**owned_by(JobOwners.TEAM_INGESTION), executor_def=resilient_k8s_job_executor)
def stepwise_job() -> None:
    """Waits and writes twice, each time in a pod of its own."""
    write_again(after=wait_and_write())


defs = dg.Definitions(jobs=[working_job, stepwise_job])
