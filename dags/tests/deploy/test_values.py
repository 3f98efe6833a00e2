"""The values of the chart: valid, complete, safe, and consistent with the code."""

import json
import pkgutil
from importlib.resources import files
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from dags import locations
from dags.common.settings import Settings
from dags.tests.deploy import chart
from tools.helm_check.checks import KUBERNETES_VERSION

LOCATIONS = sorted(module.name for module in pkgutil.iter_modules(locations.__path__))
VARIABLES = {name.upper() for name in Settings.model_fields}
# Read by the AWS and Postgres clients themselves.
VARIABLES_OF_CLIENTS = {"AWS_DEFAULT_REGION"}
# Without them, the defaults point to the local machine.
REQUIRED = {
    "CLOUD_DEPLOYMENT",
    "DAGSTER_DOMAIN",
    "DAGSTER_WEBSERVER_URL",
    "CLICKHOUSE_HOST",
    "CLICKHOUSE_PORT",
    "CLICKHOUSE_CLUSTER",
    "OBJECT_STORAGE_BUCKET",
    "POSTGRES_HOST",
    "POSTGRES_PORT",
}
# Keys of the Secret `analytics-platform`, which docs/deploy.md creates.
SECRETS = {
    "SLACK_TOKEN",
    "CLICKHOUSE_PASSWORD",
    "OBJECT_STORAGE_ACCESS_KEY_ID",
    "OBJECT_STORAGE_SECRET_ACCESS_KEY",
    "POSTGRES_PASSWORD",
    "VISITOR_HASH_KEY",
    "OPEN_EXCHANGE_RATES_APP_ID",
}


def settings_map(region: str) -> dict[str, str]:
    """Return the ConfigMap `analytics-platform` of a region."""
    objects = {one["metadata"]["name"]: one for one in chart.values_of(region)["extraManifests"]}
    data: dict[str, str] = objects["analytics-platform"]["data"]
    return data


def kubernetes_definitions(_address: str) -> Resource[Any]:
    """Return the definitions of Kubernetes that the schema of the chart refers to, from a package."""
    directory = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{KUBERNETES_VERSION}.0-local"
    definitions = json.loads((directory / "_definitions.json").read_text())["$defs"]
    # The chart refers to `definitions`, the package to `$defs`.
    return DRAFT202012.create_resource({"definitions": definitions, "$defs": definitions})


@pytest.mark.skipif(chart.chart_directory() is None, reason=chart.HOW_TO_GET_THE_CHART)
@pytest.mark.parametrize("region", chart.REGIONS)
def test_the_values_of_a_region_match_the_schema_of_the_chart(region: str) -> None:
    directory = chart.chart_directory()
    assert directory is not None
    schema = json.loads((directory / "values.schema.json").read_text())
    (defaults,) = chart.read(directory / "values.yaml")
    values = chart.merged(defaults, chart.values_of(region))
    registry: Registry[Any] = Registry(retrieve=kubernetes_definitions)  # type: ignore[call-arg] # an alias of attrs
    validator = jsonschema.validators.validator_for(schema)(schema, registry=registry)
    problems = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in validator.iter_errors(values)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.skipif(chart.chart_directory() is None, reason=chart.HOW_TO_GET_THE_CHART)
def test_the_chart_knows_every_key_of_the_values() -> None:
    directory = chart.chart_directory()
    assert directory is not None
    (defaults,) = chart.read(directory / "values.yaml")
    schema = json.loads((directory / "values.schema.json").read_text())
    unknown = set(chart.values_of(chart.REGIONS[0])) - set(defaults) - set(schema["properties"]) - {"shared"}
    assert not unknown, f"unknown keys: {sorted(unknown)}"


@pytest.mark.parametrize("region", chart.REGIONS)
def test_what_the_chart_renders_matches_the_schemas_of_kubernetes(region: str) -> None:
    values = chart.values_of(region)
    for one in chart.rendered(values):
        kubernetes_validate.validate(one, KUBERNETES_VERSION, strict=True)


def test_each_location_has_one_code_server_and_one_entry_in_the_workspace() -> None:
    values = chart.values_of()
    deployed = {server["name"]: server["dagsterApiGrpcArgs"] for server in chart.code_servers(values)}
    wanted = {name.replace("_", "-"): ["-m", f"dags.locations.{name}"] for name in LOCATIONS}
    assert wanted
    assert deployed == wanted, "deploy/helm/values.yaml: deployments needs one entry for each file of dags/locations/"
    assert len(chart.code_servers(values)) == len(deployed), "two entries have the same name"
    workspace = values["dagsterWebserver"]["workspace"]
    assert workspace["enabled"]
    assert {(server["host"], server["name"], server["port"]) for server in workspace["servers"]} == {
        (name.replace("_", "-"), name, 3030) for name in LOCATIONS
    }, "deploy/helm/values.yaml: dagsterWebserver.workspace.servers needs one entry for each location"


@pytest.mark.parametrize("region", chart.REGIONS)
def test_a_region_sets_only_known_variables_and_all_required_ones(region: str) -> None:
    data = settings_map(region)
    assert set(data) - VARIABLES - VARIABLES_OF_CLIENTS == set()
    assert REQUIRED - set(data) == set()
    assert data["CLOUD_DEPLOYMENT"] == region.upper()


@pytest.mark.parametrize("region", chart.REGIONS)
def test_the_settings_of_a_region_are_valid_with_the_secrets(region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in settings_map(region).items():
        monkeypatch.setenv(name, value)
    for name in SECRETS:
        monkeypatch.setenv(name, "a secret of sixteen letters")
    settings = Settings()
    assert settings.cloud_deployment == region.upper()
    assert settings.clickhouse_secure


@pytest.mark.parametrize("region", chart.REGIONS)
def test_kubernetes_sets_no_variable_of_the_settings_for_the_service_of_a_location(region: str) -> None:
    # For a service `clickhouse` it sets CLICKHOUSE_PORT=tcp://…, unless the pod sets it itself.
    named_by_services = {
        f"{name.upper()}_{word}" for name in LOCATIONS for word in ("PORT", "SERVICE_HOST", "SERVICE_PORT")
    }
    assert (named_by_services & VARIABLES) - set(settings_map(region)) == set()


def test_all_regions_set_the_same_variables() -> None:
    first, *others = (set(settings_map(region)) for region in chart.REGIONS)
    assert all(other == first for other in others)


def test_no_secret_is_in_the_repository() -> None:
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    secret |= {"object_storage_access_key_id", "password", "aws_secret_access_key", "aws_access_key_id"}
    for path in sorted(chart.DEPLOY.rglob("*.yaml")):
        for document in chart.read(path):
            for key, value in _leaves(document):
                if key.lower() in secret or "password" in key.lower():
                    allowed = value in ("", None) or "Secret" in key or key == "generatePostgresqlPasswordSecret"
                    assert allowed or key == "postgres_password_secret", f"{path.name}: {key} belongs in a Secret"


def test_the_page_on_deploying_creates_every_secret_of_the_settings() -> None:
    assert SECRETS <= VARIABLES
    page = (chart.ROOT / "docs" / "deploy.md").read_text()
    for name in SECRETS:
        assert f"--from-literal={name}=" in page, f"docs/deploy.md: the Secret analytics-platform lacks {name}"


def test_everything_but_code_servers_runs_one_image() -> None:
    values = chart.values_of()
    images = {chart.image_name(values[key]["image"]) for key in ("dagsterWebserver", "dagsterDaemon", "pipelineRun")}
    assert len(images) == 1
    (image,) = images
    ours = {
        container["image"]
        for _, spec in chart.pod_specs()
        for container in spec["containers"]
        if container["image"].startswith(f"{values['shared']['image']['repository']}:")
    }
    assert ours == {image}, "deploy/manifests: use the image of values.yaml, shared.image"
    for server in chart.code_servers(values):
        assert server["image"]["repository"] == values["shared"]["image"]["repository"]
        assert server["image"]["tag"] not in ("", "latest", None)


def test_the_web_servers_are_not_public_and_the_chart_creates_no_permissions() -> None:
    values = chart.values_of()
    assert values["dagsterWebserver"]["service"]["type"] == "ClusterIP"
    # A manifest of its own has fewer permissions: deploy/manifests/webserver-read-only.yaml.
    assert not values["dagsterWebserver"]["enableReadOnly"]
    assert "ingress" not in values
    assert not values["rbacEnabled"]
    assert not values["dagster-user-deployments"]["rbacEnabled"]
    assert not values["telemetry"]["enabled"]
    assert not values["generatePostgresqlPasswordSecret"]
    assert not values["postgresql"]["enabled"]


@pytest.mark.parametrize("region", chart.REGIONS)
def test_a_new_code_server_is_ready_before_the_old_one_stops(region: str) -> None:
    for server in chart.code_servers(chart.values_of(region)):
        assert server["deploymentStrategy"]["rollingUpdate"]["maxUnavailable"] == 0
        # A pod is not ready before its startup probe succeeds.
        assert server["startupProbe"]["enabled"]
        assert server["startupProbe"]["exec"] == server["livenessProbe"]["exec"]
        # This command imports the code before it listens. `code-server start` listens even if the code does not load.
        assert "dagsterApiGrpcArgs" in server
        assert "codeServerArgs" not in server


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for name, item in value.items() for leaf in _leaves(item, str(name))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item, key)]
    return [(key, value)]


def test_a_secret_in_a_nested_value_is_detected() -> None:
    document = yaml.safe_load("env:\n  - { name: x, SLACK_TOKEN: xoxb }")
    assert ("SLACK_TOKEN", "xoxb") in _leaves(document)
