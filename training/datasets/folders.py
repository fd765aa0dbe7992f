"""Loads folders of images: every image is decoded once, into one array."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from statistics import median, median_low

import numpy as np

from evalmode.images.headers import Header
from evalmode.images.pixels import PixelContract, Pixels, decode_by_header, probe_header
from training.datasets.carving import carve_missing
from training.datasets.dataset import SPLITS, Dataset, Indices, Progress, ReadOptions, Split
from training.datasets.image_files import ImageReader
from training.datasets.labelled_files import list_images
from training.datasets.storage import Storage, count_rows, release_pages

SMALL_FILE_BYTES = 10_000  # measured in docs/performance.md
MAX_SQUARE = 128  # pixels: the largest side of the squares that images of several sizes become without --image-size


def load_folder(root: Path, options: ReadOptions, seed: int, progress: Progress, storage: Storage) -> Dataset:
    """Load the images of a folder.

    Images for missing splits are chosen by their file names, before anything is decoded.

    Args:
        root: The folder.
        options: How images are read.
        seed: Decides which images are carved for missing splits.
        progress: Called with "decoding", the number of images decoded and their total.
        storage: Where the pixels are kept.

    Returns:
        The data set with all three splits.

    Raises:
        DataError: There are too few classes or images, unreadable files, or more pixels than space on the disk.
        UsageError: A folder cannot be read.
    """
    layout = list_images(root, options)
    files, (paths, targets) = dict(layout.files), layout.files["train"]
    carved = tuple(name for name in SPLITS if name not in files)
    for name, rows in carve_missing(targets, files, layout.labels, seed).items():
        files[name] = [paths[row] for row in rows], targets[rows]
    everything = [path for name in SPLITS for path in files[name][0]]
    reader = ImageReader(options.limits)
    contract, resized = _choose_contract(everything, options, reader)
    pixels = storage.allocate((len(everything), *contract.shape))
    _decode_all(everything, contract, pixels, reader, progress)
    if reader.unreadable and not options.skip_unreadable:
        raise reader.make_error(len(everything))
    parts = np.split(pixels, np.cumsum([len(files[name][0]) for name in SPLITS])[:-1])  # views, not copies
    train, val, test = (_keep_readable(part, *files[name], reader) for name, part in zip(SPLITS, parts, strict=True))
    warnings = (*layout.warnings, *resized, *reader.describe_damage())
    return Dataset(str(root), layout.labels, train, val, test, warnings, options.resize, carved)


def _keep_readable(pixels: Pixels, paths: list[Path], targets: Indices, reader: ImageReader) -> Split:
    split, unreadable = Split(pixels, targets, tuple(paths)), reader.unreadable
    return split.keep(np.flatnonzero([path not in unreadable for path in paths])) if unreadable else split


def _choose_contract(
    paths: Sequence[Path], options: ReadOptions, reader: ImageReader
) -> tuple[PixelContract, tuple[str, ...]]:
    """Choose the pixels of a data set: grey if all images are grey, and a size.

    Returns:
        The pixels, and a sentence if images of several sizes become squares.

    Raises:
        DataError: No image is readable.
    """
    probed = filter(None, (reader.read(path, probe_header) for path in paths))
    first = next(probed, None)
    if first is None:
        raise reader.make_error(len(paths))
    if options.image_size:  # the headers of the rest are read until one is not grey
        channels = 3 if first.channels == 3 or any(shape.channels == 3 for shape in probed) else 1
        return PixelContract(*options.image_size, channels, options.resize), ()
    shapes = [first, *probed]
    channels = max(shape.channels for shape in shapes)
    sizes = [(shape.height, shape.width) for shape in shapes]
    if len(set(sizes)) == 1:
        return PixelContract(*sizes[0], channels, options.resize), ()
    side = min(median_low(map(min, sizes)), MAX_SQUARE)
    (low_height, low_width), (high_height, high_width) = min(sizes), max(sizes)
    sentence = (
        f"images differ in size, from {low_height}x{low_width} to {high_height}x{high_width}: they become squares of "
        f"{side}x{side} pixels. Choose another size with --image-size HxW"
    )
    return PixelContract(side, side, channels, options.resize), (sentence,)


def _decode_all(
    paths: Sequence[Path], contract: PixelContract, pixels: Pixels, reader: ImageReader, progress: Progress
) -> None:
    """Decode every image into ``pixels``, uint8 (N, H, W, C); rows of unreadable files stay undefined."""

    def read(header: Header) -> Pixels:
        return decode_by_header(header, contract)

    def decode(index: int) -> None:
        if paths[index] not in reader.unreadable:
            decoded = reader.read(paths[index], read)
            if decoded is not None:
                pixels[index] = decoded

    step = count_rows(pixels)
    with ThreadPoolExecutor(cpu_count()) as pool:
        run = map if _are_small(paths) else pool.map
        for done, _ in enumerate(run(decode, range(len(paths))), 1):
            progress("decoding", done, len(paths))
            if done % step == 0:
                release_pages(pixels)
    release_pages(pixels)


def _are_small(paths: Sequence[Path]) -> bool:
    """Return whether one thread decodes these files faster than several, which would wait for Python's lock."""
    sample = paths[:: -(-len(paths) // 100)]
    return median([path.stat().st_size for path in sample if path.is_file()] or [0]) < SMALL_FILE_BYTES
