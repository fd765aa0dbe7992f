"""The serving image's HEALTHCHECK: exit 0 if the server answers health checks, else 1 with the reason."""

import os
import sys
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 4.0  # less than the HEALTHCHECK's own, so that its log tells the reason


def main() -> None:
    """Ask the server in this container whether it answers; without metrics, ask for its health."""
    if "EVALMODE_SERVE_NO_METRICS" in os.environ:
        ask_over_grpc(f"127.0.0.1:{os.environ.get('EVALMODE_SERVE_PORT', '8001')}")
    else:
        ask_over_http(f"http://127.0.0.1:{os.environ.get('EVALMODE_SERVE_METRICS_PORT', '8002')}/livez")


def ask_over_grpc(address: str) -> None:
    """Exit unless it says SERVING."""
    # a proxy that the environment names does not lead to this container
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            sys.exit(f"{address}: {error.code().name}: {error.details()}")
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}")


def ask_over_http(url: str) -> None:
    """Exit unless it says 200."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(url, timeout=TIMEOUT_S)
    except OSError as error:  # HTTPError is one
        sys.exit(f"{url}: {error}")


main()
