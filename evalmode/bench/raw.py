"""How fast ONNX Runtime alone runs a network on these cores: what a server could reach at best."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import product

import numpy as np

from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES
from evalmode.images.pixels import PixelContract
from evalmode.runtime.session import open_cpu_session

BATCHES = (1, 8, 32, 64)


@dataclass(frozen=True)
class Raw:
    """One way to run it.

    Attributes:
        sessions: threads of ours that run it at the same time.
        threads: of onnxruntime's, for each.
        batch: images a run.
        rate: images a second.
        median_ms: of one run.
    """

    sessions: int
    threads: int
    batch: int
    rate: float
    median_ms: float


def measure_raw(artifact: bytes, contract: PixelContract, cores: int, seconds: float) -> list[Raw]:
    """Every sensible split of the cores, fastest first.

    Args:
        artifact: the bytes of a ``model.onnx``.
        contract: the pixels that it takes.
        cores: that may be used.
        seconds: for each way.
    """
    ways = {(1, 1), (cores, 1), (1, cores)}
    found = [_measure(artifact, contract, *way, batch, seconds) for way, batch in product(sorted(ways), BATCHES)]
    return sorted(found, key=lambda raw: -raw.rate)


def _measure(artifact: bytes, contract: PixelContract, sessions: int, threads: int, batch: int, seconds: float) -> Raw:
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *contract.shape)).astype(np.uint8)
    session = open_cpu_session(artifact, threads)
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
    every = np.concatenate(times)
    return Raw(sessions, threads, batch, len(every) * batch / lasted, float(np.median(every)) * 1e3)
