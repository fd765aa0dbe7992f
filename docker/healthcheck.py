"""The HEALTHCHECK of the serving image: exits with 0 if the server answers, otherwise with 1 and the reason."""

import sys
import urllib.request

import click

from evalmode.cli.serve import serve
from serving.config import VARIABLE_PREFIX
from serving.transports.addresses import find_local, find_metrics_host, join_address

TIMEOUT_S = 4.0  # shorter than the timeout of HEALTHCHECK, so that its log contains the reason


def main() -> None:
    """Check the liveness of the server in this container; without metrics, check its health.

    The addresses come from the server's options, which are read from the environment as the server reads them.
    """
    command = click.Command("serve", params=serve.params)
    try:
        options = command.make_context("serve", ["--repository", "."], auto_envvar_prefix=VARIABLE_PREFIX[:-1]).params
    except click.ClickException as error:
        sys.exit(error.format_message())
    host = options["host"]
    if options["no_metrics"]:
        ask_over_grpc(find_local(join_address(host, options["port"]), options["port"]))
    else:
        port = options["metrics_port"]
        ask_over_http(f"http://{find_local(join_address(find_metrics_host(host), port), port)}/livez")


def ask_over_grpc(address: str) -> None:
    """Exit with the reason unless the server reports SERVING."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

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
