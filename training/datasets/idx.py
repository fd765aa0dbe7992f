"""Reads IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from evalmode.errors import DataError
from evalmode.images.pixels import Pixels
from training.datasets.dataset import Split
from training.datasets.memory import check_memory
from training.datasets.published import Published, check_published, parse_published_labels

PREFIXES = {"train": "train", "test": "t10k"}  # split -> how the names of its files begin


def is_idx_folder(folder: Path) -> bool:
    """Return whether a folder holds the training images of an IDX data set."""
    return any(folder.glob("train-images-idx3-ubyte*"))


def read_idx(folder: Path, labels: tuple[str, ...] = ()) -> Published:
    """Read the four IDX files of a data set like MNIST, each plain or compressed with gzip.

    Args:
        folder: The folder of the files.
        labels: The class names. If empty, they are the lines of ``labels.txt`` in the folder; without such a file the
            numbers from 0.

    Returns:
        Training and test images.

    Raises:
        DataError: A file is missing or damaged, or the files contradict each other.
    """
    splits = {}
    for name, prefix in PREFIXES.items():
        images = _read_file(folder / f"{prefix}-images-idx3-ubyte", 3)[..., np.newaxis]
        targets = _read_file(folder / f"{prefix}-labels-idx1-ubyte", 1).astype(np.int64)
        splits[name] = Split(images, targets)
    if not labels and (folder / "labels.txt").exists():
        labels = parse_published_labels((folder / "labels.txt").read_bytes(), str(folder / "labels.txt"))
    return check_published(folder, labels, splits)


@contextmanager
def _open_file(plain: Path, dimensions: int) -> Iterator[tuple[Path, BufferedIOBase, tuple[int, ...]]]:
    """Open one file, gzipped or not, and read its header: yield its path, the values that follow, and their shape.

    The file begins with the bytes 0, 0, 8 (for uint8) and the number of dimensions; then come the sizes, each a
    big-endian uint32, and the values.
    """
    gzipped = plain.with_name(plain.name + ".gz")
    path = gzipped if gzipped.exists() else plain
    expected = bytes([0, 0, 8, dimensions])
    if not path.exists():
        raise DataError(f"{plain} is missing, and so is {gzipped.name}: all four IDX files are needed")
    try:
        with gzip.open(path) if path == gzipped else path.open("rb") as file:
            magic, sizes = file.read(4), file.read(4 * dimensions)
            if magic != expected or len(sizes) < 4 * dimensions:
                raise DataError(
                    f"{path} is not an IDX file: it begins with {magic.hex() or 'nothing'}, not {expected.hex()}"
                )
            yield path, file, struct.unpack(f">{dimensions}I", sizes)
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error


def _read_file(plain: Path, dimensions: int) -> Pixels:
    """Read the values of one file."""
    with _open_file(plain, dimensions) as (path, file, shape):
        check_memory(shape)  # the header is not trusted
        values = np.empty(math.prod(shape), np.uint8)
        count = file.readinto(values.data) + len(file.read(1))
    if count != len(values):
        found = f"{count:,}" if count < len(values) else "more"
        raise DataError(f"{path} holds {found} values, its header says {' x '.join(map(str, shape))}")
    return values.reshape(shape)
