"""What is checked of every data set: images under several labels, copies across splits, empty and uneven classes."""

from __future__ import annotations

import hashlib
import math
import unicodedata
from dataclasses import replace

import numpy as np

from training.datasets.dataset import SPLITS, Dataset, Split
from training.errors import DataError

NAMED = 3  # images under several labels that are named; the rest is counted
UNEVEN = 2  # a class with more than this many times the images of another is worth a word


def check_dataset(dataset: Dataset) -> Dataset:
    """Leave copies out (test wins over val, val over train; arrays are reused), and warn of what a user should know.

    Raises:
        DataError: a class has no image in a split, maybe because all of them were copies, or a label cannot be one.
    """
    check_labels(dataset)
    hashes = {name: _hash_images(getattr(dataset, name)) for name in SPLITS}
    dataset = _drop_copies(_find_contradictions(dataset, hashes), hashes)
    counts = {name: np.bincount(getattr(dataset, name).targets, minlength=len(dataset.labels)) for name in SPLITS}
    for name, count in counts.items():
        if count.min() == 0:
            why = "".join(f" ({warning})" for warning in dataset.warnings)
            label = dataset.labels[count.argmin()]
            raise DataError(f"class {label!r} has no {name} image: add some or remove the class{why}")
    most, least = counts["train"].argmax(), counts["train"].argmin()
    if counts["train"][most] <= UNEVEN * counts["train"][least]:
        return dataset
    figures = [f"{dataset.labels[index]!r} has {counts['train'][index]:,} training images" for index in (most, least)]
    uneven = f"classes are uneven, {' and '.join(figures)}: --balance gives every class the same weight"
    return replace(dataset, warnings=(*dataset.warnings, uneven))


def check_labels(dataset: Dataset) -> None:
    """Labels are answered by the server and stand in the file: they are text, and no two look alike.

    Raises:
        DataError: one is not UTF-8, or two differ in their code points alone.
    """
    seen: dict[str, str] = {}
    for label in dataset.labels:
        if any("\ud800" <= letter <= "\udfff" for letter in label):
            raise DataError(f"{dataset.source}: the label {label!r} is not UTF-8: rename its folder")
        other = seen.setdefault(unicodedata.normalize("NFC", label), label)
        if other is not label:
            raise DataError(
                f"{dataset.source}: the labels {other!a} and {label!a} look alike, they differ in Unicode's "
                "normal form alone: put the images into one folder"
            )


def _find_contradictions(dataset: Dataset, hashes: dict[str, list[bytes]]) -> Dataset:
    """Warn of images of equal pixels that have several labels: at most one of these can be right."""
    first: dict[bytes, tuple[str, int]] = {}
    pairs: dict[bytes, str] = {}
    for name in SPLITS:
        split = getattr(dataset, name)
        for row, (image, target) in enumerate(zip(hashes[name], split.targets.tolist(), strict=True)):
            other_name, other_row = first.setdefault(image, (name, row))
            other = getattr(dataset, other_name)
            if other.targets[other_row] != target and image not in pairs:
                pairs[image] = f"{_place(dataset, other_name, other_row)} and {_place(dataset, name, row)}"
    if not pairs:
        return dataset
    named = "; ".join(list(pairs.values())[:NAMED])
    more = f"; and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    images = "1 image has" if len(pairs) == 1 else f"{len(pairs):,} images have"
    return replace(dataset, warnings=(*dataset.warnings, f"{images} several labels: {named}{more}"))


def _place(dataset: Dataset, name: str, row: int) -> str:
    """The file of an image; of an archive, which image of a split of the archive it is, from 0, and its label."""
    split: Split = getattr(dataset, name)
    if split.paths:
        return str(split.paths[row])
    source, place = (name, row) if split.rows is None else ("train", split.rows[row])
    return f"{source} image {place} ({dataset.labels[split.targets[row]]})"


def _drop_copies(dataset: Dataset, hashes: dict[str, list[bytes]]) -> Dataset:
    for loser, winner in (("val", "test"), ("train", "test"), ("train", "val")):
        split, targets = getattr(dataset, loser), getattr(dataset, winner).targets.tolist()
        known, labelled = set(hashes[winner]), set(zip(hashes[winner], targets, strict=True))
        copies = np.array([image in known for image in hashes[loser]], bool)
        if copies.any():
            same = sum(pair in labelled for pair in zip(hashes[loser], split.targets.tolist(), strict=True))
            warning = (
                f"{copies.sum():,} of {len(split):,} {loser} images are copies of {winner} images and left out, "
                f"{copies.sum() - same:,} of them with another label"
            )
            kept = np.flatnonzero(~copies)
            hashes[loser] = [hashes[loser][row] for row in kept]
            dataset = replace(dataset, **{loser: split.keep(kept)}, warnings=(*dataset.warnings, warning))
    return dataset


def _hash_images(split: Split) -> list[bytes]:
    """A hash of every image's pixels; 60,000 of 32x32x3 take less than half a second."""
    rows = split.images.reshape(len(split), math.prod(split.images.shape[1:]))
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in rows]
