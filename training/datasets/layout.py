"""Which files of a folder are the images of which split and label.

The layouts are ``train/<label>/*`` with optional ``val/`` and ``test/``, under their usual names, and ``<label>/*``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np

from evalmode.errors import DataError
from evalmode.images.folders import (
    SPLIT_NAMES,
    Found,
    describe_nested,
    describe_unread,
    find_images,
    list_folder,
    name_some,
    separate_images,
)
from evalmode.images.formats import IMAGE_SUFFIXES
from training.datasets.dataset import Indices

Files = tuple[list[Path], Indices]  # images, and the index of each one's label, int64 (N,)
Unread = tuple[list[Path], list[Path]]  # files that are not images, and images outside of the folders of labels


@dataclass(frozen=True, eq=False)
class Layout:
    """The images of a folder.

    Attributes:
        labels: The class names.
        files: The images of every split that the folder has; ``train`` is one of them.
        warnings: Sentences about files and folders that are not read.
    """

    labels: tuple[str, ...]
    files: dict[str, Files]
    warnings: tuple[str, ...]


def find_layout(root: Path) -> Layout:
    """List the images of a folder by split and label.

    Args:
        root: The folder.

    Returns:
        Its labels, images and warnings.

    Raises:
        DataError: The folder has no folders of labels, or its layout is ambiguous.
        UsageError: A folder cannot be read.
    """
    folders, files = list_folder(root)
    splits = _find_splits(root, folders)
    beside = separate_images([] if splits["train"] == root else files)
    unread = list(beside.others), list(beside.images)
    classes = _list_classes(splits["train"], unread)
    labels = tuple(path.name for path in classes)
    listed = {name: _list_images(folder, labels, unread) for name, folder in splits.items()}
    _check_depth(classes, *listed["train"])
    label_folders = [below for folder in splits.values() for below in list_folder(folder)[0]]
    nested = describe_nested([path for paths, _ in listed.values() for path in paths], label_folders)
    warnings = (*describe_unread(*unread), *nested)
    left_out = [str(folder) for folder in folders if folder not in splits.values()]
    if splits["train"] != root and left_out:
        warnings += (f"left out folders that are not splits: {', '.join(left_out)}",)
    return Layout(labels, listed, warnings)


def _find_splits(root: Path, folders: list[Path]) -> dict[str, Path]:
    """Find the folder of every split; ``train`` is the root if its folders are labels.

    A folder with the name of a split is a label of that name if it holds no folders and some other folder is not a
    split.
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
        found = ", ".join(folder.name for folder in folders)
        raise DataError(f"{root} holds {found} but no train: name the folder of the training images train")
    splits = {}
    for name, same in named.items():
        candidates = [folder for folder in same if folder in nested] or same
        if len(candidates) > 1:
            found = " and ".join(folder.name for folder in candidates)
            raise DataError(f"{root} holds {found}, which are the same split ({name}): put their images into one")
        splits[name] = candidates[0]
    return splits


def _check_depth(classes: Sequence[Path], paths: Sequence[Path], targets: Indices) -> None:
    """Check that folders of labels do not hold further labels or splits, which suggests that the root is wrong.

    Args:
        classes: The folders of labels.
        paths: The images in them.
        targets: The index of each image's label, int64 (N,).

    Raises:
        DataError: A folder of a label holds splits. Or all images lie in folders below those of the labels, and either
            several labels hold two folders of the same names, or one with the name of a split holds two.
    """
    inside: dict[Path, set[Path]] = {folder: set() for folder in classes}  # the relative folders of its images
    for path, target in zip(paths, targets.tolist(), strict=True):
        inside[classes[target]].add(path.parent.relative_to(classes[target]))
    deeper: dict[Path, dict[str, str]] = {}  # names in normal form and lower case -> as they are
    for folder, places in inside.items():
        found = {SPLIT_NAMES[part.casefold()] for place in places for part in place.parts if _is_split(part)}
        if "train" in found and len(found) > 1:
            raise DataError(
                f"{folder} would be a label but holds splits ({', '.join(sorted(found))}): give the folder that "
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
                f"{folder.parent} holds {some}, and in each of them are folders of images ({same}) that look like "
                "the labels. Name split folders train, val and test; otherwise put the images of each label into "
                "one folder, <label>/<image>"
            )


def _is_split(name: str) -> bool:
    return name.casefold() in SPLIT_NAMES


def _list_classes(folder: Path, unread: Unread) -> list[Path]:
    """List the folders of labels in a folder, at least two; other files are added to ``unread``."""
    folders, files = list_folder(folder)
    if len(folders) < 2:
        above = [only for only in folders if list_folder(only)[0]]
        hint = "".join(f"; the labels or splits must be directly in it, not in {only}" for only in above)
        if not folders and separate_images(files).images:
            hint = ", or --labels with a CSV table of files and labels"
        raise DataError(
            f"{folder} holds {len(folders)} folders of labels, at least 2 are needed: <label>/<image>{hint}"
        )
    beside = separate_images(files)
    for noted, paths in zip(unread, (beside.others, beside.images), strict=True):
        noted += [path for path in paths if path not in noted]
    return folders


def _list_images(folder: Path, labels: tuple[str, ...], unread: Unread) -> Files:
    """List the images of a split in a fixed order, each with the index of its label; other files go to ``unread``."""
    # In Unicode's normal form C: macOS names folders in form D.
    classes = {normalize("NFC", path.name): path for path in _list_classes(folder, unread)}
    unknown = classes.keys() - {normalize("NFC", label) for label in labels}
    if unknown:
        raise DataError(f"{folder} holds labels that train/ does not hold: {', '.join(sorted(unknown))}")
    paths: list[Path] = []
    targets: list[int] = []
    for target, label in enumerate(labels):
        path = classes.get(normalize("NFC", label))
        found = find_images(path) if path else Found((), ())
        if not found.images:
            suffixes = ", ".join(IMAGE_SUFFIXES)
            others = "".join(f"; {sentence}" for sentence in describe_unread(found.others))
            raise DataError(f"{folder / label} holds no images ({suffixes}): add some or remove the label{others}")
        unread[0].extend(found.others)
        paths += found.images
        targets += [target] * len(found.images)
    return paths, np.array(targets, np.int64)
