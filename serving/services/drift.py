"""Input drift: whether the images in requests are distributed like the training images.

The manifest holds the mean and the standard deviation of each moment over the training images. The input has drifted
if the mean over a window of requests differs from the recorded mean by more than chance explains. Typical causes are a
new camera, a client that decodes differently, changed lighting, and other objects in the images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np

from evalmode.artifact.image_statistics import MOMENTS, measure_moments
from evalmode.artifact.tensors import Floats
from evalmode.images.pixels import Pixels

WINDOW = 200  # images
LIMIT = 5.0  # standard errors: by chance, one of 15 values exceeds it in one window of 100,000
MIN_SPREAD = 0.01  # of a moment, so that a small difference is no drift where training images do not differ at all


class RecentImage:
    """An image of a request. Its moments are measured when they are first read; then its pixels are freed.

    Several threads may read the moments.

    Args:
        ns: The time of its answer, in nanoseconds since 1970.
        centre: Its centre, uint8 (H, W, C), as ``crop_centre`` returns it.
    """

    __slots__ = ("_centre", "_moments", "ns")

    def __init__(self, ns: int, centre: Pixels) -> None:
        self.ns = ns
        self._centre: Pixels | None = centre
        self._moments: Floats | None = None

    @classmethod
    def from_moments(cls, ns: int, moments: Floats) -> Self:
        """Make an image of which the moments are known.

        Args:
            ns: The time of its answer, in nanoseconds since 1970.
            moments: float32 (M, C).
        """
        image = cls.__new__(cls)
        image.ns, image._centre, image._moments = ns, None, moments
        return image

    @property
    def moments(self) -> Floats:
        """Its moments, float32 (M, C), in the order of ``MOMENTS``."""
        centre = self._centre
        if centre is not None:
            [self._moments] = measure_moments(centre[np.newaxis])
            self._centre = None
        assert self._moments is not None
        return self._moments


def measure_drift(moments: Floats, recorded: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """Measure how far recent images are from the training images.

    Args:
        moments: The moments of the images, float32 (N, M, C), as ``measure_moments`` returns them.
        recorded: The statistics of the training images, as ``describe_images`` returns them.

    Returns:
        The difference of the means in standard errors, by moment and channel. More than ``LIMIT`` is drift.
    """
    seen = moments.mean(0)
    drift = {}
    for row, name in enumerate(MOMENTS):
        for channel, (mean, spread) in enumerate(zip(recorded[name]["mean"], recorded[name]["std"], strict=True)):
            error = max(spread, MIN_SPREAD) / np.sqrt(len(moments))
            drift[name, channel] = float((seen[row, channel] - mean) / error)
    return drift


def drifts(distances: Iterable[float]) -> bool:
    """Whether any distance, in standard errors, exceeds ``LIMIT``."""
    return any(abs(distance) > LIMIT for distance in distances)
