"""The health of services and models, for grpc.health.v1."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from grpc_health.v1 import health_pb2

from evalmode.errors import ServiceUnknown

Response: TypeAlias = health_pb2.HealthCheckResponse
Wake = Callable[[], object]


class Health:
    """The serving status of each service and model, by name.

    The lock is held for a few statements only, and watchers are notified without it. A request for an unknown name
    leaves no entry.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, Any] = {}
        self._wakes: set[Wake] = set()
        self._leaving = False

    def set(self, states: Mapping[str, bool], forget: Iterable[str] = ()) -> None:
        """Set the status of names, and notify the watchers.

        Args:
            states: Whether a service or model is ready, by name. After ``leave``, none is.
            forget: Names to remove.
        """
        with self._lock:
            for name in forget:
                self._states.pop(name, None)
            for name, ready in states.items():
                self._states[name] = Response.SERVING if ready and not self._leaving else Response.NOT_SERVING
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    def leave(self) -> None:
        """Set every name to NOT_SERVING, now and in the future."""
        with self._lock:
            self._leaving = True
            self._states = dict.fromkeys(self._states, Response.NOT_SERVING)
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    def check(self, name: str) -> Response:
        """The response of ``Check``.

        Raises:
            ServiceUnknown: The name is unknown.
        """
        state = self._states.get(name)
        if state is None:
            raise ServiceUnknown(f"no service or model {name[:100]!r} is served")
        return Response(status=state)

    def watch(self, name: str) -> Response:
        """The current response of ``Watch``."""
        return Response(status=self._states.get(name, Response.SERVICE_UNKNOWN))

    @contextmanager
    def watched(self, wake: Wake) -> Iterator[None]:
        """Call ``wake`` after each change until the block ends."""
        with self._lock:
            self._wakes.add(wake)
        try:
            yield
        finally:
            with self._lock:
                self._wakes.discard(wake)
