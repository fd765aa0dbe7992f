"""Image folders: ``train/<class>/*`` with optional ``val/`` and ``test/``, or ``<class>/*``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from serving.errors import ImageError
from serving.limits import IMAGE_SUFFIXES, Limits
from serving.pixels import PixelContract, Pixels, decode_image, decode_whole, probe_image
from training.datasets.dataset import SPLITS, Dataset, Indices, Progress, Split, carve_missing, check_memory
from training.errors import DataError

Files = tuple[list[Path], Indices]  # images with the index of each one's label
Unreadable = dict[Path, str]  # files with the reason
T = TypeVar("T")

SMALL_FILE = 10_000  # bytes; measured in docs/performance.md
LIMITS = Limits(max_image_bytes=2**31 - 1, max_image_pixels=178_956_970)  # our own files, not strangers' requests


def load_folder(
    root: Path, image_size: tuple[int, int] | None, seed: int, skip_unreadable: bool, progress: Progress
) -> Dataset:
    """Decode every image of a folder once, into one array; which ones are carved is chosen before, by their names.

    Raises:
        DataError: too few classes or images, unreadable files, several sizes, or more pixels than memory.
    """
    labels, files = _list_files(root)
    paths, targets = files["train"]
    for name, rows in carve_missing(targets, files, labels, seed).items():
        files[name] = [paths[row] for row in rows], targets[rows]
    everything = [path for name in SPLITS for path in files[name][0]]
    unreadable: Unreadable = {}
    contract = _choose_contract(everything, image_size, unreadable)
    check_memory((len(everything), *contract.shape))
    pixels = _decode_all(everything, contract, image_size is not None, unreadable, progress)
    if unreadable and not skip_unreadable:
        raise _refuse(unreadable, len(everything))
    parts = np.split(pixels, np.cumsum([len(files[name][0]) for name in SPLITS])[:-1])  # views, not copies
    train, val, test = (
        _keep_readable(part, *files[name], unreadable) for name, part in zip(SPLITS, parts, strict=True)
    )
    warning = f"{len(unreadable)} unreadable images are left out: {'; '.join(_name_some(unreadable, 3))}"
    return Dataset(str(root), labels, train, val, test, (warning,) if unreadable else ())


def _keep_readable(pixels: Pixels, paths: list[Path], targets: Indices, unreadable: Unreadable) -> Split:
    readable = np.flatnonzero([path not in unreadable for path in paths])
    split = Split(pixels, targets, tuple(paths))
    return split.keep(readable) if unreadable else split


def _list_files(root: Path) -> tuple[tuple[str, ...], dict[str, Files]]:
    folders = {name: root / name for name in SPLITS if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": root}
    labels = _list_classes(folders["train"])
    return labels, {name: _list_images(folder, labels) for name, folder in folders.items()}


def _list_classes(folder: Path) -> tuple[str, ...]:
    labels = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(labels) < 2:
        raise DataError(f"{folder} holds {len(labels)} class folders, at least 2 are needed: <class>/<image>")
    return labels


def _list_images(folder: Path, labels: tuple[str, ...]) -> Files:
    """Every image of a split in a fixed order, with its label's index; every split knows the same labels."""
    unknown = set(_list_classes(folder)) - set(labels)
    if unknown:
        raise DataError(f"{folder} holds classes that train/ does not: {', '.join(sorted(unknown))}")
    paths: list[Path] = []
    targets: list[int] = []
    for target, label in enumerate(labels):
        found = sorted(p for p in (folder / label).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            raise DataError(f"{folder / label} holds no image ({suffixes}): add some or remove the class")
        paths += found
        targets += [target] * len(found)
    return paths, np.array(targets, np.int64)


def _choose_contract(
    paths: Sequence[Path], image_size: tuple[int, int] | None, unreadable: Unreadable
) -> PixelContract:
    """Grey if all images are; the size that was asked for, or that of the first that can be read."""
    probed = (_read_image(path, lambda image: probe_image(image, LIMITS), unreadable) for path in paths)
    shapes = filter(None, probed)
    first = next(shapes, None)
    if first is None:
        raise _refuse(unreadable, len(paths))
    channels = 3 if first.channels == 3 or any(shape.channels == 3 for shape in shapes) else 1
    return PixelContract(*(image_size or (first.height, first.width)), channels)


def _decode_all(
    paths: Sequence[Path], contract: PixelContract, resize: bool, unreadable: Unreadable, progress: Progress
) -> Pixels:
    """Decode every image into one array, uint8 (N, H, W, C); rows of unreadable files hold anything."""
    pixels = np.empty((len(paths), *contract.shape), np.uint8)

    def read(image: bytes) -> Pixels:
        return decode_image(image, contract, LIMITS) if resize else decode_whole(image, contract.channels, LIMITS)

    def decode(index: int) -> None:
        if paths[index] in unreadable:
            return
        decoded = _read_image(paths[index], read, unreadable)
        if decoded is not None and decoded.shape != contract.shape:
            first = next(path for path in paths if path not in unreadable)
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
    """Whether one thread decodes these files faster than several, which would wait for Python's lock."""
    sample = paths[:: -(-len(paths) // 100)]
    return median([path.stat().st_size for path in sample if path.is_file()] or [0]) < SMALL_FILE


def _read_image(path: Path, read: Callable[[bytes], T], unreadable: Unreadable) -> T | None:
    try:
        return read(path.read_bytes())
    except (ImageError, OSError) as error:
        unreadable[path] = str(error)
        return None


def _name_some(unreadable: Unreadable, count: int) -> list[str]:
    more = [f"and {len(unreadable) - count} more"] if len(unreadable) > count else []
    return [f"{path}: {unreadable[path]}" for path in sorted(unreadable)[:count]] + more


def _refuse(unreadable: Unreadable, total: int) -> DataError:
    todo = "repair or remove them, or leave them out with --skip-unreadable"
    return DataError(
        "\n  ".join([f"{len(unreadable)} of {total} images cannot be read: {todo}", *_name_some(unreadable, 10)])
    )
