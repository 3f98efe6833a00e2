"""The hand-written objects: valid, limited, and without permissions that they do not use."""

from typing import Any

import kubernetes_validate
import pytest

from dags.common.settings import Settings
from dags.definitions import load_locations
from dags.tests.deploy import chart
from tools.helm_check import checks
from tools.helm_check.__main__ import pages
from tools.helm_check.checks import KUBERNETES_VERSION
from tools.helm_check.safety import containers, safety_problems

OBJECTS = list(chart.manifests())
VALUES = chart.values_of(chart.REGIONS[0])
RENDERED = [one for one in chart.rendered(VALUES) if one["kind"] == "Deployment"]
PODS = [*chart.pod_specs(), *((one["metadata"]["name"], one["spec"]["template"]["spec"]) for one in RENDERED)]


NAMES = [f"{file}-{one['kind']}-{one['metadata'].get('name', '')}" for file, one in OBJECTS]


@pytest.mark.parametrize(("file", "document"), OBJECTS, ids=NAMES)
def test_every_object_matches_the_schemas_of_kubernetes(file: str, document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    if document["kind"] != "Namespace":
        assert document["metadata"]["namespace"] == chart.NAMESPACE, file


def test_an_unknown_field_is_detected() -> None:
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "date": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize(("name", "spec"), PODS, ids=[name for name, _ in PODS])
def test_every_pod_is_unprivileged_and_limited(name: str, spec: dict[str, Any]) -> None:
    problems = safety_problems(spec)
    assert not problems, f"{name}: " + "; ".join(problems)


def test_an_unsafe_pod_is_detected() -> None:
    assert len(safety_problems({"containers": [{"name": "x", "image": "x"}]})) == 8


def test_every_server_has_its_probes() -> None:
    for deployment in RENDERED:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert not checks.missing_probes(container), deployment["metadata"]["name"]


def test_every_job_has_a_deadline() -> None:
    jobs = [one for _, one in OBJECTS if one["kind"] in ("Job", "CronJob")]
    assert jobs
    for job in jobs:
        spec = job["spec"].get("jobTemplate", job)["spec"]
        assert spec["activeDeadlineSeconds"] > 0


@pytest.mark.parametrize("region", chart.REGIONS)
def test_what_the_chart_renders_and_the_manifests_break_no_rule_together(region: str) -> None:
    values = chart.values_of(region)
    hand_written = [one for file, one in chart.manifests() if not file.startswith("values-")]
    objects = [*chart.rendered(values), *values["extraManifests"], *hand_written]
    problems = checks.problems_of(objects, pages())
    assert not problems, "\n".join(problems)


def test_the_image_that_waits_for_postgres_has_one_registry() -> None:
    assert chart.postgres_image(VALUES) == "docker.io/library/postgres:18.1"
    before = chart.merged(VALUES, {"postgresql": {"image": {"repository": "docker.io/library/postgres"}}})
    assert checks.image_problems(chart.postgres_image(before)) == [
        "image 'docker.io/docker.io/library/postgres:18.1' names a registry twice"
    ]


def test_every_init_container_is_rendered_and_checked() -> None:
    (daemon,) = [one for one in RENDERED if one["metadata"]["name"] == "dagster-daemon"]
    pod = daemon["spec"]["template"]["spec"]
    assert [one["name"] for one in pod["initContainers"]] == [
        "check-db-ready",
        *(f"init-user-deployment-{server['name']}" for server in chart.code_servers(VALUES)),
    ]
    del pod["initContainers"][0]["securityContext"]
    assert any(problem.startswith("check-db-ready ") for problem in safety_problems(pod))


def test_the_job_that_prepares_the_instance_has_a_token_without_permissions() -> None:
    (job,) = [document for file, document in OBJECTS if file == "prepare-instance.yaml"]
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    bound = {subject["name"] for _, one in OBJECTS if one["kind"] == "RoleBinding" for subject in one["subjects"]}
    assert pod["serviceAccountName"] not in bound
    # Its command loads the run launcher, which reads the token.
    assert checks.token_problems(job, pod | {"automountServiceAccountToken": False})


def test_only_what_starts_jobs_may_create_them() -> None:
    creating = {
        one["metadata"]["name"]
        for _, one in OBJECTS
        if one["kind"] == "Role" and any("create" in rule["verbs"] for rule in one["rules"])
    }
    bound = {
        subject["name"]
        for _, one in OBJECTS
        if one["kind"] == "RoleBinding" and one["roleRef"]["name"] in creating
        for subject in one["subjects"]
    }
    assert bound == {"dagster", "dagster-steps"}
    users = {spec["serviceAccountName"] for _, spec in PODS}
    assert "dagster-steps" not in users
    assert (
        VALUES["runLauncher"]["config"]["customRunLauncher"]["config"]["run_k8s_config"]["pod_spec_config"][
            "automountServiceAccountToken"
        ]
        is False
    )


def test_the_read_only_web_server_has_the_options_of_the_other_one_and_no_permissions() -> None:
    (own,) = [one for file, one in OBJECTS if file == "webserver-read-only.yaml" and one["kind"] == "Deployment"]
    pod = own["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == "dagster-read-only"
    (container,) = pod["containers"]
    assert "--read-only" in container["args"]
    given = chart.webserver_command(VALUES, read_only=True)
    for word in container["args"]:
        if word.startswith("--db-"):
            assert word.replace("=", " ") in given
    (other,) = [one for one in RENDERED if one["metadata"]["name"] == "dagster-webserver"]
    (beside,) = other["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == beside["resources"]
    assert container["readinessProbe"] == beside["readinessProbe"]


def test_every_pod_can_be_pulled_from_a_private_registry() -> None:
    for name, spec in PODS:
        assert spec["imagePullSecrets"] == VALUES["imagePullSecrets"], name
    launcher = VALUES["runLauncher"]["config"]["customRunLauncher"]["config"]
    assert launcher["image_pull_secrets"] == VALUES["imagePullSecrets"]


def test_secrets_are_only_referenced() -> None:
    for name, spec in PODS:
        for container in containers(spec):
            for variable in container.get("env", []):
                secret = any(word in variable["name"] for word in ("PASSWORD", "TOKEN", "SECRET", "KEY"))
                assert not (secret and "value" in variable), f"{name}: {variable['name']} belongs in a Secret"
    assert all(document["kind"] != "Secret" for _, document in OBJECTS)


def test_no_pod_gets_the_variables_of_services() -> None:
    for name, spec in chart.pod_specs():
        assert spec["enableServiceLinks"] is False, (
            f"{name}: Kubernetes would set CLICKHOUSE_PORT for the service of a location"
        )


def test_roles_have_no_wildcards_and_cannot_read_secrets() -> None:
    roles = [one for _, one in OBJECTS if one["kind"] == "Role"]
    assert roles
    for role in roles:
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert not {"secrets", "configmaps", "pods/exec", "serviceaccounts"} & set(rule["resources"])


def test_every_account_that_is_used_exists() -> None:
    made = {one["metadata"]["name"] for _, one in OBJECTS if one["kind"] == "ServiceAccount"}
    launcher = VALUES["runLauncher"]["config"]["customRunLauncher"]["config"]["run_k8s_config"]["pod_spec_config"]
    # Jobs choose the last one: `kubernetes_steps`.
    used = {spec["serviceAccountName"] for _, spec in PODS} | {launcher["serviceAccountName"], "dagster-steps"}
    assert used == made


def test_disruption_budgets_select_labels_of_the_chart() -> None:
    own = [one for _, one in OBJECTS if one["kind"] == "Deployment"]
    labels = {one["spec"]["template"]["metadata"]["labels"]["component"] for one in [*RENDERED, *own]}
    for _, document in OBJECTS:
        if document["kind"] == "PodDisruptionBudget":
            assert document["spec"]["selector"]["matchLabels"]["component"] in labels


def test_the_limit_of_every_pool_is_recorded_before_the_first_run() -> None:
    (job,) = [document for file, document in OBJECTS if file == "prepare-instance.yaml"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    recorded = {
        tuple(line.split()[-2:])
        for line in container["args"][0].splitlines()
        if line.startswith("dagster instance concurrency set ")
    }
    limit = str(VALUES["concurrency"]["pools"]["defaultLimit"])
    assert recorded == {(pool, limit) for pool in pools_in_use()}, (
        "deploy/manifests/prepare-instance.yaml: one line for each pool"
    )


def pools_in_use() -> set[str]:
    """Return the pools of all steps of all locations."""
    found: set[str] = set()
    for definitions in load_locations().values():
        repository = definitions.get_repository_def()
        for job in repository.get_all_jobs():
            found |= {pool for op in job.graph.iterate_op_defs() for pool in op.pools}
    assert found
    return found


def test_the_manifests_set_only_known_variables() -> None:
    known = {name.upper() for name in Settings.model_fields} | {"DAGSTER_HOME", "DAGSTER_PG_PASSWORD"}
    for name, spec in chart.pod_specs():
        for container in containers(spec):
            if container["image"] == chart.image_name(VALUES["shared"]["image"]):
                assert {one["name"] for one in container.get("env", [])} <= known, name
