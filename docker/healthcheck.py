"""The HEALTHCHECK of the serving image: exits with 0 if the server answers, otherwise with 1 and the reason."""

import os
import sys
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 4.0  # shorter than the timeout of HEALTHCHECK, so that its log contains the reason


def main() -> None:
    """Check the liveness of the server in this container; without metrics, check its health."""
    if "EVALMODE_SERVE_NO_METRICS" in os.environ:
        ask_over_grpc(f"127.0.0.1:{os.environ.get('EVALMODE_SERVE_PORT', '8001')}")
    else:
        ask_over_http(f"http://127.0.0.1:{os.environ.get('EVALMODE_SERVE_METRICS_PORT', '8002')}/livez")


def ask_over_grpc(address: str) -> None:
    """Exit with the reason unless the server reports SERVING."""
    # a proxy from the environment does not reach this container
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            sys.exit(f"{address}: {error.code().name}: {error.details()}")
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        sys.exit(f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}")


def ask_over_http(url: str) -> None:
    """Exit with the reason unless the status is 200."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(url, timeout=TIMEOUT_S)
    except OSError as error:  # HTTPError is a subclass
        sys.exit(f"{url}: {error}")


main()
