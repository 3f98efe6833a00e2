"""Why a pod failed, in words, from what Kubernetes reports of it."""

from collections.abc import Iterable
from typing import Any

OUT_OF_MEMORY = "OOMKilled"
DISRUPTED = "DisruptionTarget"


def failure_reason(pods: Iterable[Any]) -> str | None:
    """Return why the pods failed, or None when Kubernetes reports no reason."""
    reasons = [reason for pod in pods for reason in _reasons(pod.status)]
    return " ".join(dict.fromkeys(reasons)) or None


def _reasons(status: Any) -> Iterable[str]:
    # Such as Evicted, with "The node was low on resource: memory", or DeadlineExceeded.
    if status.reason:
        yield f"Kubernetes stopped the pod: {status.reason}. {status.message or ''}".rstrip()
    for condition in status.conditions or []:
        if condition.type == DISRUPTED and condition.status == "True":
            yield f"Kubernetes removed the pod: {condition.reason}. {condition.message or ''}".rstrip()
    for container in [*(status.init_container_statuses or []), *(status.container_statuses or [])]:
        ended = container.state.terminated
        if ended is None or not ended.exit_code:
            continue
        if ended.reason == OUT_OF_MEMORY:
            yield f"Container {container.name} exceeded its memory limit (OOMKilled): give the job more memory."
        else:
            yield f"Container {container.name} ended with exit code {ended.exit_code} ({ended.reason})."
