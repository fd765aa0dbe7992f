"""Loads folders of images: every image is decoded once, into one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from evalmode.errors import ImageError
from evalmode.images.folders import name_some
from evalmode.images.headers import Header, read_header
from evalmode.images.pixels import (
    PixelContract,
    Pixels,
    decode_by_header,
    decode_whole_by_header,
    probe_header,
)
from evalmode.limits import Limits
from training.datasets.carving import carve_missing
from training.datasets.dataset import SPLITS, Dataset, Indices, Progress, ReadOptions, Split
from training.datasets.layout import find_layout
from training.datasets.memory import check_memory
from training.errors import DataError

Unreadable = dict[Path, str]  # files with the reason
T = TypeVar("T")

SMALL_FILE_BYTES = 10_000  # measured in docs/performance.md


def load_folder(root: Path, options: ReadOptions, seed: int, progress: Progress) -> Dataset:
    """Load the images of a folder.

    Images for missing splits are chosen by their file names, before anything is decoded.

    Args:
        root: The folder.
        options: How images are read.
        seed: Decides which images are carved for missing splits.
        progress: Called with "decoding", the number of images decoded and their total.

    Returns:
        The data set with all three splits.

    Raises:
        DataError: There are too few classes or images, unreadable files, images of several sizes, or more pixels than
            memory.
        UsageError: A folder cannot be read.
    """
    layout = find_layout(root)
    files, (paths, targets) = dict(layout.files), layout.files["train"]
    for name, rows in carve_missing(targets, files, layout.labels, seed).items():
        files[name] = [paths[row] for row in rows], targets[rows]
    everything = [path for name in SPLITS for path in files[name][0]]
    reader = _Reader(options.limits)
    contract = _choose_contract(everything, options.image_size, reader)
    check_memory((len(everything), *contract.shape))
    pixels = _decode_all(everything, contract, options.image_size is not None, reader, progress)
    unreadable = reader.unreadable
    if unreadable and not options.skip_unreadable:
        raise _make_error(unreadable, len(everything))
    parts = np.split(pixels, np.cumsum([len(files[name][0]) for name in SPLITS])[:-1])  # views, not copies
    train, val, test = (
        _keep_readable(part, *files[name], unreadable) for name, part in zip(SPLITS, parts, strict=True)
    )
    return Dataset(str(root), layout.labels, train, val, test, (*layout.warnings, *reader.describe_damage()))


class _Reader:
    """Reads image files within limits, and records those that are unreadable or have a damaged EXIF block."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.unreadable: Unreadable = {}
        self.exif_damaged: list[Path] = []

    def read(self, path: Path, decode: Callable[[Header], T]) -> T | None:
        """Read a file and decode it; None if that fails, with the reason in ``unreadable``."""
        try:
            header = read_header(path.read_bytes(), self.limits)
            decoded = decode(header)
            if header.exif_damaged:
                self.exif_damaged.append(path)
            return decoded
        except (ImageError, OSError) as error:
            self.unreadable[path] = str(error)
            return None

    def describe_damage(self) -> tuple[str, ...]:
        """Return warnings about the files that were recorded."""
        warnings: tuple[str, ...] = ()
        if self.unreadable:
            named = "; ".join(_name_some(self.unreadable, 3))
            warnings += (f"{len(self.unreadable)} unreadable images are left out: {named}",)
        if damaged := sorted(set(self.exif_damaged)):
            images = (
                "1 image has a damaged EXIF block and is"
                if len(damaged) == 1
                else f"{len(damaged)} images have damaged EXIF blocks and are"
            )
            warnings += (f"{images} assumed to be upright: {name_some(damaged)}",)
        return warnings


def _keep_readable(pixels: Pixels, paths: list[Path], targets: Indices, unreadable: Unreadable) -> Split:
    split = Split(pixels, targets, tuple(paths))
    return split.keep(np.flatnonzero([path not in unreadable for path in paths])) if unreadable else split


def _choose_contract(paths: Sequence[Path], image_size: tuple[int, int] | None, reader: _Reader) -> PixelContract:
    """Choose grey if all images are grey, and the requested size or that of the first readable image."""
    probed = (reader.read(path, probe_header) for path in paths)
    shapes = filter(None, probed)
    first = next(shapes, None)
    if first is None:
        raise _make_error(reader.unreadable, len(paths))
    channels = 3 if first.channels == 3 or any(shape.channels == 3 for shape in shapes) else 1
    return PixelContract(*(image_size or (first.height, first.width)), channels)


def _decode_all(
    paths: Sequence[Path], contract: PixelContract, resize: bool, reader: _Reader, progress: Progress
) -> Pixels:
    """Decode every image into one array, uint8 (N, H, W, C); rows of unreadable files are undefined."""
    pixels = np.empty((len(paths), *contract.shape), np.uint8)

    def read(header: Header) -> Pixels:
        return decode_by_header(header, contract) if resize else decode_whole_by_header(header, contract.channels)

    def decode(index: int) -> None:
        if paths[index] in reader.unreadable:
            return
        decoded = reader.read(paths[index], read)
        if decoded is not None and decoded.shape != contract.shape:
            first = next(path for path in paths if path not in reader.unreadable)
            raise DataError(
                f"images differ in size ({first} is {contract.height}x{contract.width}, {paths[index]} "
                f"{decoded.shape[0]}x{decoded.shape[1]}, height x width): choose one with --image-size HxW"
            )
        pixels[index] = 0 if decoded is None else decoded

    with ThreadPoolExecutor(cpu_count()) as pool:
        run = map if _are_small(paths) else pool.map
        for done, _ in enumerate(run(decode, range(len(paths))), 1):
            progress("decoding", done, len(paths))
    return pixels


def _are_small(paths: Sequence[Path]) -> bool:
    """Return whether one thread decodes these files faster than several, which would wait for Python's lock."""
    sample = paths[:: -(-len(paths) // 100)]
    return median([path.stat().st_size for path in sample if path.is_file()] or [0]) < SMALL_FILE_BYTES


def _name_some(unreadable: Unreadable, count: int) -> list[str]:
    """Return the first few files, each with its reason, and how many more there are."""
    more = [f"and {len(unreadable) - count} more"] if len(unreadable) > count else []
    return [f"{path}: {unreadable[path]}" for path in sorted(unreadable)[:count]] + more


def _make_error(unreadable: Unreadable, total: int) -> DataError:
    todo = "repair or remove them, or leave them out with --skip-unreadable"
    return DataError(
        "\n  ".join([f"{len(unreadable)} of {total} images cannot be read: {todo}", *_name_some(unreadable, 10)])
    )
