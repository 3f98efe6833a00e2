"""The values of the official chart as Helm merges them, and what the chart renders from them.

The tests run without the chart's templates, so this renders in Python what they do: workloads with their init
containers, services and configuration. `make helm-check` checks the same rules on what the chart itself renders.
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
RELEASE = "dagster"
SUBCHART = "dagster-user-deployments"
# The chart puts the release in front of a name that the release's own name does not contain.
PREFIX = f"{RELEASE}-{SUBCHART}"
INSTANCE_MAP, WORKSPACE_MAP = f"{RELEASE}-instance", f"{RELEASE}-workspace-yaml"
DAEMON_COMMAND = "dagster-daemon run -w /dagster-workspace/workspace.yaml"
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
    """Return the name of an image of the values, as the chart renders it: only the one of Postgres has a registry."""
    registry = f"{image['registry']}/" if "registry" in image else ""
    return f"{registry}{image['repository']}:{image['tag']}"


def postgres_image(values: Values) -> str:
    """Return the image of the containers that wait for Postgres: the chart always puts a registry in front."""
    return image_name({"registry": "docker.io", **values["postgresql"]["image"]})


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


def rendered(values: Values) -> list[Values]:
    """Return the workloads, services and configuration that the chart renders, without its connection test."""
    servers = code_servers(values)
    objects = [code_server(values, server) for server in servers]
    objects += [platform_server(values, key) for key in ("dagsterWebserver", "dagsterDaemon")]
    if values["dagsterWebserver"].get("enableReadOnly"):
        objects.append(platform_server(values, "dagsterWebserver", read_only=True))
    objects += [_service(server["name"], _labels(SUBCHART, server), server["port"]) for server in servers]
    webservers = [one for one in objects if one["metadata"]["labels"]["component"].startswith("dagster-webserver")]
    objects += [
        _service(one["metadata"]["name"], one["metadata"]["labels"], values["dagsterWebserver"]["service"]["port"])
        for one in webservers
    ]
    objects.append(_config_map(INSTANCE_MAP, {"dagster.yaml": yaml.safe_dump(instance_config(values))}))
    objects.append(_config_map(WORKSPACE_MAP, {"workspace.yaml": yaml.safe_dump(workspace(values))}))
    shared = {
        "DAGSTER_HOME": values["global"]["dagsterHome"],
        "DAGSTER_K8S_PIPELINE_RUN_NAMESPACE": NAMESPACE,
        "DAGSTER_K8S_PIPELINE_RUN_ENV_CONFIGMAP": f"{RELEASE}-pipeline-env",
    }
    maps = {f"{RELEASE}-{one}-env" for one in ("webserver", "daemon", "pipeline")} | {f"{PREFIX}-shared-env"}
    objects += [_config_map(name, shared) for name in sorted(maps)]
    objects += [_config_map(f"{PREFIX}-{server['name']}-user-env", {}) for server in servers]
    return objects


def workspace(values: Values) -> Values:
    """Return the workspace.yaml that the chart renders."""
    servers = values["dagsterWebserver"]["workspace"]["servers"]
    return {
        "load_from": [
            {"grpc_server": {"host": one["host"], "port": one["port"], "location_name": one["name"]}} for one in servers
        ]
    }


def code_server(values: Values, server: Values) -> Values:
    """Return the Deployment that the chart renders from a user deployment."""
    image = image_name(server["image"])
    env = [{"name": "DAGSTER_CURRENT_IMAGE", "value": image}, _password(values)]
    # The default of the chart.
    if server.get("includeConfigInLaunchedRuns", {}).get("enabled", True):
        env.append({"name": "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT", "value": "{}"})
    container = {
        "name": SUBCHART,
        "image": image,
        "imagePullPolicy": server["image"]["pullPolicy"],
        "args": ["dagster", "api", "grpc", "-h", ANYWHERE, "-p", str(server["port"]), *server["dagsterApiGrpcArgs"]],
        "env": [*env, *server.get("env", [])],
        "envFrom": _env_from([f"{PREFIX}-shared-env", f"{PREFIX}-{server['name']}-user-env"], server),
        **{key: server[key] for key in ("securityContext", "resources", "volumeMounts")},
        **_code_server_probes(server),
    }
    account = values["dagster-user-deployments"]["serviceAccount"]["name"]
    token = bool(server.get("automountServiceAccountToken", True))
    pod = _pod(server, account, container, pull_secrets=values["dagster-user-deployments"].get("imagePullSecrets", []))
    pod["automountServiceAccountToken"] = token
    labels = _labels(SUBCHART, server)
    return _deployment(f"{PREFIX}-{server['name']}", labels, 1, pod, strategy=server["deploymentStrategy"])


def _code_server_probes(server: Values) -> Values:
    command = {"exec": {"command": ["dagster", "api", "grpc-health-check", "-p", str(server["port"])]}}
    probes = {}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = server.get(name, {})
        # The chart copies a probe with a command of its own as it is, except for the startup probe.
        known = probe if "exec" in probe and name != "startupProbe" else command | _without_enabled(probe)
        if probe.get("enabled", bool(probe) or name == "readinessProbe"):
            probes[name] = known
    return probes


def platform_server(values: Values, key: str, *, read_only: bool = False) -> Values:
    """Return the Deployment that the chart renders from `dagsterWebserver` or `dagsterDaemon`."""
    server = values[key]
    probes = {
        probe: _without_enabled(server[probe])
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
        if server[probe].get("enabled", bool(server[probe]))
    }
    is_web = key == "dagsterWebserver"
    command = webserver_command(values, read_only=read_only) if is_web else DAEMON_COMMAND
    tolerance = {"name": "DAGSTER_DAEMON_HEARTBEAT_TOLERANCE", "value": str(server.get("heartbeatTolerance"))}
    instance = {
        "name": "dagster-instance",
        "mountPath": f"{values['global']['dagsterHome']}/dagster.yaml",
        "subPath": "dagster.yaml",
    }
    container = {
        "name": "dagster",
        "image": image_name(server["image"]),
        "imagePullPolicy": server["image"]["pullPolicy"],
        "command": ["/bin/bash", "-c", command],
        "env": [_password(values), *([] if is_web else [tolerance]), *server.get("env", [])],
        "envFrom": _env_from([f"{RELEASE}-{'webserver' if is_web else 'daemon'}-env"], server),
        "volumeMounts": [
            instance,
            {"name": "dagster-workspace-yaml", "mountPath": "/dagster-workspace/"},
            *server["volumeMounts"],
        ],
        **{name: server[name] for name in ("securityContext", "resources")},
        **probes,
    }
    if is_web:
        container["ports"] = [{"name": "http", "containerPort": server["service"]["port"], "protocol": "TCP"}]
    pod = _pod(server, values["serviceAccount"]["name"], container, pull_secrets=values.get("imagePullSecrets", []))
    # Written into the templates, so no value changes it.
    pod["automountServiceAccountToken"] = True
    pod["initContainers"] = _waiting(values, server)
    pod["volumes"] = [
        {"name": "dagster-instance", "configMap": {"name": INSTANCE_MAP}},
        {"name": "dagster-workspace-yaml", "configMap": {"name": WORKSPACE_MAP}},
        *server["volumes"],
    ]
    component = f"dagster-webserver{'-read-only' if read_only else ''}" if is_web else "dagster-daemon"
    labels = {"app.kubernetes.io/name": "dagster", "app.kubernetes.io/instance": RELEASE, "component": component}
    if is_web:
        return _deployment(component, labels, server["replicaCount"], pod)
    return _deployment(component, {**labels, "deployment": "daemon"}, 1, pod, strategy={"type": "Recreate"})


def webserver_command(values: Values, *, read_only: bool) -> str:
    """Return the command of a web server."""
    server = values["dagsterWebserver"]
    options = {
        "--db-statement-timeout": server.get("dbStatementTimeout"),
        "--db-pool-recycle": server.get("dbPoolRecycle"),
        "--db-pool-max-overflow": server.get("dbPoolMaxOverflow"),
    }
    given = [f" {option} {value}" for option, value in options.items() if value]
    listen = f"dagster-webserver -h {ANYWHERE} -p {server['service']['port']} -w /dagster-workspace/workspace.yaml"
    return listen + "".join(given) + (" --read-only" if read_only else "")


def _waiting(values: Values, server: Values) -> list[Values]:
    """Return the init containers: one waits for Postgres, the others for the name of each code server."""
    common = {"securityContext": server["securityContext"], "resources": server["initContainerResources"]}
    database = values["postgresql"]
    port = database.get("service", {}).get("port", 5432)
    ready = f'pg_isready -h "{database["postgresqlHost"]}" -p {port} -U {database["postgresqlUsername"]}'
    waiting = [
        {
            "name": "check-db-ready",
            "image": postgres_image(values),
            "imagePullPolicy": database["image"]["pullPolicy"],
            "command": ["sh", "-c", f"until {ready}; do echo waiting for database; sleep 2; done;"],
            **common,
        }
    ]
    for one in code_servers(values):
        loop = f"until nslookup {one['name']}; do echo waiting for user service; sleep 2; done"
        waiting.append(
            {
                "name": f"init-user-deployment-{one['name']}",
                "image": image_name(values["busybox"]["image"]),
                "command": ["sh", "-c", loop],
                **common,
            }
        )
    return waiting


def _pod(server: Values, account: str, container: Values, *, pull_secrets: list[Values]) -> Values:
    return {
        "serviceAccountName": account,
        "securityContext": server["podSecurityContext"],
        "containers": [container],
        "volumes": server["volumes"],
        **({"imagePullSecrets": pull_secrets} if pull_secrets else {}),
    }


def _deployment(name: str, labels: Values, replicas: int, pod: Values, **more: Any) -> Values:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
            **more,
        },
    }


def _service(name: str, labels: Values, port: int) -> Values:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"type": "ClusterIP", "selector": labels, "ports": [{"port": port, "protocol": "TCP"}]},
    }


def _config_map(name: str, data: Values) -> Values:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE}, "data": data}


def _labels(chart: str, server: Values) -> Values:
    return {
        "app.kubernetes.io/name": chart,
        "app.kubernetes.io/instance": RELEASE,
        "component": "user-deployments",
        "deployment": server["name"],
    }


def _password(values: Values) -> Values:
    key = {"name": values["global"]["postgresqlSecretName"], "key": "postgresql-password"}
    return {"name": "DAGSTER_PG_PASSWORD", "valueFrom": {"secretKeyRef": key}}


def _class(module: str, name: str, config: Values) -> Values:
    return {"module": module, "class": name, "config": config}


def _env_from(maps: list[str], server: Values) -> list[Values]:
    return [
        *({"configMapRef": {"name": name}} for name in maps),
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
