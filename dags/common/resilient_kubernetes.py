"""Dagster's Kubernetes run launcher and step executor, made resilient to an API server that does not respond.

Dagster's own launcher gives up a launch after half a minute, and marks a run as failed after one health check without
an answer, although its pod keeps running. It also keeps the Job of a run that could not start, and notices a pod that
died before its run started only at the start timeout. The configuration is the same as Dagster's. `dagster.yaml` names
the launcher, a location names the executor.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg
import tenacity
from dagster._core.executor.step_delegating import StepDelegatingExecutor, StepHandler, StepHandlerContext
from dagster._core.executor.step_delegating.step_handler.base import CheckStepHealthResult
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus
from dagster_k8s import K8sRunLauncher, k8s_job_executor
from dagster_k8s.client import DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import UserDefinedDagsterK8sConfig, get_job_name_from_run_id

from dags.common.pod_failures import failure_reason
from dags.common.tags import MAX_RUNTIME_TAG

# A step has no start timeout that this could follow.
STEP_LAUNCH_TIMEOUT_SECONDS = 300
HTTP_CONFLICT = 409
JOB_NOT_FOUND = "could not be found"
# How often pods of runs that have not started are looked at.
START_CHECK_SECONDS = 10
# For a run without a maximum runtime: a week.
MAX_UNLIMITED_SECONDS = 7 * 24 * 60 * 60
NOT_STARTED = (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.NOT_STARTED)


class UnknownRunHealthError(Exception):
    """The health of a run's worker is unknown, because Kubernetes did not answer."""


class ResilientK8sRunLauncher(K8sRunLauncher):
    """A run launcher that retries a launch, and takes no answer as no evidence that a run failed.

    It watches the pod of each run that it launches until the run has started. A pod that dies before that fails its run
    at once, and a run that ends before that, such as at its start timeout, leaves no Job.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._stopping = threading.Event()

    def dispose(self) -> None:
        """Stop watching."""
        self._stopping.set()
        super().dispose()

    def get_container_context_for_run(self, dagster_run: dg.DagsterRun) -> K8sContainerContext:
        """Return the configuration of a run's Job, with a deadline that ends it if Dagster does not."""
        context = super().get_container_context_for_run(dagster_run)
        deadline = K8sContainerContext(
            run_k8s_config=UserDefinedDagsterK8sConfig(
                job_spec_config={"active_deadline_seconds": self.deadline_seconds(dagster_run.tags)}
            )
        )
        # A deadline of the run's own tag wins.
        return deadline.merge(context)

    def deadline_seconds(self, tags: Mapping[str, str]) -> int:
        """Return the longest time a run can take: to start, to run and to stop."""
        instance = self._instance
        text = tags.get(MAX_RUNTIME_TAG, "")
        # 0 means no limit.
        runtime = float(text) if text.replace(".", "", 1).isdigit() else instance.run_monitoring_max_runtime_seconds
        longest = runtime or MAX_UNLIMITED_SECONDS
        starting_and_stopping = (
            instance.run_monitoring_start_timeout_seconds + instance.run_monitoring_cancel_timeout_seconds
        )
        return int(longest + starting_and_stopping)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Create the run's Job. Retry for half the start timeout of a run, then raise what Dagster's launcher raises.

        The other half of the timeout is left for the pod to start.
        """
        timeout_seconds = self._instance.run_monitoring_start_timeout_seconds / 2
        create_with_retries(lambda: super(ResilientK8sRunLauncher, self).launch_run(context), timeout_seconds)
        run_id = context.dagster_run.run_id
        threading.Thread(target=self._watch_start, args=(run_id,), name=f"start of {run_id}", daemon=True).start()

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Return the health of the run's Job, with the reason why its pod died.

        Raise UnknownRunHealthError so that run monitoring checks again.
        """
        result: CheckRunHealthResult = super().check_run_worker_health(run)
        if result.status is WorkerStatus.UNKNOWN and not (result.msg or "").endswith(JOB_NOT_FOUND):
            raise UnknownRunHealthError(
                f"Kubernetes did not report the status of run {run.run_id}. Is its API server up? {result.msg}"
            )
        if result.status is WorkerStatus.FAILED:
            reason = failure_reason(self._pods(run))
            return CheckRunHealthResult(result.status, f"{reason} {result.msg}" if reason else result.msg)
        return result

    def _pods(self, run: dg.DagsterRun) -> list[Any]:
        namespace = self.get_container_context_for_run(run).namespace
        found: list[Any] = self._api_client.core_api.list_namespaced_pod(
            namespace=namespace, label_selector=f"job-name={_job_name(run.run_id)}"
        ).items
        return found

    def _watch_start(self, run_id: str) -> None:
        """Watch a run until it has started or ended. Without an answer of Postgres or Kubernetes, check again."""
        while not self._stopping.wait(START_CHECK_SECONDS):
            try:
                if self.check_start(run_id):
                    return
            except Exception:
                logging.getLogger(__name__).warning("The start of run %s is unknown.", run_id, exc_info=True)

    def check_start(self, run_id: str) -> bool:
        """Fail a run whose pod died before the run started, or delete the Job of one that ended before it started.

        Return whether there is nothing left to watch.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            self._delete_unstarted_job(run_id)
            return True
        if run.status not in NOT_STARTED:
            return True
        if self.check_run_worker_health(run).status is not WorkerStatus.FAILED:
            return False
        details = self.get_run_worker_debug_info(run)
        reason = failure_reason(self._pods(run)) or "Its pod failed."
        # The run may have started, or ended by itself, meanwhile.
        current = self._instance.get_run_by_id(run_id)
        if current is not None and current.status in NOT_STARTED:
            self._instance.report_run_failed(current, f"The run did not start. {reason}\n{details}")
        return True

    def _delete_unstarted_job(self, run_id: str) -> None:
        """Delete the Job of a run whose pod has not started: Kubernetes would start it as soon as a node is free."""
        name = _job_name(run_id)
        pods = self._api_client.core_api.list_namespaced_pod(
            namespace=self.job_namespace, label_selector=f"job-name={name}"
        ).items
        if pods and all(pod.status.phase == "Pending" for pod in pods):
            self._api_client.delete_job(job_name=name, namespace=self.job_namespace)


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


def _job_name(run_id: str) -> str:
    name: str = get_job_name_from_run_id(run_id)  # type: ignore[no-untyped-call] # as Dagster made it
    return name


def _http_status(error: DagsterK8sUnrecoverableAPIError) -> int | None:
    return getattr(error.k8s_api_exception, "status", None)
