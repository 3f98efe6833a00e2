"""What a pod must keep to be let into the namespace, and to harm nothing there."""

from typing import Any


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Every container of a pod, those that run first included."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def safety_problems(spec: dict[str, Any]) -> list[str]:
    """What keeps a pod from the strictest of Kubernetes' standards, or lets it write to its own image or grow."""
    pod = spec.get("securityContext", {})
    problems = []
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        problems.append("it may be root: runAsNonRoot, runAsUser")
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        problems.append("any system call is allowed: seccompProfile RuntimeDefault")
    for container in containers(spec):
        context, resources = container.get("securityContext", {}), container.get("resources", {})
        name = container["name"]
        if context.get("allowPrivilegeEscalation") is not False:
            problems.append(f"{name} may gain privileges: allowPrivilegeEscalation false")
        if context.get("readOnlyRootFilesystem") is not True:
            problems.append(f"{name} may change its image: readOnlyRootFilesystem true")
        if context.get("capabilities", {}).get("drop") != ["ALL"]:
            problems.append(f"{name} keeps capabilities: drop ALL")
        problems += [
            f"{name} has no {bound} of cpu and memory"
            for bound in ("requests", "limits")
            if set(resources.get(bound, {})) != {"cpu", "memory"}
        ]
        if ":" not in container["image"] or container["image"].endswith(":latest"):
            problems.append(f"{name} has no fixed image")
    return problems
