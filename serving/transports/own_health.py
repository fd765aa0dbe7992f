"""A health check that a server sends itself, as a client would."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


class OwnHealth:
    """Calls ``Health.Check`` of the server in this process.

    Any status counts as an answer, including NOT_SERVING: a server that drains is alive.

    Args:
        address: The address of the server, without TLS.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._check = health_pb2_grpc.HealthStub(self._channel).Check

    def check(self, timeout_s: float) -> float | None:
        """Return 0.0 if the server answers, otherwise None.

        Args:
            timeout_s: Seconds to wait for the answer.
        """
        try:
            self._check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except (grpc.RpcError, ValueError):  # no answer in time; a ValueError says that the channel is closed
            return None
        return 0.0

    def close(self) -> None:
        """Close the channel. A check in progress is cancelled."""
        self._channel.close()
