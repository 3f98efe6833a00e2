"""The loopback Kubernetes API server, called by the real client."""

import base64
import copy
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml
from kubernetes import client as k8s
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import MaxRetryError

from dags.local import services
from dags.tests.kubernetes.cluster import Cluster, Image
from dags.tests.kubernetes.conftest import IMAGE
from dags.tests.kubernetes.server import KubernetesServer, serving
from dags.tests.kubernetes.site import configuration, create_environment
from dags.tests.webserver import ROOT, wait_for

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = "dagster"
SECONDS = 20
PREPARE_SECONDS = 100
Changed = Callable[[dict[str, Any]], object]


def job(name: str, program: str, **container: Any) -> dict[str, Any]:
    """Return a Job that runs a Python program."""
    described = {"name": "main", "image": IMAGE, "command": [sys.executable, "-c", program], **container}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"team": "a"}},
        "spec": {"backoffLimit": 0, "template": {"spec": {"restartPolicy": "Never", "containers": [described]}}},
    }


class Client:
    """The calls of the real client that the tests use."""

    def __init__(self, api_client: k8s.ApiClient) -> None:
        self.batch = k8s.BatchV1Api(api_client)
        self.core = k8s.CoreV1Api(api_client)

    def create(self, manifest: dict[str, Any]) -> None:
        self.batch.create_namespaced_job(NAMESPACE, manifest)

    def pod(self, job_name: str) -> Any:
        (pod,) = self.core.list_namespaced_pod(NAMESPACE, label_selector=f"job-name={job_name}").items
        return pod

    def state(self, job_name: str) -> Any:
        return self.pod(job_name).status.container_statuses[0].state

    def wait_for_phase(self, job_name: str, phase: str) -> Any:
        return wait_for(
            lambda: pod if (pod := self.pod(job_name)).status.phase == phase else None, SECONDS, f"the pod is {phase}"
        )

    def wait_for_reason(self, job_name: str, reason: str) -> str:
        def waiting() -> str | None:
            found = self.state(job_name).waiting
            return str(found.message) if found is not None and found.reason == reason else None

        return wait_for(waiting, SECONDS, f"the container waits with {reason}")

    def log(self, job_name: str) -> str:
        # Otherwise the client parses what looks like JSON; dagster-k8s does the same.
        answer = self.core.read_namespaced_pod_log(self.pod(job_name).metadata.name, NAMESPACE, _preload_content=False)
        return str(answer.data.decode())

    def status(self, job_name: str) -> Any:
        return self.batch.read_namespaced_job_status(job_name, NAMESPACE).status


@pytest.fixture
def client(api_client: k8s.ApiClient) -> Client:
    return Client(api_client)


def test_a_job_runs_its_command_to_success(client: Client) -> None:
    client.create(job("good", "print('it ran')"))
    pod = client.wait_for_phase("good", "Succeeded")
    assert client.log("good") == "it ran\n"
    assert pod.status.container_statuses[0].state.terminated.exit_code == 0
    status = client.status("good")
    assert (status.active, status.succeeded, status.failed) == (None, 1, None)


def test_a_command_that_fails_fails_its_pod_and_its_job_with_the_exit_code(client: Client) -> None:
    client.create(job("bad", "import sys; sys.exit(3)"))
    client.wait_for_phase("bad", "Failed")
    terminated = client.state("bad").terminated
    assert (terminated.exit_code, terminated.reason) == (3, "Error")
    status = client.status("bad")
    assert (status.active, status.succeeded, status.failed) == (None, None, 1)


def test_a_container_gets_the_variables_of_its_image_its_sources_and_its_own_and_no_others(
    client: Client, kubernetes: KubernetesServer
) -> None:
    secret = {"plain": "from secret", "both": "secret"}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in secret.items()}
    kubernetes.cluster.create(
        "secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": encoded}
    )
    kubernetes.cluster.create(
        "configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"both": "map"}}
    )
    program = "import json, os; print(json.dumps(dict(os.environ)))"
    client.create(
        job(
            "env",
            program,
            envFrom=[{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "s"}}],
            env=[
                {"name": "OWN", "value": "own"},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "plain"}}},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
        )
    )
    pod = client.wait_for_phase("env", "Succeeded")
    found = json.loads(client.log("env"))
    assert {name: found[name] for name in ("plain", "both", "OWN", "KEY")} == {
        "plain": "from secret",
        "both": "secret",
        "OWN": "own",
        "KEY": "from secret",
    }
    assert found["POD"] == found["HOSTNAME"] == pod.metadata.name
    assert not {"HOME", "USER", "PYTEST_CURRENT_TEST"} & set(found)


def test_a_pod_waits_for_a_missing_secret_and_runs_once_it_exists(client: Client, kubernetes: KubernetesServer) -> None:
    client.create(job("waits", "pass", envFrom=[{"secretRef": {"name": "late"}}]))
    message = client.wait_for_reason("waits", "CreateContainerConfigError")
    assert message == 'secrets "late" not found'
    events = client.core.list_namespaced_event(
        NAMESPACE, field_selector=f"involvedObject.name={client.pod('waits').metadata.name}"
    ).items
    assert [(event.type, event.message) for event in events] == [("Warning", message)]
    kubernetes.cluster.create("secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}})
    client.wait_for_phase("waits", "Succeeded")


def test_a_pod_of_an_unknown_image_stays_pending(client: Client) -> None:
    client.create(job("image", "pass", image="unknown/image:1"))
    client.wait_for_reason("image", "ImagePullBackOff")
    assert client.pod("image").status.phase == "Pending"
    assert client.status("image").active == 1


def test_a_pod_stays_pending_while_the_cluster_is_full(client: Client, kubernetes: KubernetesServer) -> None:
    kubernetes.cluster.full = True
    client.create(job("pending", "pass"))
    client.wait_for_reason("pending", "Unschedulable")
    kubernetes.cluster.make_room()
    client.wait_for_phase("pending", "Succeeded")


def test_a_pod_that_exceeds_its_memory_is_killed_with_its_children(
    client: Client, kubernetes: KubernetesServer
) -> None:
    program = (
        "import subprocess; child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); child.wait()"
    )
    client.create(job("big", program))
    child = int(wait_for(lambda: client.log("big") or None, SECONDS, "the program has a child"))
    kubernetes.cluster.kill_as_out_of_memory(client.pod("big").metadata.name)
    client.wait_for_phase("big", "Failed")
    terminated = client.state("big").terminated
    assert (terminated.exit_code, terminated.reason) == (137, "OOMKilled")
    wait_for(lambda: _is_gone(child) or None, SECONDS, "the child has exited")


def test_a_deleted_pod_gets_sigterm_and_its_job_fails(client: Client) -> None:
    program = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); print(1, flush=True); time.sleep(600)"
    )
    client.create(job("deleted", program))
    wait_for(lambda: client.log("deleted") or None, SECONDS, "the program runs")
    client.core.delete_namespaced_pod(client.pod("deleted").metadata.name, NAMESPACE)
    wait_for(lambda: client.status("deleted").active is None or None, SECONDS, "the job has finished")
    assert client.core.list_namespaced_pod(NAMESPACE).items == []


def test_deleting_a_job_leaves_its_pod_unless_the_caller_propagates(client: Client) -> None:
    for name in ("left", "deleted"):
        client.create(job(name, "import time; time.sleep(600)"))
        client.wait_for_phase(name, "Running")
    client.batch.delete_namespaced_job("left", NAMESPACE)
    client.batch.delete_namespaced_job("deleted", NAMESPACE, propagation_policy="Background")

    def labels() -> list[str]:
        return [pod.metadata.labels["job-name"] for pod in client.core.list_namespaced_pod(NAMESPACE).items]

    wait_for(lambda: labels() == ["left"] or None, SECONDS, "one pod is left")
    assert client.batch.list_namespaced_job(NAMESPACE).items == []


def with_unknown_field(manifest: dict[str, Any]) -> None:
    manifest["spec"]["template"]["spec"]["nodeSelektor"] = {}


def with_text_for_a_number(manifest: dict[str, Any]) -> None:
    manifest["spec"]["ttlSecondsAfterFinished"] = "60"


def with_long_name(manifest: dict[str, Any]) -> None:
    manifest["metadata"]["name"] = "n" * 64


def with_invalid_label(manifest: dict[str, Any]) -> None:
    manifest["metadata"]["labels"]["team"] = "not a label"


def with_endless_restarts(manifest: dict[str, Any]) -> None:
    manifest["spec"]["template"]["spec"]["restartPolicy"] = "Always"


@pytest.mark.parametrize(
    "change",
    [
        with_unknown_field,
        with_text_for_a_number,
        with_long_name,
        with_invalid_label,
        with_endless_restarts,
    ],
)
def test_an_invalid_object_is_rejected(client: Client, kubernetes: KubernetesServer, change: Changed) -> None:
    manifest = job("invalid", "pass")
    change(manifest)
    with pytest.raises(ApiException) as caught:
        client.create(manifest)
    assert caught.value.status == 422
    assert len(kubernetes.cluster.refusals) == 1
    assert client.core.list_namespaced_pod(NAMESPACE).items == []


def test_duplicate_missing_and_foreign_objects_are_rejected_as_kubernetes_does(client: Client) -> None:
    client.create(job("once", "pass"))
    with pytest.raises(ApiException) as conflict:
        client.create(job("once", "pass"))
    with pytest.raises(ApiException) as missing:
        client.status("never")
    with pytest.raises(ApiException) as elsewhere:
        client.batch.create_namespaced_job("kube-system", job("other", "pass"))
    assert [error.value.status for error in (conflict, missing, elsewhere)] == [409, 404, 403]


def test_a_client_without_the_token_is_rejected(kubernetes: KubernetesServer) -> None:
    configuration = k8s.Configuration(host=f"http://127.0.0.1:{kubernetes.port}")
    with k8s.ApiClient(configuration) as unauthorized, pytest.raises(ApiException) as caught:
        k8s.VersionApi(unauthorized).get_code()
    assert caught.value.status == 401


def test_a_stopped_server_refuses_connections_and_pods_keep_running(
    client: Client, kubernetes: KubernetesServer, tmp_path: "Path"
) -> None:
    done = tmp_path / "done"
    program = f"import pathlib, time; time.sleep(1); pathlib.Path({str(done)!r}).touch()"
    client.create(job("lasting", program))
    client.wait_for_phase("lasting", "Running")
    kubernetes.stop()
    with pytest.raises(MaxRetryError):
        client.status("lasting")
    wait_for(lambda: done.exists() or None, SECONDS, "the pod has finished its work")
    kubernetes.start()
    client.wait_for_phase("lasting", "Succeeded")


def test_a_closed_server_leaves_no_process(lifeline: services.Lifeline, tmp_path: "Path", image: Image) -> None:
    cluster = Cluster(lifeline, tmp_path, {IMAGE: image})
    with serving(cluster):
        cluster.create("jobs", job("endless", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"))
        (pod,) = cluster.pods_of("endless")
        pid = int(wait_for(lambda: cluster.log(pod["metadata"]["name"]) or None, SECONDS, "the program runs"))
    wait_for(lambda: _is_gone(pid) or None, SECONDS, "the program has exited")


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


IN_CLUSTER = "from kubernetes import client, config; config.load_incluster_config(); "
CREATE = IN_CLUSTER + "client.BatchV1Api().list_namespaced_job('dagster'); print('allowed')"


def of_account(name: str, account: str, program: str, *, token: bool) -> dict[str, Any]:
    manifest = job(name, program)
    manifest["spec"]["template"]["spec"] |= {
        "serviceAccountName": account,
        "automountServiceAccountToken": token,
    }
    return manifest


def test_a_pod_has_a_token_only_if_its_manifest_mounts_it_and_only_the_permissions_of_its_account(
    client: Client, kubernetes: KubernetesServer
) -> None:
    client.create(of_account("steps", "dagster-steps", CREATE, token=True))
    client.wait_for_phase("steps", "Succeeded")
    client.create(of_account("run", "dagster-runs", CREATE, token=False))
    client.wait_for_phase("run", "Failed")
    assert "Service token file does not exist" in client.log("run")
    client.create(of_account("reader", "dagster-read-only", CREATE, token=True))
    client.wait_for_phase("reader", "Failed")
    assert "(403)" in client.log("reader")
    assert kubernetes.cluster.refusals == ["account dagster-read-only may not list jobs"]


def _ended_phase(kubernetes: KubernetesServer, job_name: str) -> str | None:
    (pod,) = kubernetes.cluster.pods_of(job_name)
    phase = str(pod["status"]["phase"])
    assert "CreateContainerConfigError" not in str(pod["status"]), pod["status"]
    return phase if phase in ("Succeeded", "Failed") else None


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_job_that_prepares_the_instance_runs_with_what_its_manifest_gives_it(
    client: Client, kubernetes: KubernetesServer, tmp_path: "Path", postgres_dsn: str
) -> None:
    prepare = yaml.safe_load((ROOT / "deploy" / "manifests" / "prepare-instance.yaml").read_text())
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(configuration(postgres_dsn, home, {})))
    create_environment(kubernetes, {})
    for kind, plural, name in (("ConfigMap", "configmaps", "analytics-platform"), ("Secret", "secrets", "dagster-aws")):
        kubernetes.cluster.create(plural, {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": {}})
    for mounts, phase in ((True, "Succeeded"), (False, "Failed")):
        name = f"prepare-{phase.lower()}"
        manifest = copy.deepcopy(prepare) | {"metadata": {"name": name}}
        # This server retries no pod, and mounts no volumes.
        manifest["spec"]["backoffLimit"] = 0
        pod = manifest["spec"]["template"]["spec"]
        pod["automountServiceAccountToken"] = mounts
        (container,) = pod["containers"]
        container["image"] = IMAGE
        container["env"][0]["value"] = str(home)
        client.create(manifest)
        ended = wait_for(lambda name=name: _ended_phase(kubernetes, name), PREPARE_SECONDS, f"{name} has ended")  # type: ignore[misc]
        assert ended == phase, client.log(name)
    assert "Service token file does not exist" in client.log("prepare-failed")
    assert kubernetes.cluster.refusals == []
