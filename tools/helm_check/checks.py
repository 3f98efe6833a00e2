"""The rules for objects of Kubernetes that are applied together: what a chart renders, and the manifests."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import kubernetes_validate

from tools.helm_check.safety import containers, safety_problems

# The Kubernetes version whose schemas validate objects: a supported one that the package has.
KUBERNETES_VERSION = "1.34"
PROBE_HANDLERS = {"exec", "grpc", "httpGet", "tcpSocket"}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
IMAGE = re.compile(r"(?P<registry>[^/]+)/(?P<repository>[a-z0-9._/-]+)(?::(?P<tag>[\w.-]+)|@sha256:[0-9a-f]{64})")
# Secrets that docs/deploy.md creates, or that are optional.
NAMES_IN_PAGE = re.compile(r"create secret (?:generic|docker-registry) ([\w-]+)")
# What pages call: `deploy/NAME`, `deployment/NAME`, `service/NAME`, `-l deployment=NAME`.
DEPLOYMENTS_IN_PAGE = re.compile(r"\bdeploy(?:ment)?/(dagster-[\w-]+)")
SERVICES_IN_PAGE = re.compile(r"(?:\bservice/|http://)(dagster-[\w-]+)")
REFERENCES = {
    "configMapRef": "ConfigMap",
    "configMapKeyRef": "ConfigMap",
    "secretRef": "Secret",
    "secretKeyRef": "Secret",
}
Object = Mapping[str, Any]


def problems_of(objects: Iterable[Object], pages: str) -> list[str]:
    """Return every rule that the objects of one region break, each with the object. `pages` is the text of the docs."""
    known = list(objects)
    problems = [f"{name_of(one)}: {problem}" for one in known for problem in _problems_of_one(one)]
    return [*problems, *missing_references(known, pages), *selectors_without_pods(known), *unknown_names(known, pages)]


def name_of(one: Object) -> str:
    """Return the kind and the name of an object."""
    metadata = one.get("metadata", {})
    return f"{one.get('kind')} {metadata.get('name') or metadata.get('generateName')}"


def pod_of(one: Object) -> dict[str, Any] | None:
    """Return the specification of the pod of a workload, or None for other objects."""
    if one.get("kind") == "Pod":
        return dict(one["spec"])
    spec = one.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    template: dict[str, Any] | None = spec.get("template", {}).get("spec") if "template" in spec else None
    return template


def schema_problems(one: Object) -> list[str]:
    """Return where an object does not match the strict schema of its kind."""
    try:
        kubernetes_validate.validate(dict(one), KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message[:300]}"]
    return []


def image_problems(image: str) -> list[str]:
    """Return why the reference of an image does not resolve to one image: registry/repository:tag."""
    found = IMAGE.fullmatch(image)
    if found is None:
        return [f"image {image!r} is not registry/repository:tag"]
    # Only the first part of a reference can be a registry.
    if "." not in found["registry"] and ":" not in found["registry"] and found["registry"] != "localhost":
        return [f"image {image!r} names no registry, so each node chooses one"]
    first = found["repository"].split("/")[0]
    if first == found["registry"] or re.fullmatch(r"[\w-]+(\.[\w-]+)+", first):
        return [f"image {image!r} names a registry twice"]
    if found["tag"] == "latest":
        return [f"image {image!r} has no fixed tag"]
    return []


def probe_problems(container: Mapping[str, Any]) -> list[str]:
    """Return which probes of a container cannot work."""
    return [
        f"{name} of {container['name']} has {len(PROBE_HANDLERS & set(container[name]))} handlers instead of one"
        for name in PROBES
        if name in container and len(PROBE_HANDLERS & set(container[name])) != 1
    ]


def missing_probes(container: Mapping[str, Any]) -> list[str]:
    """Return which probes a server lacks. A pod is not ready before its startup probe succeeds."""
    missing = [] if "livenessProbe" in container else ["it has no livenessProbe"]
    if not {"readinessProbe", "startupProbe"} & set(container):
        missing.append("it has neither a readinessProbe nor a startupProbe, so a rolling update does not wait for it")
    return missing


def needs_token(one: Object, pod: Mapping[str, Any]) -> bool:
    """Return whether a pod must have a token: it loads the run launcher, which reads the token."""
    component = one.get("metadata", {}).get("labels", {}).get("component", "")
    commands = str([[*item.get("command", []), *item.get("args", [])] for item in containers(dict(pod))])
    return component == "dagster-daemon" or component.startswith("dagster-webserver") or "instance migrate" in commands


def token_problems(one: Object, pod: Mapping[str, Any]) -> list[str]:
    """Return why the token of a pod is not the one that it needs."""
    has = pod.get("automountServiceAccountToken")
    account = pod.get("serviceAccountName", "default")
    if account == "default":
        return ["the pod has the default account of the namespace: set serviceAccountName"]
    if needs_token(one, pod) and has is not True:
        return ["the pod loads the run launcher, and has no token: set automountServiceAccountToken to true"]
    # The account of code servers has no permissions, and older charts always mount its token.
    if not needs_token(one, pod) and has is not False and account != "dagster-user-code":
        return ["the pod needs no token: set automountServiceAccountToken to false"]
    return []


def _problems_of_one(one: Object) -> Iterator[str]:
    yield from schema_problems(one)
    pod = pod_of(one)
    if pod is None:
        return
    yield from safety_problems(pod)
    yield from token_problems(one, pod)
    if not pod.get("imagePullSecrets"):
        yield "the pod has no imagePullSecrets, so a private registry refuses it"
    for container in containers(pod):
        yield from image_problems(container["image"])
        yield from probe_problems(container)
    if one.get("kind") == "Deployment":
        yield from missing_probes(pod["containers"][0])
        spec = one["spec"]
        if not spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items():
            yield "its selector does not match its own pods"


def missing_references(objects: list[Object], pages: str) -> list[str]:
    """Return which ConfigMaps, Secrets and accounts are used but neither rendered nor created by the docs."""
    made = {(one["kind"], one["metadata"].get("name")) for one in objects}
    made |= {("Secret", name) for name in NAMES_IN_PAGE.findall(pages)}
    used = {(kind, name, name_of(one)) for one in objects for kind, name in _references(pod_of(one))}
    return [f"{user}: {kind} {name} does not exist" for kind, name, user in sorted(used) if (kind, name) not in made]


def _references(pod: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    if pod is None:
        return
    if "serviceAccountName" in pod:
        yield "ServiceAccount", pod["serviceAccountName"]
    sources = [volume["configMap"] for volume in pod.get("volumes", []) if "configMap" in volume]
    yield from (("ConfigMap", source["name"]) for source in sources)
    for container in containers(dict(pod)):
        values_from = [one.get("valueFrom", {}) for one in container.get("env", [])]
        for source in [*container.get("envFrom", []), *values_from]:
            for key, referenced in source.items():
                if key in REFERENCES and not referenced.get("optional"):
                    yield REFERENCES[key], referenced["name"]


def selectors_without_pods(objects: list[Object]) -> list[str]:
    """Return which Services and disruption budgets select no pod of the objects."""
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in objects if one["kind"] == "Deployment"]
    selectors = {
        name_of(one): one["spec"]["selector"].get("matchLabels", one["spec"]["selector"])
        for one in objects
        if one["kind"] in ("Service", "PodDisruptionBudget")
    }
    return [
        f"{name}: it selects no pod"
        for name, selector in selectors.items()
        if not any(selector.items() <= pod.items() for pod in labels)
    ]


def unknown_names(objects: list[Object], pages: str) -> list[str]:
    """Return the deployments and services that the docs name and that do not exist."""
    made: dict[str, set[str]] = {"Deployment": set(), "Service": set()}
    for one in objects:
        made.setdefault(one["kind"], set()).add(one["metadata"].get("name", ""))
    named = {("Deployment", name) for name in DEPLOYMENTS_IN_PAGE.findall(pages)}
    named |= {("Service", name) for name in SERVICES_IN_PAGE.findall(pages)}
    return [f"docs: {kind} {name} does not exist" for kind, name in sorted(named) if name not in made[kind]]
