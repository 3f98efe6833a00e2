"""The patient launcher beside Dagster's own on an API server that goes away; what Dagster's own does is pinned.

That whole runs outlive an absence of the server is proven in `test_faults.py`.
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
from kubernetes.client.exceptions import ApiException

from dags.common.resilient_kubernetes import (
    ResilientStepHandler,
    UnansweredError,
    resilient_k8s_job_executor,
    until_answered,
)
from dags.tests.kubernetes.server import KubernetesServer
from dags.tests.kubernetes.site import LAUNCHER
from dags.tests.kubernetes.test_server import job

STOCK = {"module": "dagster_k8s", "class": "K8sRunLauncher"}
ENDLESS = "import time; time.sleep(600)"


@dg.job
def nothing_job() -> None: ...


@contextlib.contextmanager
def launching(launcher: dict[str, str], kubeconfig: Path) -> Iterator[dg.DagsterInstance]:
    """An instance with a launcher on the loopback server."""
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


def test_nothing_is_said_of_a_run_while_the_server_is_away_and_the_truth_afterwards(
    kubernetes: KubernetesServer, kubeconfig: Path
) -> None:
    with launching(LAUNCHER, kubeconfig) as instance:
        run = started_run(instance)
        kubernetes.cluster.create("jobs", job(f"dagster-run-{run.run_id}", ENDLESS))
        kubernetes.go_away()
        with pytest.raises(UnansweredError, match="Is its API server up"):
            instance.run_launcher.check_run_worker_health(run)
        kubernetes.come()
        assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_a_run_whose_job_is_gone_is_not_mistaken_for_one_that_nothing_is_known_of(
    kubernetes: KubernetesServer,  # noqa: ARG001 - the kubeconfig leads to it
    kubeconfig: Path,
) -> None:
    with launching(LAUNCHER, kubeconfig) as instance:
        run = started_run(instance)
        result = instance.run_launcher.check_run_worker_health(run)
    assert result.status is WorkerStatus.UNKNOWN
    assert result.msg == f"Job dagster-run-{run.run_id} could not be found"


def test_dagsters_own_launcher_takes_no_answer_for_a_lost_run(kubernetes: KubernetesServer, kubeconfig: Path) -> None:
    with launching(STOCK, kubeconfig) as instance:
        run = started_run(instance)
        kubernetes.cluster.create("jobs", job(f"dagster-run-{run.run_id}", ENDLESS))
        kubernetes.go_away()
        assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.UNKNOWN


def test_the_resilient_executor_is_dagsters_own_with_another_way_to_launch_a_step(
    kubernetes: KubernetesServer,  # noqa: ARG001 - the kubeconfig leads to it
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
    """Fails as told, one error an attempt, and then succeeds."""

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


def test_a_creation_is_tried_until_it_is_answered() -> None:
    create = Creation(unanswered(), unanswered())
    assert until_answered(create, 60) == "made"
    assert create.attempts == 3


def test_patience_ends() -> None:
    with pytest.raises(DagsterK8sAPIRetryLimitExceeded):
        until_answered(Creation(unanswered(), unanswered()), 0)


@pytest.mark.parametrize("code", [403, 409, 422])
def test_a_refusal_is_not_tried_again(code: int) -> None:
    create = Creation(refused(code))
    with pytest.raises(DagsterK8sUnrecoverableAPIError):
        until_answered(create, 60)
    assert create.attempts == 1


def test_what_an_unanswered_attempt_has_made_all_the_same_is_not_made_twice() -> None:
    assert until_answered(Creation(unanswered(), refused(409)), 60) is None
