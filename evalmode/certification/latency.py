"""The latency of one model relative to another."""

from __future__ import annotations

import statistics
import time

from evalmode.artifact.tensors import INPUT, LOGITS, PROBABILITIES
from evalmode.images.pixels import Pixels
from evalmode.runtime.model import Model

ROUNDS = 200


def measure_ratio(model: Model, image: Pixels, other: Model, other_image: Pixels) -> float:
    """Time two models in turns, each on a single image.

    Args:
        model: An image classifier.
        image: uint8 (1, H, W, C).
        other: Another image classifier.
        other_image: The image for it, uint8 (1, H, W, C).

    Returns:
        The median latency of ``model`` divided by that of ``other``.
    """
    pairs = ((model, image), (other, other_image))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for (one, pixels), taken in zip(pairs, times, strict=True):
            started = time.perf_counter()
            one.session.run([PROBABILITIES, LOGITS], {INPUT: pixels})
            taken.append(time.perf_counter() - started)
    ratio: float = statistics.median(times[0]) / statistics.median(times[1])
    return ratio
