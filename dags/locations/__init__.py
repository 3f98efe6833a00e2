"""One module a team, which lists what the team registers, and here the resources that all of them share.

A location holds no logic, and exposes `defs`. How to add one is in docs/.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from dags.common import resources as common_resources

resources: Mapping[str, dg.ResourceDefinition] = {
    "cluster": common_resources.cluster,
    "json_io_manager": common_resources.json_io_manager,
    "postgres": common_resources.postgres,
    "s3": common_resources.s3,
    "slack": common_resources.slack,
}


def build_definitions(*, resources: Mapping[str, Any] = resources, **definitions: Any) -> dg.Definitions:
    """The definitions of a location with the shared resources; a test gives its own.

    `definitions` are the arguments of `dagster.Definitions`.
    """
    return dg.Definitions(resources=resources, **definitions)
