"""Whether the images that arrive are like those that the network was trained on.

Each image has a few moments by channel. Training says their mean and spread over its images; where the mean over a
window of images lies further from it than chance explains, the input drifts: a camera was exchanged, a client decodes
otherwise, the light has changed, or other things stand before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.certificate import Floats
from serving.pixels import Pixels

# mean and spread: of a channel; tint: its mean less that of all channels; detail: how far neighbours differ;
# roughness: how far that changes from one pixel to the next (noise, and what lossy compression and resizing leave).
MOMENTS = ("mean", "spread", "tint", "detail", "roughness")
WINDOW = 200  # images
LIMIT = 5.0  # standard errors: of 15 numbers, chance takes one so far in a window of 100,000
LARGEST_SIDE = 64  # of an image's middle that is looked at
MOST_IMAGES = 8_192  # that describe a training set
LEAST_SPREAD = 0.01  # of a moment: where training images do not differ at all, a little is not yet much


def cut_middle(image: Pixels) -> Pixels:
    """The part of an image (..., H, W, C) whose moments are taken; a copy of it, so that the rest is not held."""
    height, width = image.shape[-3:-1]
    if max(height, width) <= LARGEST_SIDE:
        return image
    top, left = max(0, height - LARGEST_SIDE) // 2, max(0, width - LARGEST_SIDE) // 2
    return image[..., top : top + LARGEST_SIDE, left : left + LARGEST_SIDE, :].copy()


def measure_moments(batch_nhwc: Pixels) -> Floats:
    """The moments of images, uint8 (N, H, W, C) -> float32 (N, moments, C)."""
    values = batch_nhwc.astype(np.float32)
    mean, spread = values.mean((1, 2)), values.std((1, 2))
    tint = mean - mean.mean(1, keepdims=True)
    steps, bends = (_average(np.abs(np.diff(values, order, axis=2))) for order in (1, 2))
    detail, roughness = np.log(steps + 1), np.log((bends + 0.5) / (steps + 0.5))
    return np.stack([mean, spread, tint, detail, roughness], axis=1)


def describe_images(images: Pixels) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over images of every moment, by channel; what a manifest says of a training set."""
    chosen = images[:: -(-len(images) // MOST_IMAGES)]
    pieces = (chosen[row : row + 256] for row in range(0, len(chosen), 256))  # all of them at once would not fit
    moments = np.concatenate([measure_moments(cut_middle(piece)) for piece in pieces]).astype(np.float64)
    average, spread = moments.mean(0).tolist(), moments.std(0).tolist()
    return {name: {"mean": average[row], "std": spread[row]} for row, name in enumerate(MOMENTS)}


def measure_drift(middles: Sequence[Pixels], told: Mapping[str, Any]) -> dict[tuple[str, int], float]:
    """How far images are from those of training: standard errors, by moment and channel; ``LIMIT`` is too far.

    Args:
        middles: of the images, as ``cut_middle`` gives them.
        told: by ``describe_images``.
    """
    seen = np.concatenate([measure_moments(middle[np.newaxis]) for middle in middles]).mean(0)
    drift = {}
    for row, name in enumerate(MOMENTS):
        for channel, (mean, spread) in enumerate(zip(told[name]["mean"], told[name]["std"], strict=True)):
            error = max(spread, LEAST_SPREAD) / np.sqrt(len(middles))
            drift[name, channel] = float((seen[row, channel] - mean) / error)
    return drift


def drifts(distances: Iterable[float]) -> bool:
    """Whether any distance is more than chance explains."""
    return any(abs(distance) > LIMIT for distance in distances)


def _average(values: Floats) -> Floats:
    """Over rows and columns, (N, H, W, C) -> (N, C); 0 where there are none."""
    return values.sum((1, 2)) / max(1, values.shape[1] * values.shape[2])  # type: ignore[no-any-return]
