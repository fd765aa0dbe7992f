"""Carves validation and test images from the training images where a data set does not provide them."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from evalmode.errors import DataError
from training.datasets.dataset import Indices

HELD_OUT = 0.1  # share of the training images that is carved for each missing split


def carve_missing(
    targets: Indices, provided: Collection[str], labels: tuple[str, ...], seed: int, test_share: float = HELD_OUT
) -> dict[str, Indices]:
    """Choose the training images that become the missing splits, the same share of every label.

    Args:
        targets: The label indices of the training images, int64 (N,).
        provided: The names of the splits that the data set has.
        labels: The class names.
        seed: Decides which images are chosen.
        test_share: The share of the images that becomes the test split, in (0, 1), if it is missing.

    Returns:
        Ascending row indices, int64: under ``train`` the images that stay, and under the name of each missing split
        its images.

    Raises:
        DataError: There is only one label, or a label has too few images.
    """
    missing = [name for name in ("test", "val") if name not in provided]
    counts = np.bincount(targets, minlength=len(labels))
    if len(labels) < 2:
        raise DataError(f"there is only one label, {labels[0]!r}: at least 2 are needed")
    if counts.min() <= len(missing):
        why = f" because {' and '.join(missing)} images are taken from them" if missing else ""
        raise DataError(
            f"label {labels[counts.argmin()]!r} has {counts.min()} training images, at least {len(missing) + 1} are "
            f"needed{why}: add some or remove the label"
        )
    rows, carved = np.arange(len(targets)), {}
    for name in missing:
        taken = _choose(targets[rows], test_share if name == "test" else HELD_OUT, seed)
        carved[name], rows = rows[taken], rows[~taken]
    return {"train": rows, **carved}


def _choose(targets: Indices, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mark a share of the images of every label, at least one; bool (N,)."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(targets), bool)
    for target in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == target))
        taken[members[: max(1, round(share * len(members)))]] = True
    return taken
