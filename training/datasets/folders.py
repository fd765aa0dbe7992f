"""Image folders: ``train/<class>/*`` with optional ``val/`` and ``test/``, by their usual names, or ``<class>/*``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from statistics import median
from typing import TypeVar
from unicodedata import normalize

import numpy as np

from evalmode.errors import ImageError
from evalmode.images.folders import (
    Found,
    describe_nested,
    describe_unread,
    find_images,
    list_folder,
    name_some,
    separate_images,
)
from evalmode.images.formats import IMAGE_SUFFIXES
from evalmode.images.headers import Header, read_header
from evalmode.images.pixels import PixelContract, Pixels, decode_by_header, decode_whole_by_header, probe_header
from evalmode.limits import OWN_IMAGES, Limits
from training.datasets.dataset import SPLITS, Dataset, Indices, Progress, Split, carve_missing, check_memory
from training.errors import DataError

Files = tuple[list[Path], Indices]  # images with the index of each one's label
Unread = tuple[list[Path], list[Path]]  # files that are no images, and images in no class's folder
Unreadable = dict[Path, str]  # files with the reason
T = TypeVar("T")

SPLIT_NAMES = {  # what folders of splits are called, in any case -> the split
    **dict.fromkeys(("train", "training", "trainset", "train_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "valset", "val_set", "validation_set"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "test_set"), "test"),
}
SMALL_FILE = 10_000  # bytes; measured in docs/performance.md


def load_folder(
    root: Path,
    image_size: tuple[int, int] | None,
    seed: int,
    skip_unreadable: bool,
    progress: Progress,
    limits: Limits = OWN_IMAGES,
) -> Dataset:
    """Decode every image of a folder once, into one array; which ones are carved is chosen before, by their names.

    Args:
        root: the folder.
        image_size: (height, width) to bring the images to; None: they all have one.
        seed: decides which are carved.
        skip_unreadable: leave out files that cannot be read.
        progress: told what is done.
        limits: how large an image may be.

    Raises:
        DataError: too few classes or images, unreadable files, several sizes, or more pixels than memory.
        UsageError: a folder cannot be read.
    """
    labels, files, warnings = _list_files(root)
    paths, targets = files["train"]
    for name, rows in carve_missing(targets, files, labels, seed).items():
        files[name] = [paths[row] for row in rows], targets[rows]
    everything = [path for name in SPLITS for path in files[name][0]]
    reader = _Reader(limits)
    contract = _choose_contract(everything, image_size, reader)
    check_memory((len(everything), *contract.shape))
    pixels = _decode_all(everything, contract, image_size is not None, reader, progress)
    unreadable = reader.unreadable
    if unreadable and not skip_unreadable:
        raise _refuse(unreadable, len(everything))
    parts = np.split(pixels, np.cumsum([len(files[name][0]) for name in SPLITS])[:-1])  # views, not copies
    train, val, test = (
        _keep_readable(part, *files[name], unreadable) for name, part in zip(SPLITS, parts, strict=True)
    )
    if unreadable:
        warnings += (f"{len(unreadable)} unreadable images are left out: {'; '.join(_name_some(unreadable, 3))}",)
    if damaged := sorted(set(reader.exif_damaged)):
        images = (
            "1 image has a damaged EXIF block and is"
            if len(damaged) == 1
            else (f"{len(damaged)} images have damaged EXIF blocks and are")
        )
        warnings += (f"{images} taken as upright: {name_some(damaged)}",)
    return Dataset(str(root), labels, train, val, test, warnings)


class _Reader:
    """Reads files within limits, and keeps why some cannot be read, and which may have lost their orientation."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.unreadable: Unreadable = {}
        self.exif_damaged: list[Path] = []

    def read(self, path: Path, decode: Callable[[Header], T]) -> T | None:
        try:
            header = read_header(path.read_bytes(), self.limits)
            decoded = decode(header)
            if header.exif_damaged:
                self.exif_damaged.append(path)
            return decoded
        except (ImageError, OSError) as error:
            self.unreadable[path] = str(error)
            return None


def _keep_readable(pixels: Pixels, paths: list[Path], targets: Indices, unreadable: Unreadable) -> Split:
    split = Split(pixels, targets, tuple(paths))
    return split.keep(np.flatnonzero([path not in unreadable for path in paths])) if unreadable else split


def _list_files(root: Path) -> tuple[tuple[str, ...], dict[str, Files], tuple[str, ...]]:
    """Labels, the files of every split that is there, and warnings of what is not read."""
    folders, files = list_folder(root)
    splits = _find_splits(root, folders)
    beside = separate_images([] if splits["train"] == root else files)
    unread = list(beside.others), list(beside.images)
    classes = _list_classes(splits["train"], unread)
    labels = tuple(path.name for path in classes)
    listed = {name: _list_images(folder, labels, unread) for name, folder in splits.items()}
    _check_layout(classes, *listed["train"])
    label_folders = [below for folder in splits.values() for below in list_folder(folder)[0]]
    nested = describe_nested([path for paths, _ in listed.values() for path in paths], label_folders)
    warnings = (*describe_unread(*unread), *nested)
    left_out = [str(folder) for folder in folders if folder not in splits.values()]
    if splits["train"] != root and left_out:
        warnings += (f"left out folders that are no split: {', '.join(left_out)}",)
    return labels, listed, warnings


def _find_splits(root: Path, folders: list[Path]) -> dict[str, Path]:
    """The folder of every split that is there; ``train`` is the root where its folders are those of classes.

    A folder that is named like a split is a class of that name where it holds no folders and others are no splits.
    """
    named: dict[str, list[Path]] = {}
    for folder in folders:
        if split := SPLIT_NAMES.get(folder.name.casefold()):
            named.setdefault(split, []).append(folder)
    if not named:
        return {"train": root}
    nested = {folder for same in named.values() for folder in same if list_folder(folder)[0]}
    only_splits = len(folders) == sum(map(len, named.values()))
    if not nested.intersection(named.get("train", ())) and not only_splits:
        return {"train": root}
    if "train" not in named:
        if not nested:
            return {"train": root}
        there = ", ".join(folder.name for folder in folders)
        raise DataError(f"{root} holds {there} and no train: name the folder of the training images train")
    splits = {}
    for name, same in named.items():
        candidates = [folder for folder in same if folder in nested] or same
        if len(candidates) > 1:
            there = " and ".join(folder.name for folder in candidates)
            raise DataError(f"{root} holds {there}, which are the same split ({name}): put their images into one")
        splits[name] = candidates[0]
    return splits


def _check_layout(classes: Sequence[Path], paths: Sequence[Path], targets: Indices) -> None:
    """Refuse folders of classes that hold further classes or splits: they are splits, or the root is a wrong one.

    Args:
        classes: the folders.
        paths: the images in them.
        targets: the index of each one's class.

    Raises:
        DataError: a folder holds splits; several hold the same two folders, or one that is named like a split holds
            two, where all of their images lie.
    """
    inside: dict[Path, set[Path]] = {folder: set() for folder in classes}  # where its images lie
    for path, target in zip(paths, targets.tolist(), strict=True):
        inside[classes[target]].add(path.parent.relative_to(classes[target]))
    deeper: dict[Path, dict[str, str]] = {}  # the names in normal form and any case -> as they are
    for folder, places in inside.items():
        found = {SPLIT_NAMES[part.casefold()] for place in places for part in place.parts if _is_split(part)}
        if "train" in found and len(found) > 1:
            raise DataError(
                f"{folder} would be a label and holds splits ({', '.join(sorted(found))}): give the folder that "
                "holds train, or put the splits above the labels, train/<label>/<image>"
            )
        if Path() not in places:
            deeper[folder] = {normalize("NFC", place.name).casefold(): place.name for place in places}
    for folder, names in deeper.items():
        like = [other for other in deeper if len(names.keys() & deeper[other].keys()) > 1]
        words = re.split("[^a-z]+", folder.name.casefold())
        if len(like) > 1 or (like and any(map(_is_split, words))):
            same = name_some([Path(names[key]) for key in sorted(names)])
            some = " and ".join(other.name for other in like[:3])
            raise DataError(
                f"{folder.parent} holds {some}, and in each lie folders of images ({same}), which look like "
                "the labels: name the folders of splits train, val and test; else put the images of each label into "
                "one folder, <label>/<image>"
            )


def _is_split(name: str) -> bool:
    return name.casefold() in SPLIT_NAMES


def _list_classes(folder: Path, unread: Unread) -> list[Path]:
    """The folders of classes, two at least; what lies beside them is noted."""
    folders, files = list_folder(folder)
    if len(folders) < 2:
        above = [only for only in folders if list_folder(only)[0]]
        hint = "".join(f"; the labels or splits must lie directly in it, and not in {only}" for only in above)
        raise DataError(f"{folder} holds {len(folders)} class folders, at least 2 are needed: <class>/<image>{hint}")
    beside = separate_images(files)
    for noted, paths in zip(unread, (beside.others, beside.images), strict=True):
        noted += [path for path in paths if path not in noted]
    return folders


def _list_images(folder: Path, labels: tuple[str, ...], unread: Unread) -> Files:
    """Every image of a split in a fixed order, with its label's index; every split knows the same labels."""
    # In Unicode's normal form C: macOS names folders in form D.
    classes = {normalize("NFC", path.name): path for path in _list_classes(folder, unread)}
    unknown = classes.keys() - {normalize("NFC", label) for label in labels}
    if unknown:
        raise DataError(f"{folder} holds classes that train/ does not: {', '.join(sorted(unknown))}")
    paths: list[Path] = []
    targets: list[int] = []
    for target, label in enumerate(labels):
        path = classes.get(normalize("NFC", label))
        found = find_images(path) if path else Found((), ())
        if not found.images:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            others = "".join(f"; {sentence}" for sentence in describe_unread(found.others))
            raise DataError(f"{folder / label} holds no image ({suffixes}): add some or remove the class{others}")
        unread[0].extend(found.others)
        paths += found.images
        targets += [target] * len(found.images)
    return paths, np.array(targets, np.int64)


def _choose_contract(paths: Sequence[Path], image_size: tuple[int, int] | None, reader: _Reader) -> PixelContract:
    """Grey if all images are; the size that was asked for, or that of the first that can be read."""
    probed = (reader.read(path, probe_header) for path in paths)
    shapes = filter(None, probed)
    first = next(shapes, None)
    if first is None:
        raise _refuse(reader.unreadable, len(paths))
    channels = 3 if first.channels == 3 or any(shape.channels == 3 for shape in shapes) else 1
    return PixelContract(*(image_size or (first.height, first.width)), channels)


def _decode_all(
    paths: Sequence[Path], contract: PixelContract, resize: bool, reader: _Reader, progress: Progress
) -> Pixels:
    """Decode every image into one array, uint8 (N, H, W, C); rows of unreadable files hold anything."""
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
    """Whether one thread decodes these files faster than several, which would wait for Python's lock."""
    sample = paths[:: -(-len(paths) // 100)]
    return median([path.stat().st_size for path in sample if path.is_file()] or [0]) < SMALL_FILE


def _name_some(unreadable: Unreadable, count: int) -> list[str]:
    more = [f"and {len(unreadable) - count} more"] if len(unreadable) > count else []
    return [f"{path}: {unreadable[path]}" for path in sorted(unreadable)[:count]] + more


def _refuse(unreadable: Unreadable, total: int) -> DataError:
    todo = "repair or remove them, or leave them out with --skip-unreadable"
    return DataError(
        "\n  ".join([f"{len(unreadable)} of {total} images cannot be read: {todo}", *_name_some(unreadable, 10)])
    )
