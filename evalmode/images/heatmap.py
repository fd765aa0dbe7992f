"""Heatmaps: where in an image a value is high, as colours over the image.

Shapes: H, W, C of the pixels; h and w positions of the map.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from evalmode.images.pixels import Pixels

Map = npt.NDArray[np.float32]

# Every sixteenth colour of "inferno", whose lightness grows evenly. Between them colours are interpolated.
# Source: matplotlib's _cm_listed.py, by Nathaniel Smith and Stefan van der Walt, CC0.
INFERNO = np.array(
    [
        *((0, 0, 4), (11, 7, 36), (33, 12, 74), (61, 9, 101), (87, 16, 110), (113, 25, 110), (138, 34, 106)),
        *((163, 44, 97), (188, 55, 84), (210, 70, 68), (228, 90, 49), (241, 115, 29), (249, 142, 9), (252, 172, 17)),
        *((249, 203, 53), (242, 234, 105), (252, 255, 164)),
    ],
    np.float32,
)
OPACITY = 0.5  # of the colours over the image


def resize_map(values: Map, height: int, width: int) -> Map:
    """Resize a map to the size of an image, bilinearly.

    Args:
        values: float32 (h, w).
        height: H.
        width: W.

    Returns:
        float32 (H, W).
    """
    picture = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


def draw_heatmap(pixels: Pixels, values: Map) -> Image.Image:
    """Draw a map over an image. The colours range from the lowest value of the map, dark, to its highest, bright.

    Args:
        pixels: uint8 (H, W, C), C is 3 or 1.
        values: float32 (h, w).

    Returns:
        A picture, RGB, H high and W wide.
    """
    height, width = pixels.shape[:2]
    resized = resize_map(values, height, width)
    low, span = resized.min(), np.ptp(resized)
    heat = (resized - low) / span if span > 0 else np.zeros_like(resized)
    places = np.linspace(0, 1, len(INFERNO))
    colours = np.stack([np.interp(heat, places, INFERNO[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray(np.rint((1 - OPACITY) * pixels + OPACITY * colours).astype(np.uint8))
