"""What a data set is: labelled pixels in three splits, and how splits that are missing are carved.

Shapes: N images, H height, W width, C channels (3 RGB, 1 grey).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from evalmode.images.pixels import PixelContract, Pixels
from training.errors import DataError

Indices = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]  # "downloading" bytes or "decoding" images, how many are done, of how many

HELD_OUT = 0.1  # share of the training images carved for each split that the data do not bring
SPLITS = ("train", "val", "test")
ROWS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled images.

    Attributes:
        images: uint8 (N, H, W, C).
        targets: the index of each image's label, int64 (N,).
        paths: where each image lies, N of them; none where images come from an archive.
        rows: which image of the archive's training images each one is, from 0, int64 (N,); None where they are all
            images of a split of the archive, in its order.
    """

    images: Pixels
    targets: Indices
    paths: tuple[Path, ...] = ()
    rows: Indices | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def keep(self, rows: Indices) -> Split:
        """Only these images, ascending, moved to the front of the same array: a second one may not fit into memory."""
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            self.images[start : start + len(part)] = self.images[part]  # never overwrites what is still to be moved
        paths = tuple(self.paths[row] for row in rows) if self.paths else ()
        kept = None if self.rows is None else self.rows[rows]
        return Split(self.images[: len(rows)], self.targets[rows], paths, kept)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in three disjoint splits.

    Attributes:
        source: what it was loaded from: a path or a name.
        labels: class names; targets index into them.
        train: what the network learns from.
        val: what chooses between checkpoints.
        test: read once, when all is chosen.
        warnings: what a user should know about the data, a sentence each.
    """

    source: str
    labels: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    warnings: tuple[str, ...] = ()

    @property
    def contract(self) -> PixelContract:
        """The shape of every image."""
        return PixelContract(*self.train.images.shape[1:])

    def digest(self) -> str:
        """``sha256:...`` over labels, pixels and targets of every split: equal digests, equal data."""
        digest = hashlib.sha256("\0".join(self.labels).encode())
        for split in (self.train, self.val, self.test):
            digest.update(repr(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(split.targets.data)
        return "sha256:" + digest.hexdigest()


def carve_missing(
    targets: Indices, given: Collection[str], labels: tuple[str, ...], seed: int, test_share: float = HELD_OUT
) -> dict[str, Indices]:
    """Choose which training images become the splits that are not given, of every class alike.

    Returns:
        Rows of the training images, ascending: those that stay ``train``, and those of every split carved.

    Raises:
        DataError: one class only, or a class with too few images.
    """
    missing = [name for name in ("test", "val") if name not in given]
    counts = np.bincount(targets, minlength=len(labels))
    if len(labels) < 2:
        raise DataError(f"there is one class only, {labels[0]!r}: at least 2 are needed")
    if counts.min() <= len(missing):
        why = f" as {' and '.join(missing)} images are taken from them" if missing else ""
        raise DataError(
            f"class {labels[counts.argmin()]!r} has {counts.min()} training images, at least {len(missing) + 1} are "
            f"needed{why}: add some or remove the class"
        )
    rows, carved = np.arange(len(targets)), {}
    for name in missing:
        taken = _choose(targets[rows], test_share if name == "test" else HELD_OUT, seed)
        carved[name], rows = rows[taken], rows[~taken]
    return {"train": rows, **carved}


def _choose(targets: Indices, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mark a share of every class, at least one image."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(targets), bool)
    for target in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == target))
        taken[members[: max(1, round(share * len(members)))]] = True
    return taken


def check_memory(shape: tuple[int, ...]) -> None:
    """Raise ``DataError`` with the figure if pixels of this shape do not fit into memory, before any is decoded."""
    needed, available = math.prod(shape), available_memory_bytes()
    if needed > available:
        raise DataError(
            f"{' x '.join(map(str, shape))} pixels need {needed:,} bytes of memory and {available:,} are available: "
            "choose a smaller --image-size or fewer images"
        )


def available_memory_bytes(cgroup_limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Memory that can be had without swapping, cut to the container's limit."""
    available = int(psutil.virtual_memory().available)
    try:
        return min(available, int(cgroup_limit.read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return available
