"""The production instance, compared with what the chart renders and with the laptop's, and loaded by Dagster."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import kubernetes
import kubernetes_validate
import pytest
import yaml
from dagster_aws.s3 import S3ComputeLogManager
from dagster_k8s import K8sRunLauncher
from dagster_k8s.container_context import K8sContainerContext
from dagster_k8s.job import construct_dagster_k8s_job
from dagster_postgres import PostgresRunStorage

from dags.common.kubernetes import JOB_CLASS_RESOURCES, JobClass, kubernetes_resources, kubernetes_steps
from dags.common.resilient_kubernetes import ResilientK8sRunLauncher
from dags.tests.deploy import chart
from tools.helm_check.checks import KUBERNETES_VERSION
from tools.helm_check.safety import safety_problems

WRITTEN = yaml.safe_load((chart.DEPLOY / "dagster.yaml").read_text())
LAPTOP = yaml.safe_load((chart.ROOT / ".dagster_home" / "dagster.yaml").read_text())
IMAGE = chart.image_name(chart.values_of()["shared"]["image"])


def test_the_instance_file_equals_what_the_chart_renders() -> None:
    rendered = chart.instance_config(chart.values_of())
    for part in rendered.keys() | WRITTEN.keys():
        assert WRITTEN.get(part) == rendered.get(part), (
            f"deploy/dagster.yaml and deploy/helm/values.yaml differ in {part}"
        )


@pytest.mark.parametrize("region", chart.REGIONS)
def test_the_instances_of_regions_differ_only_in_the_database_host(region: str) -> None:
    rendered = chart.instance_config(chart.values_of(region))
    for storage in ("run_storage", "event_log_storage", "schedule_storage"):
        rendered[storage]["config"]["postgres_db"]["hostname"] = WRITTEN["run_storage"]["config"]["postgres_db"][
            "hostname"
        ]
    assert rendered == WRITTEN


def test_production_and_laptop_evaluate_freshness_policies(instance: dg.DagsterInstance) -> None:
    assert LAPTOP["freshness"] == {"enabled": True}
    with instance:
        assert "freshness" not in WRITTEN
        assert instance.freshness_enabled
        assert "FRESHNESS_DAEMON" in instance.get_required_daemon_types()


def test_production_and_laptop_have_the_same_limits() -> None:
    assert WRITTEN["concurrency"] == LAPTOP["concurrency"]
    # The chart omits a 0, which is Dagster's default.
    assert {"max_retries": 0} | WRITTEN["run_retries"] == LAPTOP["run_retries"]
    for key in ("cancel_timeout_seconds", "max_runtime_seconds", "free_slots_after_run_end_seconds"):
        assert WRITTEN["run_monitoring"][key] == LAPTOP["run_monitoring"][key], key
    for kind, kept in LAPTOP["retention"].items():
        assert kept["purge_after_days"].items() <= WRITTEN["retention"][kind]["purge_after_days"].items(), kind


@pytest.fixture
def instance(tmp_path: Path, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    """Return the production instance as Dagster loads it, with the database of this test and an unreachable cluster."""
    kubeconfig = tmp_path / "kubeconfig"
    cluster = {"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "none", "context": {"cluster": "none", "user": "none"}}
    kubeconfig.write_text(
        yaml.safe_dump({"clusters": [cluster], "contexts": [context], "users": [{"name": "none", "user": {}}]})
        + "current-context: none\n"
    )
    at = urlsplit(postgres_dsn)
    database = {
        "postgresqlHost": at.hostname,
        "postgresqlUsername": at.username,
        "postgresqlDatabase": at.path.removeprefix("/"),
        "service": {"port": at.port},
        "postgresqlParams": {"sslmode": "disable"},
    }
    unreachable = {"load_incluster_config": False, "kubeconfig_file": str(kubeconfig)}
    launcher = {"config": {"customRunLauncher": {"config": unreachable}}}
    values = chart.merged(chart.values_of(chart.REGIONS[0]), {"postgresql": database, "runLauncher": launcher})
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(chart.instance_config(values)))
    monkeypatch.setenv("DAGSTER_PG_PASSWORD", "any")
    monkeypatch.setenv("OBJECT_STORAGE_BUCKET", "analytics-platform-us")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return dg.DagsterInstance.from_config(str(home))


def test_dagster_loads_the_instance_as_configured(instance: dg.DagsterInstance) -> None:
    with instance:
        assert isinstance(instance.run_storage, PostgresRunStorage)
        assert instance.get_runs() == []
        assert isinstance(instance.compute_log_manager, S3ComputeLogManager)
        assert isinstance(instance.run_launcher, ResilientK8sRunLauncher)
        concurrency = instance.get_concurrency_config()
        assert concurrency.run_queue_config is not None
        assert concurrency.run_queue_config.max_concurrent_runs == 10
        assert concurrency.run_queue_config.tag_concurrency_limits == [{"key": "dagster/backfill", "limit": 6}]
        assert concurrency.pool_config.default_pool_limit == 1
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_start_timeout_seconds == 600
        assert instance.run_monitoring_max_runtime_seconds == 6 * 60 * 60
        assert instance.run_monitoring_max_resume_run_attempts == 0
        assert instance.run_retries_enabled
        assert not instance.telemetry_enabled


def job_of(launcher: K8sRunLauncher, tags: dict[str, str]) -> dict[str, Any]:
    """Return the Job that the launcher creates for a run with these tags."""
    run = dg.DagsterRun(job_name="any_job", tags=tags)
    context = K8sContainerContext.create_for_run(run, launcher, include_run_tags=True)
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config(IMAGE, launcher),
        ["dagster", "api", "execute_run"],
        "dagster-run-any",
        user_defined_k8s_config=context.run_k8s_config,
        component="run_worker",
    )
    made: dict[str, Any] = kubernetes.client.ApiClient().sanitize_for_serialization(job)
    return made


@pytest.mark.parametrize("job_class", [None, *JOB_CLASS_RESOURCES])
def test_the_job_of_a_run_is_valid_safe_and_limited(instance: dg.DagsterInstance, job_class: JobClass | None) -> None:
    with instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, K8sRunLauncher)
        job = job_of(launcher, kubernetes_resources(job_class) if job_class else {})
    kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)
    spec = job["spec"]["template"]["spec"]
    assert safety_problems(spec) == []
    assert spec["serviceAccountName"] == "dagster-runs"
    # No job of the project starts pods for its steps, so no run has a token.
    assert spec["automountServiceAccountToken"] is False
    assert spec["imagePullSecrets"] == [{"name": "image-registry"}]
    assert spec["enableServiceLinks"] is False
    assert spec["restartPolicy"] == "Never"
    assert job["spec"]["backoffLimit"] == 0
    (container,) = spec["containers"]
    if job_class:
        assert container["resources"] == JOB_CLASS_RESOURCES[job_class]
    mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
    # The command line of a run contains the instance's configuration, so no file is mounted for it.
    assert sorted(mounted) == ["/opt/dagster/dagster_home", "/tmp"]  # noqa: S108 - inside a pod
    assert [one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one] == [
        "analytics-platform",
        "dagster-aws",
    ]


def test_only_a_run_that_starts_pods_for_its_steps_has_a_token(instance: dg.DagsterInstance) -> None:
    with instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, K8sRunLauncher)
        job = job_of(launcher, kubernetes_steps("wide"))
    kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)
    template = job["spec"]["template"]
    assert template["spec"]["serviceAccountName"] == "dagster-steps"
    assert template["spec"]["automountServiceAccountToken"] is True
    assert template["metadata"]["labels"]["kubernetes-api"] == "steps"
    assert template["spec"]["containers"][0]["resources"] == JOB_CLASS_RESOURCES["wide"]
    assert safety_problems(template["spec"]) == []
