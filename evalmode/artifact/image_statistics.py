"""Statistics of images: moments of each channel, and their mean and standard deviation over a training set.

A manifest holds those of the training images. The server compares them with the images that it receives.
"""

from __future__ import annotations

import numpy as np

from evalmode.artifact.tensors import Floats
from evalmode.images.pixels import Pixels

# The moments of a channel. mean and spread: its mean and standard deviation; tint: its mean less the mean of all
# channels; detail: the mean difference of adjacent pixels, as a logarithm; roughness: how much that difference changes
# from one pixel to the next (noise, lossy compression and resizing change it), as a logarithm.
MOMENTS = ("mean", "spread", "tint", "detail", "roughness")
MAX_SIDE = 64  # pixels: moments are taken of the centre of larger images
MAX_IMAGES = 8_192  # images of a training set that are measured


def crop_centre(image: Pixels) -> Pixels:
    """Crop an image to the part that moments are taken of.

    Args:
        image: uint8 (..., H, W, C).

    Returns:
        uint8 (..., at most 64, at most 64, C); a copy if the image is larger, so that the image can be freed.
    """
    height, width = image.shape[-3:-1]
    if max(height, width) <= MAX_SIDE:
        return image
    top, left = max(0, height - MAX_SIDE) // 2, max(0, width - MAX_SIDE) // 2
    return image[..., top : top + MAX_SIDE, left : left + MAX_SIDE, :].copy()


def measure_moments(batch_nhwc: Pixels) -> Floats:
    """Compute the moments of images.

    Args:
        batch_nhwc: uint8 (N, H, W, C).

    Returns:
        float32 (N, M, C), the moments in the order of ``MOMENTS``.
    """
    values = batch_nhwc.astype(np.float32)
    mean, spread = values.mean((1, 2)), values.std((1, 2))
    tint = mean - mean.mean(1, keepdims=True)
    steps, bends = (_average(np.abs(np.diff(values, order, axis=2))) for order in (1, 2))
    detail, roughness = np.log(steps + 1), np.log((bends + 0.5) / (steps + 0.5))
    return np.stack([mean, spread, tint, detail, roughness], axis=1)


def describe_images(images: Pixels) -> dict[str, dict[str, list[float]]]:
    """Compute the mean and standard deviation of every moment over images.

    Args:
        images: uint8 (N, H, W, C). At most ``MAX_IMAGES`` are measured, evenly spaced.

    Returns:
        By moment, ``mean`` and ``std``: a value for each channel. A manifest holds it as ``moments.images``.
    """
    chosen = images[:: -(-len(images) // MAX_IMAGES)]
    pieces = (chosen[row : row + 256] for row in range(0, len(chosen), 256))  # all at once could exceed the memory
    moments = np.concatenate([measure_moments(crop_centre(piece)) for piece in pieces]).astype(np.float64)
    average, spread = moments.mean(0).tolist(), moments.std(0).tolist()
    return {name: {"mean": average[row], "std": spread[row]} for row, name in enumerate(MOMENTS)}


def _average(values: Floats) -> Floats:
    """Average over rows and columns, (N, H, W, C) -> (N, C); 0 if there are none."""
    return values.sum((1, 2)) / max(1, values.shape[1] * values.shape[2])  # type: ignore[no-any-return]
