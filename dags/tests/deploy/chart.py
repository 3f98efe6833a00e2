"""The values of the official chart as Helm merges them, and what the chart renders from them.

The tests run without the chart's templates, so `instance_config` and `code_server` render in Python what they do.
docs/deploy.md has the command that compares the result with `helm template`.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
REGIONS = sorted(path.stem.removeprefix("values-") for path in (DEPLOY / "helm").glob("values-*.yaml"))
NAMESPACE = "dagster"
# The Kubernetes version whose schemas validate objects: a supported one that the package has.
KUBERNETES_VERSION = "1.34"
CHART_VARIABLE = "DAGSTER_HELM_CHART"
ANYWHERE = "0.0.0.0"  # noqa: S104 - an argument inside a pod
HOW_TO_GET_THE_CHART = (
    f"{CHART_VARIABLE} is not set, so the values are not validated by the schema of the chart. Get it with "
    "`helm pull dagster --repo https://dagster-io.github.io/helm --untar`, "
    f"then `make test {CHART_VARIABLE}=$PWD/dagster`"
)

Values = dict[str, Any]


def read(path: Path) -> list[Any]:
    """Return the documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text()))


def chart_directory() -> Path | None:
    """Return the directory of the official chart: from the environment, else in `shared` beside the project."""
    named = os.environ.get(CHART_VARIABLE)
    if named:
        return Path(named)
    beside = ROOT.parent / "shared" / "deploy" / "dagster-helm"
    return beside if beside.is_dir() else None


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """Merge two files of values as Helm does: maps are merged, other values replaced, null removes a key."""
    result = copy.deepcopy(dict(base))
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def values_of(region: str | None = None) -> Values:
    """Return the values of a region, or the shared values without one."""
    (shared,) = read(DEPLOY / "helm" / "values.yaml")
    if region is None:
        return dict(shared)
    (own,) = read(DEPLOY / "helm" / f"values-{region}.yaml")
    return merged(shared, own)


def code_servers(values: Values) -> list[Values]:
    """Return the user deployments."""
    found: list[Values] = values["dagster-user-deployments"]["deployments"]
    return found


def manifests() -> Iterator[tuple[str, Values]]:
    """Yield every hand-written object with the name of its file, including those in the values of a region."""
    for path in sorted((DEPLOY / "manifests").glob("*.yaml")):
        for document in read(path):
            yield path.name, document
    for region in REGIONS:
        for document in values_of(region)["extraManifests"]:
            yield f"values-{region}.yaml", document


def pod_specs() -> Iterator[tuple[str, Values]]:
    """Yield the pod of every hand-written object that has one, with a readable name."""
    for file, document in manifests():
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield f"{file}: {document['kind']}", spec["template"]["spec"]


def image_name(image: Mapping[str, Any]) -> str:
    """Return the name of an image of the values, as a pod has it."""
    return f"{image['repository']}:{image['tag']}"


def instance_config(values: Values) -> Values:
    """Return the dagster.yaml that the chart renders."""
    daemon = values["dagsterDaemon"]
    database = values["postgresql"]
    logs = values["computeLogManager"]["config"]["s3ComputeLogManager"]
    storage = {
        "postgres_db": {
            "username": database["postgresqlUsername"],
            "password": {"env": "DAGSTER_PG_PASSWORD"},
            "hostname": database["postgresqlHost"],
            "db_name": database["postgresqlDatabase"],
            "port": database.get("service", {}).get("port", 5432),
            "params": database["postgresqlParams"],
        }
    }
    return {
        "scheduler": {"module": "dagster.core.scheduler", "class": "DagsterDaemonScheduler"},
        "run_storage": _class("dagster_postgres.run_storage", "PostgresRunStorage", storage),
        "event_log_storage": _class("dagster_postgres.event_log", "PostgresEventLogStorage", storage),
        "schedule_storage": _class("dagster_postgres.schedule_storage", "PostgresScheduleStorage", storage),
        # The chart copies the values of a custom launcher.
        "run_launcher": values["runLauncher"]["config"]["customRunLauncher"],
        "run_coordinator": _class(
            "dagster.core.run_coordinator",
            daemon["runCoordinator"]["type"],
            _snake(daemon["runCoordinator"]["config"]["queuedRunCoordinator"]),
        ),
        "concurrency": {
            "runs": _snake(values["concurrency"]["runs"]),
            "pools": _snake(values["concurrency"]["pools"]),
        },
        "run_monitoring": _snake(daemon["runMonitoring"]),
        # The chart omits a 0.
        "run_retries": {
            key: value for key, value in _snake(daemon["runRetries"]).items() if value != 0 or value is False
        },
        "sensors": _snake(daemon["sensors"]),
        "schedules": _snake(daemon["schedules"]),
        "compute_logs": _class(
            "dagster_aws.s3.compute_log_manager", values["computeLogManager"]["type"], {"verify": True, **_snake(logs)}
        ),
        "retention": _snake({key: value for key, value in values["retention"].items() if key != "enabled"}),
        "telemetry": values["telemetry"],
    }


def code_server(values: Values, server: Values) -> Values:
    """Return the Deployment that the chart renders from a user deployment."""
    probe = {"exec": {"command": ["dagster", "api", "grpc-health-check", "-p", str(server["port"])]}}
    container = {
        "name": "dagster-user-deployments",
        "image": image_name(server["image"]),
        "imagePullPolicy": server["image"]["pullPolicy"],
        "args": ["dagster", "api", "grpc", "-h", ANYWHERE, "-p", str(server["port"]), *server["dagsterApiGrpcArgs"]],
        "envFrom": _env_from(server),
        **{key: server[key] for key in ("securityContext", "resources", "volumeMounts")},
        **{key: probe | _without_enabled(server[key]) for key in ("startupProbe", "readinessProbe", "livenessProbe")},
    }
    labels = {"component": "user-deployments", "deployment": server["name"]}
    return _deployment(
        f"dagster-user-deployments-{server['name']}",
        labels,
        values["dagster-user-deployments"]["serviceAccount"]["name"],
        server,
        container,
        strategy=server["deploymentStrategy"],
    )


def platform_server(values: Values, key: str) -> Values:
    """Return the Deployment that the chart renders from `dagsterWebserver` or `dagsterDaemon`."""
    server = values[key]
    probes = {
        probe: _without_enabled(server[probe])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        if server[probe].get("enabled", True)
    }
    container = {
        "name": "dagster",
        "image": image_name(server["image"]),
        "imagePullPolicy": server["image"]["pullPolicy"],
        "envFrom": _env_from(server),
        **{name: server[name] for name in ("securityContext", "resources", "volumeMounts")},
        **probes,
    }
    labels = {"component": {"dagsterWebserver": "dagster-webserver", "dagsterDaemon": "dagster-daemon"}[key]}
    return _deployment(labels["component"], labels, values["serviceAccount"]["name"], server, container)


def _deployment(name: str, labels: Values, account: str, server: Values, container: Values, **more: Any) -> Values:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "replicas": server.get("replicaCount", 1),
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": account,
                    "securityContext": server["podSecurityContext"],
                    "containers": [container],
                    "volumes": server["volumes"],
                },
            },
            **more,
        },
    }


def _class(module: str, name: str, config: Values) -> Values:
    return {"module": module, "class": name, "config": config}


def _env_from(server: Values) -> list[Values]:
    return [
        *({"configMapRef": one} for one in server["envConfigMaps"]),
        *({"secretRef": one} for one in server["envSecrets"]),
    ]


def _without_enabled(probe: Values) -> Values:
    return {key: value for key, value in probe.items() if key != "enabled"}


def _snake(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_snake_word(key): _snake(item) for key, item in value.items()}
    return [_snake(item) for item in value] if isinstance(value, list) else value


def _snake_word(word: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in word)
