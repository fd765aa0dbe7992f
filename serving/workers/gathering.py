"""The figures of all workers, gathered by the supervisor."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable

from serving.services.figures import Figures, Workers
from serving.workers.group import WorkerGroup
from serving.workers.snapshots import WorkerFigures

log = logging.getLogger("serving")

SNAPSHOT_S = 5.0  # for a worker to send its figures


class Gathering:
    """Asks all workers for their figures, and adds them. Methods may be called from several threads.

    Args:
        workers: The number of workers.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._figures = WorkerFigures(workers)
        self._lock = threading.Lock()
        self._ended: deque[int] = deque()

    def end(self, worker: int) -> None:
        """Note that the process of a worker has ended. Does not block.

        Args:
            worker: Its number.
        """
        self._ended.append(worker)

    def read(self, group: WorkerGroup, images: bool = True) -> Figures:
        """Return the figures of the server.

        Args:
            group: The workers.
            images: Whether they include the images that drift follows from.
        """
        with self._lock:
            self._keep_ended()
            answers = group.ask_all("snapshot", SNAPSHOT_S, {"images": images})
            self._receive((number, answer[1]) for number, answer in answers.items() if answer)
            return self._figures.merge(Workers(self._workers, group.count_ready(), group.restarts))

    def finish(self, snapshots: Iterable[tuple[int, bytes]]) -> int:
        """Return the number of requests that were answered since the server started.

        Args:
            snapshots: The last figures of each worker, by its number.
        """
        with self._lock:
            self._keep_ended()
            self._receive(snapshots)
            return self._figures.merge(Workers(self._workers, 0, 0)).answered

    def _keep_ended(self) -> None:
        while self._ended:
            self._figures.end(self._ended.popleft() - 1)

    def _receive(self, snapshots: Iterable[tuple[int, bytes]]) -> None:
        for number, snapshot in snapshots:
            self._figures.receive(number - 1, snapshot)
