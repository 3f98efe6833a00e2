"""A code location for tests: jobs that wait for a file, and add a line to another one each time they run."""

import time
from pathlib import Path

import dagster as dg

from dags.common.kubernetes import kubernetes_steps
from dags.common.owners import JobOwners, owned_by
from dags.common.resilient_kubernetes import resilient_k8s_job_executor

MAX_WAIT_SECONDS = 300


class Work(dg.Config):
    """The file that a step waits for, and the file that it adds a line to."""

    until: str = ""
    add_to: str


@dg.op(out=dg.Out(dg.Nothing))
def wait_and_write(context: dg.OpExecutionContext, config: Work) -> None:
    """Wait for the one file, then add the id of the run to the other in one write."""
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    while config.until and not Path(config.until).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{config.until} was not created.")
        time.sleep(0.05)
    with Path(config.add_to).open("a") as file:
        file.write(f"{context.run_id}\n")


@dg.op(ins={"after": dg.In(dg.Nothing)})
def write_again(context: dg.OpExecutionContext, config: Work) -> None:
    """Add the id of the run to the file."""
    with Path(config.add_to).open("a") as file:
        file.write(f"{context.run_id}\n")


@dg.job(**owned_by(JobOwners.TEAM_INGESTION), executor_def=dg.in_process_executor)
def working_job() -> None:
    """Wait and write, in the pod of the run."""
    wait_and_write()


@dg.job(**owned_by(JobOwners.TEAM_INGESTION, **kubernetes_steps()), executor_def=resilient_k8s_job_executor)
def stepwise_job() -> None:
    """Wait and write twice, each time in a pod of its own."""
    write_again(after=wait_and_write())


defs = dg.Definitions(jobs=[working_job, stepwise_job])
