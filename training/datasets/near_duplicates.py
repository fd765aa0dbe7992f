"""Finds images in different splits that show almost the same picture, by the features of a pretrained network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import numpy as np
import numpy.typing as npt

from training.datasets.dataset import SPLITS, Indices

Features = npt.NDArray[np.float32]
Pair = tuple[str, int, str, int, float]  # split, row, other split, other row, similarity

SIMILAR = 0.85  # cosine; measured in docs/decisions/0023-data-as-people-have-it.md
BLOCK_ROWS = 4096  # 4096 x 1,280 features take 20 MB, the similarities of two blocks 64 MB


def find_near_duplicates(features_by_split: Mapping[str, Features], threshold: float = SIMILAR) -> list[Pair]:
    """Find the images of each split that are almost in an earlier split, too.

    Two images are compared by the cosine of their features after the mean of all images is subtracted: what all images
    of the data set have in common makes no two of them similar.

    Args:
        features_by_split: Features by the name of the split, float32 (N, D), with the same D.
        threshold: The smallest similarity of a pair, in [-1, 1].

    Returns:
        For each validation image the most similar training image, and for each test image the most similar training
        image and the most similar validation image, if it is similar enough: split, row, other split, other row, and
        similarity; the most similar pairs first.
    """
    named = [(name, features_by_split[name]) for name in SPLITS if len(features_by_split.get(name, ()))]
    if len(named) < 2:
        return []
    count = sum(len(features) for _, features in named)
    mean = (np.sum([features.sum(0, np.float64) for _, features in named], 0) / count).astype(np.float32)
    pairs: list[Pair] = []
    for (name, features), (other_name, other) in combinations(named, 2):
        for start, block in _normalise_blocks(other, mean):
            best, rows = _find_most_similar(features, block, mean)
            pairs += [
                (name, int(rows[row]), other_name, start + int(row), min(1.0, float(best[row])))
                for row in np.flatnonzero(best >= threshold)
            ]
    return sorted(pairs, key=lambda pair: -pair[-1])


def _find_most_similar(features: Features, others: Features, mean: Features) -> tuple[Features, Indices]:
    """Find the most similar image for each of others, which are normalised: the similarity (M,) and the row (M,)."""
    best, rows = np.full(len(others), -np.inf, np.float32), np.zeros(len(others), np.int64)
    for start, block in _normalise_blocks(features, mean):
        similarity = others @ block.T
        nearest = similarity.argmax(1)
        highest = similarity[np.arange(len(others)), nearest]
        better = highest > best
        best[better], rows[better] = highest[better], start + nearest[better]
    return best, rows


def _normalise_blocks(features: Features, mean: Features) -> Iterator[tuple[int, Features]]:
    """Yield the first row of each block, and its features without the mean, of length 1; equal to the mean: 0."""
    for start in range(0, len(features), BLOCK_ROWS):
        centred = features[start : start + BLOCK_ROWS] - mean
        length = np.linalg.norm(centred, axis=1, keepdims=True)
        yield start, np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
