"""What a server and the supervisor of several workers have in common."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from serving.engine.shared_limits import Count
    from serving.services.figures import Counts, Version
    from serving.services.loaded import LoadedModels

log = logging.getLogger("serving")


class Drained(NamedTuple):
    """The requests of a server that was drained.

    Attributes:
        cut: The requests that did not finish in time.
        answered: The prediction requests that were answered since the start.
    """

    cut: int
    answered: int

    def log(self, grace_s: float) -> None:
        """Log what became of the requests.

        Args:
            grace_s: The time that requests in flight had, in seconds.
        """
        if self.cut:
            log.error("%s requests did not finish within %s s and were cut", self.cut, grace_s)
        else:
            log.info("all requests answered: %s", self.answered)


def log_shutdown(lame_duck_s: float) -> None:
    """Log that the server shuts down.

    Args:
        lame_duck_s: The time for which it still answers new requests, in seconds.
    """
    log.info("shutting down: NOT_SERVING, answering for %s s more", lame_duck_s)


def describe_server(models: LoadedModels, where: str, metrics_port: int | None) -> str:
    """Return two lines: the models and where they are served, and where metrics are served.

    Args:
        models: The models.
        where: The address or the port.
        metrics_port: The port of the metrics; None: there are none.
    """
    metrics = "no metrics" if metrics_port is None else f"metrics on port {metrics_port}"
    return f"serving {', '.join(models.served)} on {where}\n{metrics}"


def find_obstacle(stopping: threading.Event, models: LoadedModels) -> str:
    """Return why a server that has started answers no requests: it drains, or has no model. "" if it answers.

    Args:
        stopping: Set once the server drains.
        models: Its models.
    """
    if stopping.is_set():
        return "draining"
    return "" if models.loaded else "no model is loaded"


@dataclass(frozen=True)
class Part:
    """What the supervisor gives each of several workers.

    Attributes:
        workers: The number of workers.
        models: The models, as the supervisor keeps them up to date.
        read_counts: Returns the counters of all workers.
        count: Returns what counts something in all workers, by its name in ``COLUMNS`` of ``serving.workers.counters``.
    """

    workers: int
    models: LoadedModels
    read_counts: Callable[[], Mapping[Version, Counts]]
    count: Callable[[str], Count]
