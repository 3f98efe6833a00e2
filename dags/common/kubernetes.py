"""Kubernetes settings for jobs that need other resources or permissions than the run launcher gives every run.

The default is in deploy/helm/values.yaml (`runLauncher`: 1 to 2 GiB of memory). On a laptop this has no effect.
"""

import json
from collections.abc import Mapping
from typing import Literal

JobClass = Literal["small", "wide"]
Resources = Mapping[str, Mapping[str, str]]

# dagster-k8s reads it from a job, and from an op where each step has a pod of its own.
TAG = "dagster-k8s/config"

# Its role is in deploy/manifests/access.yaml.
STEPS_ACCOUNT = "dagster-steps"

# Runs of an asset backfill carry no tags of a job. A location whose runs all start pods sets this for its code server:
# docs/deploy.md, "Permissions of runs".
STEPS_CONFIG: Mapping[str, Mapping[str, object]] = {
    "pod_spec_config": {"service_account_name": STEPS_ACCOUNT, "automount_service_account_token": True},
    # Network policies admit pods with this label to the Kubernetes API.
    "pod_template_spec_metadata": {"labels": {"kubernetes-api": "steps"}},
}

JOB_CLASS_RESOURCES: Mapping[JobClass, Resources] = {
    # One step that only sends queries and waits.
    "small": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
    # Many steps in parallel, each a process of its own.
    "wide": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "4Gi"}},
}


def kubernetes_resources(job_class: JobClass) -> dict[str, str]:
    """Return the tag that gives a run the resources of a class: `owned_by(OWNER, **kubernetes_resources("small"))`."""
    return {TAG: json.dumps({"container_config": {"resources": JOB_CLASS_RESOURCES[job_class]}})}


def kubernetes_steps(job_class: JobClass | None = None) -> dict[str, str]:
    """Return the tag that lets a run start a pod for each step, as jobs with `resilient_k8s_job_executor` do.

    Without it, a run has no token of the Kubernetes API.
    """
    resources = {} if job_class is None else {"container_config": {"resources": JOB_CLASS_RESOURCES[job_class]}}
    return {TAG: json.dumps({**STEPS_CONFIG, **resources})}
