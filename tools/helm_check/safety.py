"""The security rules for pods."""

from typing import Any


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every container of a pod, including init containers."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def safety_problems(spec: dict[str, Any]) -> list[str]:
    """Return where a pod breaks the restricted pod security standard, can write to its image, or has no limits."""
    pod = spec.get("securityContext", {})
    problems = []
    if not pod.get("runAsNonRoot") or not pod.get("runAsUser"):
        problems.append("it may run as root: set runAsNonRoot and runAsUser")
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        problems.append("it allows every system call: set seccompProfile RuntimeDefault")
    for container in containers(spec):
        context, resources = container.get("securityContext", {}), container.get("resources", {})
        name = container["name"]
        if context.get("allowPrivilegeEscalation") is not False:
            problems.append(f"{name} may gain privileges: set allowPrivilegeEscalation to false")
        if context.get("readOnlyRootFilesystem") is not True:
            problems.append(f"{name} can write to its image: set readOnlyRootFilesystem to true")
        if context.get("capabilities", {}).get("drop") != ["ALL"]:
            problems.append(f"{name} keeps capabilities: drop ALL")
        problems += [
            f"{name} has no {bound} for cpu and memory"
            for bound in ("requests", "limits")
            if set(resources.get(bound, {})) != {"cpu", "memory"}
        ]
        if ":" not in container["image"] or container["image"].endswith(":latest"):
            problems.append(f"{name} has an image without a fixed tag")
    return problems
