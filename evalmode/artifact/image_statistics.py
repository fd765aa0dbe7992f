"""Statistics of images: moments of each channel, and their mean and spread over a training set.

A manifest holds those of the training images, so that the server can compare the images that arrive with them.
"""

from __future__ import annotations

import numpy as np

from evalmode.artifact.certificate import Floats
from evalmode.images.pixels import Pixels

# mean and spread: of a channel; tint: its mean less that of all channels; detail: how far neighbours differ;
# roughness: how far that changes from one pixel to the next (noise, and what lossy compression and resizing leave).
MOMENTS = ("mean", "spread", "tint", "detail", "roughness")
LARGEST_SIDE = 64  # of an image's middle that is looked at
MOST_IMAGES = 8_192  # that describe a training set


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


def _average(values: Floats) -> Floats:
    """Over rows and columns, (N, H, W, C) -> (N, C); 0 where there are none."""
    return values.sum((1, 2)) / max(1, values.shape[1] * values.shape[2])  # type: ignore[no-any-return]
