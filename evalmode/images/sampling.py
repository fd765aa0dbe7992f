"""Resizing without antialiasing: each pixel is interpolated between its two or four neighbours per axis.

This is how torchvision resizes tensors without antialiasing, and, up to the rounding of its weights, how OpenCV
resizes. Pillow has no such resize.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

Weights = npt.NDArray[np.float32]

STRIP_PIXELS = 2**15  # of the source and of the result, sampled at a time: some MiB
_A = np.float32(-0.75)  # of the cubic kernel. Source: torch's UpSample.h and OpenCV's resize.cpp


def _weigh_linear(place: Weights) -> Weights:
    return np.stack([1 - place, place])


def _weigh_cubic(place: Weights) -> Weights:
    def near(x: Weights) -> Weights:
        return ((_A + 2) * x - (_A + 3)) * x * x + 1

    def far(x: Weights) -> Weights:
        return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A

    return np.stack([far(place + 1), near(place), near(1 - place), far(2 - place)])


# The weights of the neighbours, by the distance from the last neighbour that is not behind the place.
SAMPLED: dict[str, Callable[[Weights], Weights]] = {"bilinear": _weigh_linear, "bicubic": _weigh_cubic}


def sample(picture: Image.Image, size: tuple[int, int], interpolation: str) -> Image.Image:
    """Resize a picture without antialiasing.

    Some rows of the result are made at a time from the source rows that they need, so that no copy of the picture is
    needed.

    Args:
        picture: Of mode RGB, RGBX or L.
        size: (width, height) of the result.
        interpolation: A name in ``SAMPLED``.

    Returns:
        A picture of the same mode, or RGB for RGBX.
    """
    columns, column_weights = _find_neighbours(picture.width, size[0], interpolation)
    rows, row_weights = _find_neighbours(picture.height, size[1], interpolation)
    channels = 1 if picture.mode == "L" else 3
    sampled = np.empty((size[1], size[0], channels), np.uint8)
    step = max(1, min(STRIP_PIXELS // size[0], STRIP_PIXELS * size[1] // (picture.width * picture.height)))
    for top in range(0, size[1], step):
        part = slice(top, top + step)
        needed, places = np.unique(rows[:, part], return_inverse=True)
        strip = np.asarray(picture.crop((0, needed[0], picture.width, needed[-1] + 1)))
        strip = strip.reshape(len(strip), picture.width, -1)[needed - needed[0]]
        near = strip[:, columns, :channels].astype(np.float32)  # rows, columns, width, channels
        across = _add([near[:, tap] * column_weights[tap, :, np.newaxis] for tap in range(len(columns))])
        taps, weights = places.reshape(len(rows), -1), row_weights[:, part, np.newaxis, np.newaxis]
        values = _add([across[taps[tap]] * weights[tap] for tap in range(len(rows))])
        sampled[part] = np.clip(np.rint(values), 0, 255)
    return Image.fromarray(sampled.squeeze(-1) if channels == 1 else sampled)


def _add(parts: list[Weights]) -> Weights:
    """Add arrays in their order: products and sums that are computed apart have the same bits on every processor."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _find_neighbours(length: int, wanted: int, interpolation: str) -> tuple[npt.NDArray[np.intp], Weights]:
    """Find the neighbours of each place of a resized axis.

    Args:
        length: Pixels of the source.
        wanted: Pixels of the result.
        interpolation: A name in ``SAMPLED``.

    Returns:
        The positions of the neighbours, and their weights: (neighbours, wanted).
    """
    scale = np.float32(length / wanted)
    places = (np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    if interpolation == "bilinear":
        places = np.maximum(places, 0)
    before = np.floor(places)
    weights = SAMPLED[interpolation](places - before)
    taps = np.arange(len(weights)) - (len(weights) // 2 - 1)
    return np.clip(before.astype(np.intp) + taps[:, np.newaxis], 0, length - 1), weights
