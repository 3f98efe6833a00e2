"""The values of the chart: valid, complete, safe, and one with the code."""

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

LOCATIONS = sorted(module.name for module in pkgutil.iter_modules(locations.__path__))
VARIABLES = {name.upper() for name in Settings.model_fields}
# What the AWS and Postgres clients read themselves, and no code of ours.
VARIABLES_OF_CLIENTS = {"AWS_DEFAULT_REGION"}
# Hosts that have no sensible default: without them a region would look for its services on its own machine.
NEEDED = {
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
# Keys of the Secret `analytics-platform`, as docs/deploy.md makes it.
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
    """The ConfigMap `analytics-platform` of a region."""
    objects = {one["metadata"]["name"]: one for one in chart.values_of(region)["extraManifests"]}
    data: dict[str, str] = objects["analytics-platform"]["data"]
    return data


def kubernetes_definitions(_address: str) -> Resource[Any]:
    """What the chart's schema refers to by address: the definitions of Kubernetes, which a package carries."""
    directory = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{chart.KUBERNETES_VERSION}.0-local"
    definitions = json.loads((directory / "_definitions.json").read_text())["$defs"]
    # The chart says `definitions`, they themselves say `$defs`.
    return DRAFT202012.create_resource({"definitions": definitions, "$defs": definitions})


@pytest.mark.skipif(chart.chart_directory() is None, reason=chart.HOW_TO_GET_THE_CHART)
@pytest.mark.parametrize("region", chart.REGIONS)
def test_the_values_of_a_region_are_valid_by_the_schema_of_the_chart(region: str) -> None:
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
def test_every_key_of_the_values_is_one_that_the_chart_knows() -> None:
    directory = chart.chart_directory()
    assert directory is not None
    (defaults,) = chart.read(directory / "values.yaml")
    schema = json.loads((directory / "values.schema.json").read_text())
    unknown = set(chart.values_of("us")) - set(defaults) - set(schema["properties"]) - {"shared"}
    assert not unknown, f"the chart has no such keys: {sorted(unknown)}"


@pytest.mark.parametrize("region", chart.REGIONS)
def test_what_the_chart_makes_of_the_values_is_valid_by_the_schemas_of_kubernetes(region: str) -> None:
    values = chart.values_of(region)
    rendered = [chart.code_server(values, server) for server in chart.code_servers(values)]
    rendered += [chart.platform_server(values, key) for key in ("dagsterWebserver", "dagsterDaemon")]
    for deployment in rendered:
        kubernetes_validate.validate(deployment, chart.KUBERNETES_VERSION, strict=True)


def test_each_location_has_one_server_and_is_in_the_workspace_under_its_own_name() -> None:
    values = chart.values_of()
    deployed = {server["name"]: server["dagsterApiGrpcArgs"] for server in chart.code_servers(values)}
    wanted = {name.replace("_", "-"): ["-m", f"dags.locations.{name}"] for name in LOCATIONS}
    assert wanted
    assert deployed == wanted, "deploy/helm/values.yaml: one entry of deployments for each file of dags/locations/"
    assert len(chart.code_servers(values)) == len(deployed), "a name is there twice"
    workspace = values["dagsterWebserver"]["workspace"]
    assert workspace["enabled"]
    assert {(server["host"], server["name"], server["port"]) for server in workspace["servers"]} == {
        (name.replace("_", "-"), name, 3030) for name in LOCATIONS
    }, "deploy/helm/values.yaml: dagsterWebserver.workspace.servers has one entry for each location"


@pytest.mark.parametrize("region", chart.REGIONS)
def test_a_region_sets_only_variables_that_the_code_knows_and_all_that_it_needs(region: str) -> None:
    data = settings_map(region)
    assert set(data) - VARIABLES - VARIABLES_OF_CLIENTS == set()
    assert NEEDED - set(data) == set()
    assert data["CLOUD_DEPLOYMENT"] == region.upper()


@pytest.mark.parametrize("region", chart.REGIONS)
def test_the_settings_of_a_region_are_valid_with_the_secrets_and_not_without(
    region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings_map(region).items():
        monkeypatch.setenv(name, value)
    for name in SECRETS:
        monkeypatch.setenv(name, "a secret of sixteen letters")
    settings = Settings()
    assert settings.cloud_deployment == region.upper()
    assert settings.clickhouse_secure


@pytest.mark.parametrize("region", chart.REGIONS)
def test_no_variable_is_left_to_what_kubernetes_sets_for_the_service_of_a_location(region: str) -> None:
    # For a service `clickhouse` it sets CLICKHOUSE_PORT=tcp://…, unless the pod sets it itself.
    named_by_services = {
        f"{name.upper()}_{word}" for name in LOCATIONS for word in ("PORT", "SERVICE_HOST", "SERVICE_PORT")
    }
    assert (named_by_services & VARIABLES) - set(settings_map(region)) == set()


def test_regions_differ_in_values_and_not_in_what_they_set() -> None:
    first, *others = (set(settings_map(region)) for region in chart.REGIONS)
    assert all(other == first for other in others)


def test_nothing_secret_is_written_down() -> None:
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    secret |= {"object_storage_access_key_id", "password", "aws_secret_access_key", "aws_access_key_id"}
    for path in sorted(chart.DEPLOY.rglob("*.yaml")):
        for document in chart.read(path):
            for key, value in _leaves(document):
                if key.lower() in secret or "password" in key.lower():
                    allowed = value in ("", None) or "Secret" in key or key == "generatePostgresqlPasswordSecret"
                    assert allowed or key == "postgres_password_secret", f"{path.name}: {key} belongs in a Secret"


def test_every_secret_that_the_code_wants_is_one_that_the_page_on_deploying_makes() -> None:
    assert SECRETS <= VARIABLES
    page = (chart.ROOT / "docs" / "deploy.md").read_text()
    for name in SECRETS:
        assert f"--from-literal={name}=" in page, f"docs/deploy.md: the Secret analytics-platform lacks {name}"


def test_the_image_of_everything_but_teams_is_one_and_the_manifests_name_it() -> None:
    values = chart.values_of()
    images = {chart.image_name(values[key]["image"]) for key in ("dagsterWebserver", "dagsterDaemon", "pipelineRun")}
    assert len(images) == 1
    (image,) = images
    ours = {
        container["image"]
        for _, spec in chart.pod_specs()
        for container in spec["containers"]
        if "analytics-platform" in container["image"]
    }
    assert ours == {image}, "deploy/manifests: name the image that values.yaml has under shared.image"
    for server in chart.code_servers(values):
        assert server["image"]["repository"] == values["shared"]["image"]["repository"]
        assert server["image"]["tag"] not in ("", "latest", None)


def test_the_web_servers_are_not_public_and_most_people_get_the_one_that_changes_nothing() -> None:
    values = chart.values_of("us")
    assert values["dagsterWebserver"]["service"]["type"] == "ClusterIP"
    assert values["dagsterWebserver"]["enableReadOnly"]
    assert "ingress" not in values
    assert not values["rbacEnabled"]
    assert not values["dagster-user-deployments"]["rbacEnabled"]
    assert not values["telemetry"]["enabled"]
    assert not values["generatePostgresqlPasswordSecret"]
    assert not values["postgresql"]["enabled"]


@pytest.mark.parametrize("region", chart.REGIONS)
def test_a_new_server_of_code_serves_before_the_old_one_stops(region: str) -> None:
    for server in chart.code_servers(chart.values_of(region)):
        assert server["deploymentStrategy"]["rollingUpdate"]["maxUnavailable"] == 0
        assert server["readinessProbe"]["enabled"]
        # This command imports the code before it listens; `code-server start` would answer for code that does not load.
        assert "dagsterApiGrpcArgs" in server
        assert "codeServerArgs" not in server


def _leaves(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for name, item in value.items() for leaf in _leaves(item, str(name))]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item, key)]
    return [(key, value)]


def test_the_search_for_secrets_sees_them() -> None:
    document = yaml.safe_load("env:\n  - { name: x, SLACK_TOKEN: xoxb }")
    assert ("SLACK_TOKEN", "xoxb") in _leaves(document)
