"""Loads labelled images as arrays in three splits: from a folder, an archive, or the name of a published data set.

``catalog`` holds the named data sets and ``downloads`` fetches their files; ``idx``, ``cifar``, ``npz`` and ``digits``
read the published formats, ``folders`` reads image folders, and ``checks`` checks every data set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from evalmode.errors import DataError
from training.datasets.catalog import DATASETS, make_unknown
from training.datasets.checks import check_dataset
from training.datasets.cifar import read_cifar
from training.datasets.dataset import Dataset, Progress, ReadOptions, Split
from training.datasets.downloads import find_or_fetch
from training.datasets.folders import load_folder
from training.datasets.idx import read_idx
from training.datasets.labelled_files import is_image_folder
from training.datasets.near_duplicates import find_near_duplicates
from training.datasets.npz import read_npz
from training.datasets.published import Published, split_published
from training.datasets.storage import Storage, ignore_notice, read_blocks, release_pages
from training.datasets.survey import DEFAULT_OPTIONS, Survey, survey_data

__all__ = [
    "DATASETS",
    "Dataset",
    "Progress",
    "ReadOptions",
    "Split",
    "Survey",
    "find_near_duplicates",
    "load_dataset",
    "read_blocks",
    "release_pages",
    "survey_data",
]


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Report nothing.

    Args:
        stage: The stage.
        done: What is done.
        total: The total.
    """


def load_dataset(
    source: str,
    options: ReadOptions = DEFAULT_OPTIONS,
    seed: int = 0,
    *,
    cache: Path | None = None,
    progress: Progress = ignore_progress,
    notify: Callable[[str], None] = ignore_notice,
) -> Dataset:
    """Load a data set and check it.

    Pixels above 256 MiB, or above the available memory, are kept in a memory-mapped file without a name, which the
    system removes with the process.

    Args:
        source: A folder of images or of IDX files, an ``.npz`` file, CIFAR-10's binary archive, or a name in
            ``DATASETS``. A folder takes precedence over a name.
        options: How the images are read.
        seed: Decides which training images are carved for splits that the data do not have.
        cache: The folder that holds the files of a named data set, in a folder of that name; missing files are
            downloaded there. Required for every name except ``digits``. Files of pixels are kept there, too; without
            it, or if it is read-only, in the folder for temporary files.
        progress: Called with the stage ("downloading" in bytes, "decoding" in images), what is done, and the total.
        notify: Called with a sentence about the file of pixels, before anything is decoded.

    Returns:
        The data set; its warnings say what the user should know.

    Raises:
        DataError: The data do not exist, or cannot be used; the message says why and what to do.
        UsageError: A folder cannot be read.
    """
    storage = Storage(cache, notify)
    try:
        if is_image_folder(source, options):
            return check_dataset(load_folder(Path(source), options, seed, progress, storage))
        published = _read_published(source, cache, progress, storage)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    dataset = check_dataset(split_published(source, published, options.image_size, seed, storage))
    named = None if Path(source).is_dir() else DATASETS.get(source)
    return replace(dataset, has_characters=named is not None and named.has_characters)


def _read_published(source: str, cache: Path | None, progress: Progress, storage: Storage) -> Published:
    """Read a folder of IDX files, a named data set or an archive."""
    path = Path(source)
    if path.is_dir():
        return read_idx(path)
    if named := DATASETS.get(source):
        if named.files and cache is None:
            raise DataError(f"{source} is kept in a cache folder or downloaded into one: pass cache")
        folder = (cache or Path()) / source
        find_or_fetch(named.files, folder, progress)
        return named.read(folder, progress)
    if path.is_file() and path.suffix == ".npz":
        return read_npz(path, storage)
    if path.is_file() and path.name.endswith((".tar.gz", ".tgz")):
        return read_cifar(path, progress)
    raise make_unknown(source)
