"""How much of a Kubernetes node a run gets, for jobs that need another amount than the run launcher gives.

Belongs here: the classes of jobs and their amounts. Not here: the amounts of all other runs, which stand in
deploy/helm/values.yaml (`runLauncher`: 1 to 2 GiB). Nothing here has a meaning on a laptop.
"""

import json
from collections.abc import Mapping
from typing import Literal

JobClass = Literal["small", "wide"]
Resources = Mapping[str, Mapping[str, str]]

# dagster-k8s reads it from a job, and from an op where each step has a pod of its own.
TAG = "dagster-k8s/config"

JOB_CLASS_RESOURCES: Mapping[JobClass, Resources] = {
    # One step that only asks and waits.
    "small": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
    # Many steps side by side, each a process of its own.
    "wide": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "4Gi"}},
}


def kubernetes_resources(job_class: JobClass) -> dict[str, str]:
    """The tag that gives a run the amounts of its class: `owned_by(OWNER, **kubernetes_resources("small"))`."""
    return {TAG: json.dumps({"container_config": {"resources": JOB_CLASS_RESOURCES[job_class]}})}
