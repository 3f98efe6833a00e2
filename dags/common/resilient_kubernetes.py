"""Dagster's own Kubernetes launcher and executor, made to sit out an API server that does not answer for a while.

As they come, one unanswered question about a run's health marks the run as failed while its pod goes on, and a launch
is given up after half a minute. Belongs here: that patience. Not here: configuration, which is the same as Dagster's.
`dagster.yaml` names the launcher, a location the executor.
"""

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import tenacity
from dagster._core.executor.step_delegating import StepDelegatingExecutor, StepHandler, StepHandlerContext
from dagster._core.executor.step_delegating.step_handler.base import CheckStepHealthResult
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster_k8s import K8sRunLauncher, k8s_job_executor
from dagster_k8s.client import DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError

# A step has no start timeout of its own.
STEP_PATIENCE_SECONDS = 300
CONFLICT = 409
GONE = "could not be found"


class UnansweredError(Exception):
    """Kubernetes did not say how a run's worker is, so nothing is known of it."""


class ResilientK8sRunLauncher(K8sRunLauncher):
    """A run is launched, or found dead, when Kubernetes says so and not when it says nothing."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Makes the run's Job. Tries for half the time that a run has to start, then raises what Dagster's own does.

        The other half is for the pod: run monitoring gives up a run that has not started in time.
        """
        patience_seconds = self._instance.run_monitoring_start_timeout_seconds / 2
        until_answered(lambda: super(ResilientK8sRunLauncher, self).launch_run(context), patience_seconds)

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """How the run's Job is. Raises UnansweredError, upon which run monitoring asks again at its next round."""
        result: CheckRunHealthResult = super().check_run_worker_health(run)
        if result.status is WorkerStatus.UNKNOWN and not (result.msg or "").endswith(GONE):
            raise UnansweredError(
                f"Kubernetes does not say how run {run.run_id} is. Is its API server up? {result.msg}"
            )
        return result


class ResilientStepHandler(StepHandler):
    """Another step handler, whose launches wait for an API server that does not answer."""

    def __init__(self, handler: StepHandler) -> None:
        self._handler = handler

    @property
    def name(self) -> str:
        """That of the other."""
        return self._handler.name

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Makes the step's Job. Raises what the other does after STEP_PATIENCE_SECONDS."""
        yield from (
            until_answered(lambda: list(self._handler.launch_step(step_handler_context)), STEP_PATIENCE_SECONDS) or ()
        )

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """How the step's Job is; Dagster takes an error of this for no answer."""
        return self._handler.check_step_health(step_handler_context)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Deletes the step's Job."""
        return self._handler.terminate_step(step_handler_context)


def _resilient_executor(context: dg.InitExecutorContext) -> dg.Executor:
    create = k8s_job_executor.executor_creation_fn
    made = None if create is None else create(context)
    if not isinstance(made, StepDelegatingExecutor):
        raise TypeError(f"k8s_job_executor made a {type(made).__name__}: see what dagster-k8s has changed.")
    made._step_handler = ResilientStepHandler(made._step_handler)  # noqa: SLF001 - nothing else takes a step handler
    return made


resilient_k8s_job_executor = dg.ExecutorDefinition(
    name="k8s",
    config_schema=k8s_job_executor.config_schema,  # type: ignore[arg-type] # as Dagster made it of such a type
    requirements=dg.multiple_process_executor_requirements(),
    executor_creation_fn=_resilient_executor,
    description="A pod for each step, as `k8s_job_executor` makes it.",
)


def until_answered(create: Callable[[], Any], patience_seconds: float) -> Any:
    """Creates a Job, beginning anew until so many seconds are over. None when an earlier attempt had made it."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(DagsterK8sAPIRetryLimitExceeded),
        stop=tenacity.stop_after_delay(patience_seconds),
        # Each attempt of Dagster's waits long enough in itself.
        wait=tenacity.wait_none(),
        reraise=True,
    )
    for attempt in attempts:
        with attempt:
            try:
                return create()
            except DagsterK8sUnrecoverableAPIError as error:
                # The name is the run's own: the answer to an earlier attempt was lost.
                if attempt.retry_state.attempt_number > 1 and _code(error) == CONFLICT:
                    return None
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _code(error: DagsterK8sUnrecoverableAPIError) -> int | None:
    return getattr(error.k8s_api_exception, "status", None)
