"""Dagster's Kubernetes run launcher and step executor, made resilient to an API server that does not respond.

Dagster's own launcher gives up a launch after half a minute, and marks a run as failed after one health check without
an answer, although its pod keeps running. The configuration is the same as Dagster's. `dagster.yaml` names the
launcher, a location names the executor.
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

# A step has no start timeout that this could follow.
STEP_LAUNCH_TIMEOUT_SECONDS = 300
HTTP_CONFLICT = 409
JOB_NOT_FOUND = "could not be found"


class UnknownRunHealthError(Exception):
    """The health of a run's worker is unknown, because Kubernetes did not answer."""


class ResilientK8sRunLauncher(K8sRunLauncher):
    """A run launcher that retries a launch, and takes no answer as no evidence that a run failed."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Create the run's Job. Retry for half the start timeout of a run, then raise what Dagster's launcher raises.

        The other half of the timeout is left for the pod to start.
        """
        timeout_seconds = self._instance.run_monitoring_start_timeout_seconds / 2
        create_with_retries(lambda: super(ResilientK8sRunLauncher, self).launch_run(context), timeout_seconds)

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return the health of the run's Job. Raise UnknownRunHealthError so that run monitoring checks again."""
        result: CheckRunHealthResult = super().check_run_worker_health(run)
        if result.status is WorkerStatus.UNKNOWN and not (result.msg or "").endswith(JOB_NOT_FOUND):
            raise UnknownRunHealthError(
                f"Kubernetes did not report the status of run {run.run_id}. Is its API server up? {result.msg}"
            )
        return result


class ResilientStepHandler(StepHandler):
    """A step handler that retries the launches of another one."""

    def __init__(self, handler: StepHandler) -> None:
        self._handler = handler

    @property
    def name(self) -> str:
        """Return the name of the wrapped handler."""
        return self._handler.name

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Create the step's Job. Retry for STEP_LAUNCH_TIMEOUT_SECONDS, then raise what the wrapped handler raises."""
        events = create_with_retries(
            lambda: list(self._handler.launch_step(step_handler_context)), STEP_LAUNCH_TIMEOUT_SECONDS
        )
        yield from events or ()

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Return the health of the step's Job. The executor does not fail a step whose check raises."""
        return self._handler.check_step_health(step_handler_context)

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Delete the step's Job."""
        return self._handler.terminate_step(step_handler_context)


def _resilient_executor(context: dg.InitExecutorContext) -> dg.Executor:
    create = k8s_job_executor.executor_creation_fn
    executor = None if create is None else create(context)
    if not isinstance(executor, StepDelegatingExecutor):
        raise TypeError(f"k8s_job_executor returned a {type(executor).__name__}: dagster-k8s has changed.")
    executor._step_handler = ResilientStepHandler(executor._step_handler)  # noqa: SLF001 - no argument takes one
    return executor


resilient_k8s_job_executor = dg.ExecutorDefinition(
    name="k8s",
    config_schema=k8s_job_executor.config_schema,  # type: ignore[arg-type] # as Dagster made it of such a type
    requirements=dg.multiple_process_executor_requirements(),
    executor_creation_fn=_resilient_executor,
    description="Runs each step in a pod of its own, as `k8s_job_executor` does.",
)


def create_with_retries(create: Callable[[], Any], timeout_seconds: float) -> Any:
    """Create a Job, and retry while Kubernetes does not answer. Return None when an earlier attempt had created it."""
    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(DagsterK8sAPIRetryLimitExceeded),
        stop=tenacity.stop_after_delay(timeout_seconds),
        # Dagster's own client waits between its attempts.
        wait=tenacity.wait_none(),
        reraise=True,
    )
    for attempt in attempts:
        with attempt:
            try:
                return create()
            except DagsterK8sUnrecoverableAPIError as error:
                # A Job's name belongs to one run: an earlier attempt created it, and its answer was lost.
                if attempt.retry_state.attempt_number > 1 and _http_status(error) == HTTP_CONFLICT:
                    return None
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def _http_status(error: DagsterK8sUnrecoverableAPIError) -> int | None:
    return getattr(error.k8s_api_exception, "status", None)
