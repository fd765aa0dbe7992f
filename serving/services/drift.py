"""Whether the images that arrive are like those that the network was trained on.

The manifest has the mean and standard deviation of each moment over the training images. The input drifts where the
mean over a window of requests differs from that by more than chance explains: a camera was replaced, a client decodes
differently, the light has changed, or the objects are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evalmode.artifact.image_statistics import MOMENTS, measure_moments
from evalmode.images.pixels import Pixels

WINDOW = 200  # images
LIMIT = 5.0  # standard errors: of 15 numbers, chance takes one so far in a window of 100,000
MIN_SPREAD = 0.01  # of a moment: where training images do not differ at all, a small difference is no drift


def measure_drift(middles: Sequence[Pixels], told: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """How far images are from those of training: standard errors, by moment and channel; ``LIMIT`` is too far.

    Args:
        middles: of the images, as ``crop_centre`` gives them.
        told: by ``describe_images``.
    """
    seen = np.concatenate([measure_moments(middle[np.newaxis]) for middle in middles]).mean(0)
    drift = {}
    for row, name in enumerate(MOMENTS):
        for channel, (mean, spread) in enumerate(zip(told[name]["mean"], told[name]["std"], strict=True)):
            error = max(spread, MIN_SPREAD) / np.sqrt(len(middles))
            drift[name, channel] = float((seen[row, channel] - mean) / error)
    return drift


def drifts(distances: Iterable[float]) -> bool:
    """Whether any distance is more than chance explains."""
    return any(abs(distance) > LIMIT for distance in distances)
