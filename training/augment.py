"""Data augmentation: mirrors and shifts the training images, a batch at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from evalmode.images.pixels import Pixels
from training.datasets.dataset import Indices

Mask = npt.NDArray[np.bool_]


def augment(images: Pixels, mirrored: Mask, shift: int, offsets: Indices) -> Pixels:
    """Mirror some images, and shift each image by its own offset.

    Args:
        images: The pixels, uint8 (N, H, W, C).
        mirrored: Which images to mirror left to right, bool (N,).
        shift: The largest shift in pixels in every direction; pixels beyond the border are reflected.
        offsets: The vertical and horizontal offset of each image, int64 (2, N), from 0 to ``2 * shift``; ``shift``
            means no shift.

    Returns:
        The augmented images, uint8 (N, H, W, C).
    """
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
    padded[mirrored] = padded[mirrored, :, ::-1]
    windows = sliding_window_view(padded, images.shape[1:], axis=(1, 2, 3))  # (N, offsets, offsets, 1, H, W, C)
    shifted: Pixels = windows[np.arange(len(images)), *offsets, 0]
    return shifted


def draw_offsets(count: int, shift: int, rng: np.random.Generator) -> Indices:
    """Draw the offsets for ``augment``.

    Args:
        count: The number of images.
        shift: The largest shift in pixels.
        rng: The random number generator.

    Returns:
        int64 (2, N), from 0 to ``2 * shift``.
    """
    return rng.integers(0, 2 * shift + 1, (2, count))


def choose_mirrored(count: int, epoch: int, seed: int) -> Mask:
    """Choose the training images to mirror: half of them in one epoch, the other half in the next.

    In every two epochs, the network therefore sees both views of every image.
    Source: Jordan, 94% on CIFAR-10 in 3.29 Seconds (2404.00498), section 3.6.

    Args:
        count: The number of training images.
        epoch: The epoch, from 1.
        seed: Decides which images are in which half.

    Returns:
        bool (N,).
    """
    halves = np.random.default_rng(seed).permutation(count) % 2
    mirrored: Mask = (halves + epoch) % 2 == 0
    return mirrored
