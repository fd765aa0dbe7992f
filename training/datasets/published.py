"""What the readers of published data sets return, how it is checked, and how missing splits are carved from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evalmode.errors import DataError, UsageError
from evalmode.images.label_files import parse_labels
from training.datasets.carving import HELD_OUT, carve_missing
from training.datasets.dataset import Dataset, Split
from training.datasets.storage import Storage


@dataclass(frozen=True, eq=False)
class Published:
    """Labelled images in the splits that the data set was published with.

    Attributes:
        labels: The class names.
        splits: ``train``, and optionally ``val`` and ``test``.
        test_share: The share of the training images that becomes the test split if there is none.
    """

    labels: tuple[str, ...]
    splits: Mapping[str, Split]
    test_share: float = HELD_OUT


def check_published(path: Path, labels: tuple[str, ...], splits: Mapping[str, Split]) -> Published:
    """Check that labels, images and targets fit together.

    Args:
        path: The file or folder they were read from, for messages.
        labels: The class names; if empty, the labels are the numbers from 0.
        splits: The splits that were read; ``train`` is one of them.

    Returns:
        The data set.

    Raises:
        DataError: They contradict each other.
    """
    for name, part in splits.items():
        if not part.images.size or len(part.images) != len(part):
            raise DataError(
                f"{path}: {name} has images {part.images.shape} and {len(part):,} targets, one target per image is "
                "needed"
            )
        if part.images.shape[1:] != splits["train"].images.shape[1:]:
            shapes = f"{part.images.shape[1:]}, train images {splits['train'].images.shape[1:]}"
            raise DataError(f"{path}: {name} images are {shapes}: all must have the same size and channels")
    largest = max(int(part.targets.max()) for part in splits.values())
    classes = len(labels) or len(splits["train"])  # there cannot be more classes than images
    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise DataError(f"{path}: the label {repeated[0]!r} occurs more than once: labels must be distinct")
    if largest >= classes:
        found = f"they are {', '.join(labels)}" if labels else f"there are {classes} training images"
        raise DataError(f"{path}: targets up to {largest} need {largest + 1} distinct labels, and {found}")
    return Published(labels or tuple(map(str, range(largest + 1))), splits)


def parse_published_labels(content: bytes, source: str) -> tuple[str, ...]:
    """Parse a text file of labels, one per line.

    Args:
        content: The bytes of the file.
        source: Its name, for messages.

    Returns:
        The labels.

    Raises:
        DataError: The text is not UTF-8, or a label occurs twice.
    """
    try:
        return parse_labels(content, source)
    except UsageError as error:
        raise DataError(str(error)) from error


def split_published(
    source: str, published: Published, image_size: tuple[int, int] | None, seed: int, storage: Storage
) -> Dataset:
    """Carve the splits that a published data set lacks from its training images.

    Args:
        source: The path or name of the data set.
        published: The images.
        image_size: The (height, width) that was requested; the images are not resized.
        seed: Decides which images are carved.
        storage: Where the carved images are kept.

    Returns:
        The data set with all three splits.

    Raises:
        DataError: The images have another size than requested, or a label has too few images.
    """
    labels, splits = published.labels, published.splits
    train = splits["train"]
    height, width = train.images.shape[1:3]
    if image_size not in (None, (height, width)):
        raise DataError(f"the images of {source} are {height}x{width} and are not resized: omit --image-size")
    rows = carve_missing(train.targets, splits, labels, seed, published.test_share)
    train = replace(train, rows=np.arange(len(train)))
    carved = {
        name: Split(storage.copy(train.images, part), train.targets[part], rows=part)
        for name, part in rows.items()
        if name != "train"
    }
    whole = {**splits, **carved, "train": train.keep(rows["train"])}
    return Dataset(source, labels, whole["train"], whole["val"], whole["test"], carved=tuple(carved))
