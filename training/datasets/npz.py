"""Reads NumPy archives in the layouts that Keras and MedMNIST publish."""

from __future__ import annotations

import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets.dataset import SPLITS, Split
from training.datasets.memory import check_memory
from training.datasets.published import Published, check_published
from training.errors import DataError

KEYS = ("x_{}", "y_{}"), ("{}_images", "{}_labels")  # images and targets, as Keras and as MedMNIST name them
MAX_REASON = 200  # characters of an error of NumPy that are quoted


def read_npz(path: Path) -> Published:
    """Read the arrays ``x_train`` and ``y_train``, optionally also ``_val`` and ``_test``.

    They may be named ``train_images``, ``train_labels`` and so on instead. Images are uint8 (N, H, W) or (N, H, W, C),
    targets integers (N,) or (N, 1). An optional array ``labels`` holds the class names.

    Args:
        path: The ``.npz`` file.

    Returns:
        The splits in the file.

    Raises:
        DataError: The file is damaged, or its arrays are missing, of another type, or contradict each other.
    """
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            images, targets = next((keys for keys in KEYS if keys[0].format("train") in archive), KEYS[0])
            names = [name for name in SPLITS if name == "train" or images.format(name) in archive]
            splits = {name: _read_pair(archive, images.format(name), targets.format(name), path) for name in names}
            labels = tuple(archive["labels"].ravel().astype(str).tolist()) if "labels" in archive else ()
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen types: ValueError, TokenError, OverflowError, ...
        raise DataError(f"{path} cannot be read as .npz: {_describe(error)}") from error
    return check_published(path, labels, splits)


def _describe(error: Exception) -> str:
    """Return the first line of an error, shortened because it may quote a damaged header; else its type's name."""
    first, *_ = (*str(error).splitlines(), "")
    return textwrap.shorten(first, MAX_REASON) if first.strip() else type(error).__name__


def _read_pair(archive: Any, images_key: str, targets_key: str, path: Path) -> Split:
    """Read the images and targets of one split, each after its size was checked."""
    for key in (images_key, targets_key):
        if key not in archive:
            raise DataError(
                f"{path} lacks {key}; it holds {', '.join(archive) or 'nothing'}, and x_train, y_train, ... are needed"
            )
        check_memory((archive.zip.getinfo(f"{key}.npy").file_size,))
    images, targets = archive[images_key], archive[targets_key]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        needed = "uint8 (N, H, W) or (N, H, W, 1 or 3) is needed"
        raise DataError(f"{path}: {images_key} is {images.dtype} {images.shape}: {needed}")
    if targets.dtype.kind not in "iu" or targets.shape[1:] not in ((), (1,)):
        needed = "one integer per image is needed, (N,) or (N, 1)"
        raise DataError(f"{path}: {targets_key} is {targets.dtype} {targets.shape}: {needed}")
    if targets.size and not 0 <= targets.min() <= targets.max() < 2**31:
        raise DataError(f"{path}: {targets_key} holds {targets.min()}..{targets.max()}: targets are counted from 0")
    return Split(images if images.ndim == 4 else images[..., np.newaxis], targets.reshape(-1).astype(np.int64))
