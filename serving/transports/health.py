"""grpc.health.v1: what is ready, by name, and the calls that watch it."""

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
    """States by service name.

    The lock is held for a few statements only; who watches is woken outside it. A name that is not known has no entry,
    however often it is asked for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[str, Any] = {}
        self._wakes: set[Wake] = set()
        self._leaving = False

    def set(self, states: Mapping[str, bool], forget: Iterable[str] = ()) -> None:
        """Change states, and wake whoever watches.

        Args:
            states: Whether a service is ready, by name. After ``leave`` none is.
            forget: Names that are not known any more.
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
        """Be NOT_SERVING in every name, for good."""
        with self._lock:
            self._leaving = True
            self._states = dict.fromkeys(self._states, Response.NOT_SERVING)
            wakes = tuple(self._wakes)
        for wake in wakes:
            wake()

    def check(self, name: str) -> Response:
        """What ``Check`` answers.

        Raises:
            ServiceUnknown: The name is not known.
        """
        state = self._states.get(name)
        if state is None:
            raise ServiceUnknown(f"no service or model {name[:100]!r} is served")
        return Response(status=state)

    def watch(self, name: str) -> Response:
        """What ``Watch`` answers now."""
        return Response(status=self._states.get(name, Response.SERVICE_UNKNOWN))

    @contextmanager
    def watched(self, wake: Wake) -> Iterator[None]:
        """Call ``wake`` after each change, for as long as the block runs."""
        with self._lock:
            self._wakes.add(wake)
        try:
            yield
        finally:
            with self._lock:
                self._wakes.discard(wake)
