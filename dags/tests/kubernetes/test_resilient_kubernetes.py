"""The resilient launcher and Dagster's own while the API server is down.

`test_faults.py` has the same with whole runs.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.executor.step_delegating import StepDelegatingExecutor
from dagster._core.launcher import WorkerStatus
from dagster_k8s.client import DagsterK8sAPIRetryLimitExceeded, DagsterK8sUnrecoverableAPIError
from kubernetes import client as k8s
from kubernetes.client.exceptions import ApiException

from dags.common.pod_failures import failure_reason
from dags.common.resilient_kubernetes import (
    MAX_UNLIMITED_SECONDS,
    ResilientK8sRunLauncher,
    ResilientStepHandler,
    UnknownRunHealthError,
    create_with_retries,
    resilient_k8s_job_executor,
)
from dags.tests.kubernetes.server import KubernetesServer
from dags.tests.kubernetes.site import LAUNCHER
from dags.tests.kubernetes.test_server import SECONDS, job
from dags.tests.webserver import wait_for

STOCK = {"module": "dagster_k8s", "class": "K8sRunLauncher"}
ENDLESS = "import time; time.sleep(600)"


@dg.job
def nothing_job() -> None: ...


@contextlib.contextmanager
def launching(launcher: dict[str, str], kubeconfig: Path) -> Iterator[dg.DagsterInstance]:
    """Yield an instance with a launcher that calls the loopback server."""
    config = {
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig),
        "job_namespace": "dagster",
        "service_account_name": "dagster-run",
        "instance_config_map": "dagster-instance",
        "dagster_home": "/opt/dagster/home",
    }
    with dg.instance_for_test(overrides={"run_launcher": {**launcher, "config": config}}) as instance:
        yield instance


def started_run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    return instance.create_run_for_job(nothing_job, status=dg.DagsterRunStatus.STARTED)


def starting_run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    return instance.create_run_for_job(nothing_job, status=dg.DagsterRunStatus.STARTING)


def launcher_of(instance: dg.DagsterInstance) -> ResilientK8sRunLauncher:
    launcher = instance.run_launcher
    assert isinstance(launcher, ResilientK8sRunLauncher)
    return launcher


def message_of_failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    (failure,) = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    return failure.message


def phase_of(kubernetes: KubernetesServer, run: dg.DagsterRun) -> str:
    (pod,) = kubernetes.cluster.pods_of(f"dagster-run-{run.run_id}")
    return str(pod["status"]["phase"])


def test_a_pod_that_dies_before_its_run_starts_fails_the_run_at_once_with_the_reason(
    kubernetes: KubernetesServer, kubeconfig: Path
) -> None:
    with launching(LAUNCHER, kubeconfig) as instance:
        run = starting_run(instance)
        launcher = launcher_of(instance)
        kubernetes.cluster.create("jobs", job(f"dagster-run-{run.run_id}", "import sys; sys.exit('no such module')"))
        wait_for(lambda: phase_of(kubernetes, run) == "Failed" or None, SECONDS, "the pod has failed")
        assert launcher.check_start(run.run_id)
        message = message_of_failure(instance, run)
    assert message.startswith("The run did not start. Container main ended with exit code 1 (Error).")
    assert "no such module" in message


def test_a_run_that_ends_before_its_pod_starts_leaves_no_job(kubernetes: KubernetesServer, kubeconfig: Path) -> None:
    kubernetes.cluster.full = True
    with launching(LAUNCHER, kubeconfig) as instance:
        run = starting_run(instance)
        launcher = launcher_of(instance)
        kubernetes.cluster.create("jobs", job(f"dagster-run-{run.run_id}", ENDLESS))
        assert not launcher.check_start(run.run_id)
        assert len(kubernetes.cluster.find("jobs", {}, {})) == 1
        instance.report_run_failed(run, "taking longer than 600 seconds to start")
        assert launcher.check_start(run.run_id)
    assert kubernetes.cluster.find("jobs", {}, {}) == []
    wait_for(lambda: not kubernetes.cluster.find("pods", {}, {}) or None, SECONDS, "the pod is deleted")


def test_the_job_of_a_run_that_has_started_is_kept(kubernetes: KubernetesServer, kubeconfig: Path) -> None:
    with launching(LAUNCHER, kubeconfig) as instance:
        run = started_run(instance)
        launcher = launcher_of(instance)
        kubernetes.cluster.create("jobs", job(f"dagster-run-{run.run_id}", ENDLESS))
        wait_for(lambda: phase_of(kubernetes, run) == "Running" or None, SECONDS, "the pod runs")
        assert launcher.check_start(run.run_id)
        instance.report_run_failed(run, "failed by a step")
        assert launcher.check_start(run.run_id)
    assert len(kubernetes.cluster.find("jobs", {}, {})) == 1


def test_the_job_of_a_run_ends_after_the_longest_time_that_the_run_can_take(
    kubernetes: KubernetesServer,  # noqa: ARG001 - the kubeconfig names it
    kubeconfig: Path,
) -> None:
    with launching(LAUNCHER, kubeconfig) as instance:
        launcher = launcher_of(instance)
        starting = instance.run_monitoring_start_timeout_seconds + instance.run_monitoring_cancel_timeout_seconds
        for tags, runtime in (({"dagster/max_runtime": "3600"}, 3600), ({}, MAX_UNLIMITED_SECONDS)):
            run = instance.create_run_for_job(nothing_job, tags=tags)
            config = launcher.get_container_context_for_run(run).run_k8s_config.job_spec_config
            assert config["active_deadline_seconds"] == runtime + starting
        own = {"dagster-k8s/config": '{"job_spec_config": {"active_deadline_seconds": 60}}'}
        run = instance.create_run_for_job(nothing_job, tags=own)
        assert launcher.get_container_context_for_run(run).run_k8s_config.job_spec_config == {
            "active_deadline_seconds": 60
        }


def test_a_pod_that_exceeds_its_memory_is_told_from_an_evicted_one(
    kubernetes: KubernetesServer, kubeconfig: Path
) -> None:
    with launching(LAUNCHER, kubeconfig) as instance:
        run = started_run(instance)
        kubernetes.cluster.create("jobs", job(f"dagster-run-{run.run_id}", ENDLESS))
        wait_for(lambda: phase_of(kubernetes, run) == "Running" or None, SECONDS, "the pod runs")
        (pod,) = kubernetes.cluster.pods_of(f"dagster-run-{run.run_id}")
        kubernetes.cluster.kill_as_out_of_memory(pod["metadata"]["name"])
        wait_for(lambda: phase_of(kubernetes, run) == "Failed" or None, SECONDS, "the pod has failed")
        result = instance.run_launcher.check_run_worker_health(run)
    assert result.status is WorkerStatus.FAILED
    assert result.msg is not None
    assert result.msg.startswith("Container main exceeded its memory limit (OOMKilled): give the job more memory.")
    low = "The node was low on resource: memory."
    evicted = k8s.V1Pod(status=k8s.V1PodStatus(phase="Failed", reason="Evicted", message=low))
    assert failure_reason([evicted]) == f"Kubernetes stopped the pod: Evicted. {low}"
    condition = k8s.V1PodCondition(type="DisruptionTarget", status="True", reason="PreemptionByScheduler")
    preempted = k8s.V1Pod(status=k8s.V1PodStatus(phase="Failed", conditions=[condition]))
    assert failure_reason([preempted]) == "Kubernetes removed the pod: PreemptionByScheduler."
    assert failure_reason([k8s.V1Pod(status=k8s.V1PodStatus(phase="Running"))]) is None


def test_the_health_of_a_run_is_unknown_while_the_server_is_down_and_reported_afterwards(
    kubernetes: KubernetesServer, kubeconfig: Path
) -> None:
    with launching(LAUNCHER, kubeconfig) as instance:
        run = started_run(instance)
        kubernetes.cluster.create("jobs", job(f"dagster-run-{run.run_id}", ENDLESS))
        kubernetes.stop()
        with pytest.raises(UnknownRunHealthError, match="Is its API server up"):
            instance.run_launcher.check_run_worker_health(run)
        kubernetes.start()
        assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_a_run_whose_job_was_deleted_is_reported(
    kubernetes: KubernetesServer,  # noqa: ARG001 - the kubeconfig names it
    kubeconfig: Path,
) -> None:
    with launching(LAUNCHER, kubeconfig) as instance:
        run = started_run(instance)
        result = instance.run_launcher.check_run_worker_health(run)
    assert result.status is WorkerStatus.UNKNOWN
    assert result.msg == f"Job dagster-run-{run.run_id} could not be found"


def test_dagsters_own_launcher_reports_unknown_when_the_server_is_down(
    kubernetes: KubernetesServer, kubeconfig: Path
) -> None:
    with launching(STOCK, kubeconfig) as instance:
        run = started_run(instance)
        kubernetes.cluster.create("jobs", job(f"dagster-run-{run.run_id}", ENDLESS))
        kubernetes.stop()
        assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.UNKNOWN


def test_the_resilient_executor_is_dagsters_own_with_another_step_handler(
    kubernetes: KubernetesServer,  # noqa: ARG001 - the kubeconfig names it
    kubeconfig: Path,
) -> None:
    config = {"retries": {"enabled": {}}, "load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    with launching(LAUNCHER, kubeconfig) as instance:
        create = resilient_k8s_job_executor.executor_creation_fn
        assert create is not None
        made = create(dg.InitExecutorContext(InMemoryJob(nothing_job), resilient_k8s_job_executor, config, instance))
    assert isinstance(made, StepDelegatingExecutor)
    assert isinstance(made._step_handler, ResilientStepHandler)
    assert made._step_handler.name == "K8sStepHandler"


class Creation:
    """A call that raises the given errors, one per attempt, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.attempts = 0

    def __call__(self) -> str:
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return "made"


def unanswered() -> Exception:
    cause = ConnectionRefusedError("refused")
    return DagsterK8sAPIRetryLimitExceeded(  # type: ignore[no-untyped-call]
        "no answer", k8s_api_exception=cause, max_retries=3, original_exc_info=(type(cause), cause, None)
    )


def refused(code: int) -> Exception:
    cause = ApiException(status=code)
    return DagsterK8sUnrecoverableAPIError(  # type: ignore[no-untyped-call]
        "refused", k8s_api_exception=cause, original_exc_info=(type(cause), cause, None)
    )


def test_a_creation_is_retried_until_the_server_answers() -> None:
    create = Creation(unanswered(), unanswered())
    assert create_with_retries(create, 60) == "made"
    assert create.attempts == 3


def test_retries_end_at_the_timeout() -> None:
    with pytest.raises(DagsterK8sAPIRetryLimitExceeded):
        create_with_retries(Creation(unanswered(), unanswered()), 0)


@pytest.mark.parametrize("code", [403, 409, 422])
def test_a_refused_creation_is_not_retried(code: int) -> None:
    create = Creation(refused(code))
    with pytest.raises(DagsterK8sUnrecoverableAPIError):
        create_with_retries(create, 60)
    assert create.attempts == 1


def test_a_job_that_an_earlier_attempt_created_is_not_created_twice() -> None:
    assert create_with_retries(Creation(unanswered(), refused(409)), 60) is None
