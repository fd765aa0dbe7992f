"""Labelled images as arrays, in three splits, from wherever they lie: a path or a name in, a checked ``Dataset`` out.

``folders`` reads image folders, ``published`` the formats that data sets are published in, ``downloads`` brings them,
``checks`` removes copies and finds what a user should know; ``dataset`` is what all of them speak of.
"""

from __future__ import annotations

from pathlib import Path

from evalmode.limits import OWN_IMAGES, Limits
from training.datasets.checks import check_dataset
from training.datasets.dataset import Dataset, Progress, Split, available_memory_bytes
from training.datasets.downloads import SOURCES, find_or_fetch
from training.datasets.folders import load_folder
from training.datasets.published import (
    FASHION_LABELS,
    Published,
    read_cifar,
    read_digits,
    read_idx,
    read_npz,
    split_published,
)
from training.errors import DataError

__all__ = ["DIGITS", "Dataset", "Progress", "Split", "available_memory_bytes", "load_dataset"]

DIGITS = "digits"


def load_dataset(
    source: str,
    image_size: tuple[int, int] | None = None,
    seed: int = 0,
    *,
    skip_unreadable: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
    limits: Limits = OWN_IMAGES,
) -> Dataset:
    """Load a data set into memory and check it.

    Args:
        source: a folder of images or of IDX files, an ``.npz``, CIFAR-10's binary archive, or a name: ``digits``,
            ``mnist``, ``fashion-mnist``, ``cifar10``. A folder goes before a name.
        image_size: (height, width) to bring the images of a folder to; by default the size they all have.
        seed: decides which images are carved for a split that the data do not bring.
        skip_unreadable: leave unreadable files of a folder out, with a warning, instead of refusing them.
        cache: where a name's files lie, in a folder of that name, or are downloaded to; ``digits`` need none.
        progress: told what is done ("downloading" bytes, "decoding" images), how many, and of how many.
        limits: how large an image of a folder may be; by default what Pillow would take.

    Raises:
        DataError: no such data, or they cannot be used as they are; it says why and what to do.
    """
    path, progress = Path(source), progress or (lambda what, done, total: None)
    try:
        if path.is_dir() and not any(path.glob("train-images-idx3-ubyte*")):
            return check_dataset(load_folder(path, image_size, seed, skip_unreadable, progress, limits))
        published = _read_published(source, cache, progress)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    return check_dataset(split_published(source, published, image_size, seed))


def _read_published(source: str, cache: Path | None, progress: Progress) -> Published:
    path = Path(source)
    if path.is_dir():
        return read_idx(path)
    if source == DIGITS:
        return read_digits()
    if source in SOURCES:
        if cache is None:
            raise DataError(f"{source} lies in a cache or is downloaded into one: say where (cache)")
        found = find_or_fetch(source, cache, progress)
        labels = FASHION_LABELS if source == "fashion-mnist" else ()
        return read_cifar(found, progress) if found.is_file() else read_idx(found, labels)
    if path.is_file() and path.suffix == ".npz":
        return read_npz(path)
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        return read_cifar(path, progress)
    names = ", ".join(map(repr, (DIGITS, *SOURCES)))
    raise DataError(f"{source} is no folder, no .npz, no .tar.gz and no data set's name: give one, or {names}")
