"""Reads NumPy archives in the layouts that Keras and MedMNIST publish."""

from __future__ import annotations

import math
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from evalmode.errors import DataError
from evalmode.images.pixels import Pixels
from training.datasets.dataset import SPLITS, Split
from training.datasets.memory import check_memory
from training.datasets.published import Published, check_published
from training.datasets.storage import Storage, read_blocks

KEYS = ("x_{}", "y_{}"), ("{}_images", "{}_labels")  # images and targets, as Keras and as MedMNIST name them
MAX_REASON = 200  # characters of an error of NumPy that are quoted


def read_npz(path: Path, storage: Storage) -> Published:
    """Read the arrays ``x_train`` and ``y_train``, optionally also ``_val`` and ``_test``.

    They may be named ``train_images``, ``train_labels`` and so on instead. Images are uint8 (N, H, W) or (N, H, W, C),
    targets integers (N,) or (N, 1). An optional array ``labels`` holds the class names.

    Args:
        path: The ``.npz`` file.
        storage: Where the pixels are kept.

    Returns:
        The splits in the file.

    Raises:
        DataError: The file is damaged, or its arrays are missing, of another type, or contradict each other.
    """
    with _open_archive(path) as archive:
        splits = {
            name: _read_pair(path, archive, (images, targets), storage) for name, images, targets in _list_keys(archive)
        }
        labels = tuple(archive["labels"].ravel().astype(str).tolist()) if "labels" in archive else ()
    return check_published(path, labels, splits)


@contextmanager
def _open_archive(path: Path) -> Iterator[Any]:
    """Open an archive; whatever goes wrong inside becomes a ``DataError``."""
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            yield archive
    except DataError:
        raise
    except Exception as error:  # numpy and zipfile raise a dozen types: ValueError, TokenError, OverflowError, ...
        raise DataError(f"{path} cannot be read as .npz: {_describe(error)}") from error


def _list_keys(archive: Any) -> list[tuple[str, str, str]]:
    """List the splits of an archive: the name, the key of the images, and that of the targets."""
    images, targets = next((keys for keys in KEYS if keys[0].format("train") in archive), KEYS[0])
    names = [name for name in SPLITS if name == "train" or images.format(name) in archive]
    return [(name, images.format(name), targets.format(name)) for name in names]


def _describe(error: Exception) -> str:
    """Return the first line of an error, shortened because it may quote a damaged header; else its type's name."""
    first, *_ = (*str(error).splitlines(), "")
    return textwrap.shorten(first, MAX_REASON) if first.strip() else type(error).__name__


def _read_pair(path: Path, archive: Any, keys: tuple[str, str], storage: Storage) -> Split:
    """Read the images and targets of one split, each after its size was checked."""
    images_key, targets_key = keys
    for key in keys:
        _check_key(path, archive, key)
    images = _read_images(path, archive, images_key, storage)
    check_memory((archive.zip.getinfo(f"{targets_key}.npy").file_size,))
    targets = archive[targets_key]
    if targets.dtype.kind not in "iu" or targets.shape[1:] not in ((), (1,)):
        needed = "one integer per image is needed, (N,) or (N, 1)"
        raise DataError(f"{path}: {targets_key} is {targets.dtype} {targets.shape}: {needed}")
    if targets.size and not 0 <= targets.min() <= targets.max() < 2**31:
        raise DataError(f"{path}: {targets_key} holds {targets.min()}..{targets.max()}: targets are counted from 0")
    return Split(images, targets.reshape(-1).astype(np.int64))


def _check_key(path: Path, archive: Any, key: str) -> None:
    """Raise ``DataError`` if an archive lacks an array."""
    if key not in archive:
        raise DataError(
            f"{path} lacks {key}; it holds {', '.join(archive) or 'nothing'}, and x_train, y_train, ... are needed"
        )


def _check_images(path: Path, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise ``DataError`` if an array does not hold images."""
    if dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
        needed = "uint8 (N, H, W) or (N, H, W, 1 or 3) is needed"
        raise DataError(f"{path}: {key} is {dtype} {shape}: {needed}")


def _read_images(path: Path, archive: Any, key: str, storage: Storage) -> Pixels:
    """Read images in blocks, uint8 (N, H, W, C), because they may not fit into memory."""
    with archive.zip.open(f"{key}.npy") as member:
        shape, is_fortran, dtype = _read_array_header(member)
        _check_images(path, key, shape, dtype)
        if is_fortran:
            check_memory(shape)
            images: Pixels = archive[key]
        else:
            size_bytes = archive.zip.getinfo(f"{key}.npy").file_size
            if size_bytes < math.prod(shape):
                raise DataError(
                    f"{path}: {key} has {size_bytes:,} bytes, its header says {' x '.join(map(str, shape))}"
                )
            images = storage.allocate(shape)
            for block in read_blocks(images):
                if member.readinto(block.reshape(-1).data) < block.size:
                    raise DataError(f"{path}: {key} is truncated")
    return images if images.ndim == 4 else images[..., np.newaxis]


def _read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of a ``.npy`` file: the shape, whether it is in Fortran's order, and the type."""
    version = npy.read_magic(file)
    return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
