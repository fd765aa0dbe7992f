"""Whether the server still answers: it asks itself, through its own port, as a client would."""

from __future__ import annotations

import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

CHECK_S = 5.0  # between two checks, and how long each may take
LATE_S = 20.0  # without an answer for so long, the server is not alive


class Liveness:
    """Calls ``Health.Check`` every ``CHECK_S`` seconds, in a thread, and remembers when it was last answered.

    Any answer counts, NOT_SERVING, too: a server that drains is alive.

    Args:
        address: Where the server listens, without TLS.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])
        self._check = health_pb2_grpc.HealthStub(self._channel).Check
        self._answered = time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)

    def start(self) -> None:
        """Start to check."""
        self._thread.start()

    def close(self) -> None:
        """Stop to check, once a check in progress has ended."""
        self._closed.set()
        self._thread.join()
        self._channel.close()

    def silent_s(self) -> float:
        """Seconds since the last answer; at first, since the start."""
        return time.monotonic() - self._answered

    def is_alive(self) -> bool:
        """Whether the last answer is recent enough."""
        return self.silent_s() < LATE_S

    def _watch(self) -> None:
        while not self._closed.is_set():
            try:
                self._check(health_pb2.HealthCheckRequest(), timeout=CHECK_S)
                self._answered = time.monotonic()
            except grpc.RpcError:
                pass  # the time of the last answer tells
            self._closed.wait(CHECK_S)
