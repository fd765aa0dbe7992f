"""The checks of every data set: images with several labels, copies across splits, empty and uneven labels."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import replace

import numpy as np

from evalmode.errors import DataError
from training.datasets.dataset import SPLITS, Dataset, Split
from training.datasets.storage import read_blocks

NAMED = 3  # images with several labels that a warning names; the rest is counted
UNEVEN_THRESHOLD = 2  # warn if a label has more than this many times the images of another


def check_dataset(dataset: Dataset) -> Dataset:
    """Check a data set, leave out copies of images across splits, and add warnings.

    An image that is in several splits stays in the test split, or else in the validation split.

    Args:
        dataset: The data set; its arrays are reused.

    Returns:
        The data set without copies.

    Raises:
        DataError: A label has no images in a split, perhaps because all of them were copies; or a label is not UTF-8
            or looks like another one.
    """
    check_labels(dataset)
    hashes = {name: _hash_images(getattr(dataset, name)) for name in SPLITS}
    dataset = _drop_copies(_find_contradictions(dataset, hashes), hashes)
    counts = {name: np.bincount(getattr(dataset, name).targets, minlength=len(dataset.labels)) for name in SPLITS}
    for name, count in counts.items():
        if count.min() == 0:
            why = "".join(f" ({warning})" for warning in dataset.warnings)
            label = dataset.labels[count.argmin()]
            raise DataError(f"label {label!r} has no {name} images: add some or remove the label{why}")
    most, fewest = counts["train"].argmax(), counts["train"].argmin()
    if counts["train"][most] <= UNEVEN_THRESHOLD * counts["train"][fewest]:
        return dataset
    figures = [f"{dataset.labels[index]!r} has {counts['train'][index]:,} training images" for index in (most, fewest)]
    uneven = f"labels are uneven: {' and '.join(figures)}. --balance gives every label the same weight"
    return replace(dataset, warnings=(*dataset.warnings, uneven))


def check_labels(dataset: Dataset) -> None:
    """Check that labels can be encoded and distinguished, because the artifact and the server's replies hold them.

    Args:
        dataset: The data set.

    Raises:
        DataError: A label is not UTF-8, or two labels differ only in their Unicode normal form.
    """
    seen: dict[str, str] = {}
    for label in dataset.labels:
        if any("\ud800" <= letter <= "\udfff" for letter in label):
            raise DataError(f"{dataset.source}: the label {label!r} is not UTF-8: rename its folder")
        other = seen.setdefault(unicodedata.normalize("NFC", label), label)
        if other is not label:
            raise DataError(
                f"{dataset.source}: the labels {other!a} and {label!a} look alike; they differ only in their Unicode "
                "normal form. Put their images into one folder"
            )


def _find_contradictions(dataset: Dataset, hashes: dict[str, list[bytes]]) -> Dataset:
    """Add a warning about images with equal pixels and different labels; at most one of the labels can be right."""
    first: dict[bytes, tuple[str, int]] = {}
    pairs: dict[bytes, str] = {}
    for name in SPLITS:
        split = getattr(dataset, name)
        for row, (image, target) in enumerate(zip(hashes[name], split.targets.tolist(), strict=True)):
            other_name, other_row = first.setdefault(image, (name, row))
            other = getattr(dataset, other_name)
            if other.targets[other_row] != target and image not in pairs:
                pairs[image] = f"{_describe_place(dataset, other_name, other_row)} and "
                pairs[image] += _describe_place(dataset, name, row)
    if not pairs:
        return dataset
    named = "; ".join(list(pairs.values())[:NAMED])
    more = f"; and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    images = "1 image has" if len(pairs) == 1 else f"{len(pairs):,} images have"
    return replace(dataset, warnings=(*dataset.warnings, f"{images} several labels: {named}{more}"))


def _describe_place(dataset: Dataset, name: str, row: int) -> str:
    """Return the file of an image; for an archive its split, its index there from 0, and its label."""
    split: Split = getattr(dataset, name)
    if split.paths:
        return str(split.paths[row])
    source, place = (name, row) if split.rows is None else ("train", split.rows[row])
    return f"{source} image {place} ({dataset.labels[split.targets[row]]})"


def _drop_copies(dataset: Dataset, hashes: dict[str, list[bytes]]) -> Dataset:
    """Leave out images that are also in a split of higher rank, with a warning that counts them."""
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
    """Hash the pixels of every image; 60,000 images of 32x32x3 take less than half a second."""
    return [
        hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        for block in read_blocks(split.images)
        for image in block
    ]
