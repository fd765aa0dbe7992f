"""Liveness: the server checks its own health through its own port, as a client would."""

from __future__ import annotations

import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving.threads import start_threads

CHECK_S = 5.0  # between two checks, and the deadline of each
LATE_S = 20.0  # the server is not alive if the last answer is older


class Liveness:
    """Calls ``Health.Check`` every ``CHECK_S`` seconds in a thread, and records the time of the last answer.

    Any status counts as an answer, including NOT_SERVING: a server that drains is alive.

    Args:
        address: The address of the server, without TLS.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._check = health_pb2_grpc.HealthStub(self._channel).Check
        self._answered = time.monotonic()
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread.

        Raises:
            ThreadsUnavailable: The system cannot start it.
        """
        start_threads(1, "liveness", self._watch)

    def close(self) -> None:
        """Stop checking, and close the channel. A check in progress is cancelled."""
        self._stop.set()
        self._channel.close()

    def silent_s(self) -> float:
        """Seconds since the last answer, or since construction if there was none."""
        return time.monotonic() - self._answered

    def is_alive(self) -> bool:
        """Whether the last answer is recent enough."""
        return self.silent_s() < LATE_S

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self._check(health_pb2.HealthCheckRequest(), timeout=CHECK_S)
                self._answered = time.monotonic()
            except (grpc.RpcError, ValueError):  # no answer in time; a ValueError says that the channel is closed
                pass
            self._stop.wait(CHECK_S)
