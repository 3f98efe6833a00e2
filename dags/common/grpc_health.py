"""The probe of a code server: `python -m dags.common.grpc_health 3030` exits with 0 when the server responds.

It imports neither Dagster nor the rest of the project, which would cost two seconds of CPU at each probe.
"""

import sys

import grpc  # type: ignore[import-untyped] # has no types
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped] # has no types

# The name under which Dagster's gRPC server registers its health.
SERVICE = "DagsterApi"
TIMEOUT_SECONDS = 10


def is_serving(port: int) -> bool:
    """Return whether the code server on this port of the machine serves."""
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=SERVICE), timeout=TIMEOUT_SECONDS
            )
        except grpc.RpcError as error:
            print(f"The code server does not respond: {error}", file=sys.stderr)  # noqa: T201 - the output of a probe
            return False
    serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
    return serving


if __name__ == "__main__":
    sys.exit(0 if is_serving(int(sys.argv[1])) else 1)
