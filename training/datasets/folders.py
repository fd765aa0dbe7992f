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
from serving.pixels import PixelContract, Pixels, decode_image, probe_image
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
    pixels = _decode_all(everything, contract, unreadable, progress)
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
    return Split(pixels, targets).keep(readable) if unreadable else Split(pixels, targets)


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
    """Grey if all images are; the size they all have unless one is asked for."""
    shapes: dict[PixelContract, Path] = {}
    for path in paths:
        if shape := _read_image(path, lambda image: probe_image(image, LIMITS), unreadable):
            shapes.setdefault(shape, path)
    if not shapes:
        raise _refuse(unreadable, len(paths))
    sizes = {(shape.height, shape.width): path for shape, path in shapes.items()}
    if image_size is None and len(sizes) > 1:
        (first, one), (second, other), *_ = sizes.items()
        raise DataError(
            f"images differ in size ({one} is {first[0]}x{first[1]}, {other} {second[0]}x{second[1]}, height x width): "
            "choose one with --image-size HxW"
        )
    return PixelContract(*(image_size or next(iter(sizes))), max(shape.channels for shape in shapes))


def _decode_all(paths: Sequence[Path], contract: PixelContract, unreadable: Unreadable, progress: Progress) -> Pixels:
    """Decode every image into one array, uint8 (N, H, W, C); rows of unreadable files hold anything."""
    pixels = np.empty((len(paths), *contract.shape), np.uint8)

    def decode(index: int) -> None:
        if paths[index] not in unreadable:
            decoded = _read_image(paths[index], lambda image: decode_image(image, contract, LIMITS), unreadable)
            pixels[index] = 0 if decoded is None else decoded

    with ThreadPoolExecutor(cpu_count()) as pool:
        run = map if _are_small(paths) else pool.map
        for done, _ in enumerate(run(decode, range(len(paths))), 1):
            progress("decoding", done, len(paths))
    return pixels


def _are_small(paths: Sequence[Path]) -> bool:
    """Whether one thread decodes these files faster than several, which would wait for Python's lock."""
    return median(path.stat().st_size for path in paths[:: -(-len(paths) // 100)]) < SMALL_FILE


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
