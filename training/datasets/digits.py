"""Reads the handwritten digits that scikit-learn installs."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from training.datasets.dataset import Split
from training.datasets.published import Published

TEST_SHARE = 0.2  # of 1,797 images


def read_digits() -> Published:
    """Read scikit-learn's 1,797 handwritten digits, 8x8 grey, their values 0..16 scaled to 0..255."""
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    splits = {"train": Split(images, bunch.target.astype(np.int64))}
    return Published(tuple(map(str, bunch.target_names)), splits, TEST_SHARE)
