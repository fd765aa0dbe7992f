"""The serving image's HEALTHCHECK: exit 0 if the server answers health checks, else 1 with the reason."""

import sys
import urllib.request

import click

from serving.commands.serve import serve
from serving.transports.addresses import find_local, find_metrics_host, join_address

TIMEOUT_S = 4.0  # less than the HEALTHCHECK's own, so that its log tells the reason


def main() -> None:
    """Ask the server in this container whether it answers; without metrics, ask for its health.

    Where it listens is what its options say, read from the environment as it reads them.
    """
    try:
        options = serve.make_context("serve", ["--repository", "."], auto_envvar_prefix="EVALMODE_SERVE").params
    except click.ClickException as error:
        sys.exit(error.format_message())
    host = options["host"]
    if options["no_metrics"]:
        ask_over_grpc(find_local(join_address(host, options["port"]), options["port"]))
    else:
        port = options["metrics_port"]
        ask_over_http(f"http://{find_local(join_address(find_metrics_host(host), port), port)}/livez")


def ask_over_grpc(address: str) -> None:
    """Exit unless it says SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

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
