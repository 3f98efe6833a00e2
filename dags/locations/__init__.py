"""One module for each team, which lists what the team registers; here, the resources that all of them share.

A location holds no logic, and exposes `defs`. How to add one is in docs/.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from dags.common.json_io_manager import JsonObjectIOManager
from dags.common.resources import ClickhouseResource, PostgresResource, S3Resource

s3 = S3Resource()
resources: Mapping[str, Any] = {
    "clickhouse": ClickhouseResource(),
    "json_io_manager": JsonObjectIOManager(s3=s3),
    "postgres": PostgresResource(),
    "s3": s3,
}


def build_definitions(*, resources: Mapping[str, Any] = resources, **definitions: Any) -> dg.Definitions:
    """Return the definitions of a location with the shared resources; a test passes its own.

    `definitions` are the arguments of `dagster.Definitions`.
    """
    return dg.Definitions(resources=resources, **definitions)
