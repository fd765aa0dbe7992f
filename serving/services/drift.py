"""Input drift: whether the images in requests are distributed like the training images.

The manifest holds the mean and the standard deviation of each moment over the training images. The input has drifted
if the mean over a window of requests differs from the recorded mean by more than chance explains. Typical causes are a
new camera, a client that decodes differently, changed lighting, and other objects in the images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from evalmode.artifact.image_statistics import MOMENTS, measure_moments
from evalmode.images.pixels import Pixels

WINDOW = 200  # images
LIMIT = 5.0  # standard errors: by chance, one of 15 values exceeds it in one window of 100,000
MIN_SPREAD = 0.01  # of a moment, so that a small difference is no drift where training images do not differ at all


def measure_drift(centres: Sequence[Pixels], recorded: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """Measure how far recent images are from the training images.

    Args:
        centres: The centres of the images, uint8 (H, W, C), as ``crop_centre`` returns them.
        recorded: The statistics of the training images, as ``describe_images`` returns them.

    Returns:
        The difference of the means in standard errors, by moment and channel. More than ``LIMIT`` is drift.
    """
    seen = np.concatenate([measure_moments(centre[np.newaxis]) for centre in centres]).mean(0)
    drift = {}
    for row, name in enumerate(MOMENTS):
        for channel, (mean, spread) in enumerate(zip(recorded[name]["mean"], recorded[name]["std"], strict=True)):
            error = max(spread, MIN_SPREAD) / np.sqrt(len(centres))
            drift[name, channel] = float((seen[row, channel] - mean) / error)
    return drift


def drifts(distances: Iterable[float]) -> bool:
    """Whether any distance, in standard errors, exceeds ``LIMIT``."""
    return any(abs(distance) > LIMIT for distance in distances)
