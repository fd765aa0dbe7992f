"""The throughput of ONNX Runtime without a server, an upper bound for any server on these cores."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES
from evalmode.images.pixels import PixelContract, Pixels
from evalmode.runtime.session import open_cpu_session

BATCHES = (1, 8, 32, 64)


@dataclass(frozen=True)
class Raw:
    """The throughput of one way to run a network.

    Attributes:
        sessions: The number of threads that call the session at the same time.
        threads: The number of ONNX Runtime's threads for each call.
        batch: The number of images in a batch.
        rate: Images per second.
        median_ms: The median duration of a call in milliseconds.
    """

    sessions: int
    threads: int
    batch: int
    rate: float
    median_ms: float


def measure_raw(artifact: bytes, contract: PixelContract, cores: int, seconds: float) -> list[Raw]:
    """Measure several ways to share the cores.

    Args:
        artifact: The bytes of a ``model.onnx``.
        contract: The pixels that it takes.
        cores: The number of cores to use.
        seconds: The duration of each measurement.

    Returns:
        The measurements, the highest throughput first.
    """
    ways = {(1, 1), (cores, 1), (1, cores)}
    rng = np.random.default_rng(0)
    drawn = {batch: rng.integers(0, 256, (batch, *contract.shape)).astype(np.uint8) for batch in BATCHES}
    found = [
        _measure(open_cpu_session(artifact, threads), drawn[batch], sessions, threads, seconds)
        for (sessions, threads), batch in product(sorted(ways), BATCHES)
    ]
    return sorted(found, key=lambda raw: -raw.rate)


def _measure(session: Any, pixels: Pixels, sessions: int, threads: int, seconds: float) -> Raw:
    times: list[list[float]] = [[] for _ in range(sessions)]
    session.run([PROBABILITIES, LOGITS], {INPUT: pixels})
    started = time.perf_counter()

    def loop(taken: list[float]) -> None:
        while (begun := time.perf_counter()) < started + seconds:
            session.run([PROBABILITIES, LOGITS], {INPUT: pixels})
            taken.append(time.perf_counter() - begun)

    workers = [threading.Thread(target=loop, args=(taken,)) for taken in times]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    lasted = time.perf_counter() - started
    every, batch = np.concatenate(times), len(pixels)
    return Raw(sessions, threads, batch, len(every) * batch / lasted, float(np.median(every)) * 1e3)
