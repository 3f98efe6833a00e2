"""A code location for tests: the project's web analytics, with a pod for each step."""

import dagster as dg

from dags.common.resilient_kubernetes import resilient_k8s_job_executor
from dags.locations import web_analytics

# Dagster refuses a module with two Definitions, so the project's is not imported by name.
defs = dg.Definitions(
    assets=web_analytics.defs.assets,
    asset_checks=web_analytics.defs.asset_checks,
    jobs=web_analytics.defs.jobs,
    resources=web_analytics.defs.resources,
    executor=resilient_k8s_job_executor,
)
