"""Views of training images for a pretrained backbone: the image, its mirror image, and random crops."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from evalmode.images.pixels import Pixels
from training.datasets.dataset import Indices

MIN_AREA = 0.5  # of a crop, as a share of the image
MAX_ASPECT = 4 / 3  # of a crop relative to the image, and its reciprocal the smallest


def make_views(images: Pixels, view: int, rows: Indices, mirror: bool, seed: int) -> Pixels:
    """Make one view of each image: its number decides which.

    View 0 is the image and view 1 its mirror image. All others are random crops, resized to the size of the image;
    half of them are mirrored. Without ``mirror`` view 1 is a crop, too, and no crop is mirrored.
    Source: Szegedy et al., Going Deeper with Convolutions (1409.4842), section 6; with larger crops, since the number
    of views is small.

    Args:
        images: The images, uint8 (N, H, W, C).
        view: Number of the view, from 0.
        rows: Index of each image among the training images, int64 (N,).
        mirror: Whether mirror images are views.
        seed: Decides the crops, together with ``view`` and ``rows``.

    Returns:
        uint8 (N, H, W, C).
    """
    if view == 0:
        return images
    if view == 1 and mirror:
        return np.ascontiguousarray(images[:, :, ::-1])
    crops = np.empty_like(images)
    for crop, image, row in zip(crops, images, rows.tolist(), strict=True):
        crop[...] = _crop(image, mirror, np.random.default_rng([seed, view, row]))
    return crops


def choose_views(count: int, views: int, epoch: int, seed: int) -> Indices:
    """Choose the view of each training image in an epoch: each image goes through its views one after another.

    Args:
        count: The number of training images.
        views: The number of views.
        epoch: The epoch, from 1.
        seed: Decides the first view of each image.

    Returns:
        int64 (N,), each from 0 to ``views - 1``.
    """
    chosen: Indices = (np.random.default_rng(seed).permutation(count) + epoch) % views
    return chosen


def _crop(image: Pixels, mirror: bool, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Crop an image at random, uint8 (H, W, C), and resize it to its former size."""
    height, width = image.shape[:2]
    area, aspect = rng.uniform(MIN_AREA, 1), math.exp(rng.uniform(-1, 1) * math.log(MAX_ASPECT))
    crop_width, crop_height = (min(1, math.sqrt(area * ratio)) for ratio in (aspect, 1 / aspect))
    left, top = rng.uniform(0, 1 - crop_width), rng.uniform(0, 1 - crop_height)
    box = (left * width, top * height, (left + crop_width) * width, (top + crop_height) * height)
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if mirror and rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(picture).reshape(image.shape)
