"""Likely wrong labels, found by cross-validated probabilities.

Source: Northcutt, Jiang, Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels (1911.00068).

Shapes: N images, K labels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from training.datasets.dataset import Indices

MAX_LISTED = 100
CONFIDENT = 0.8  # a probability that is high enough for every label, also where nearly all are higher


def find_wrong_labels(probabilities: npt.NDArray[np.floating], targets: Indices, limit: int = MAX_LISTED) -> Indices:
    """Find images whose labels are probably wrong.

    The number of wrong labels is estimated by confident learning, see ``count_wrong_labels``. As many images are
    listed: those whose label is the least probable, relative to the most probable label.

    Args:
        probabilities: Of each image's labels, by heads that were trained without the image, float (N, K).
        targets: The index of each image's label, int64 (N,).
        limit: The largest number of images to list.

    Returns:
        The indices of the images, int64, the most suspicious first. For each of them, another label is the most
        probable.
    """
    rows = np.arange(len(targets))
    own, highest = probabilities[rows, targets], probabilities.max(1)
    ranked = np.lexsort((-highest, own / highest))  # of equal ratios, such as 0, the most confident first
    count = min(count_wrong_labels(probabilities, targets), limit)
    wrong: Indices = ranked[own[ranked] < highest[ranked]][:count]
    return wrong


def count_wrong_labels(probabilities: npt.NDArray[np.floating], targets: Indices) -> int:
    """Estimate how many labels are wrong.

    The threshold of a label is its mean probability among the images that have it, at most 0.8. An image counts if its
    label has a probability below the threshold, and another label has a higher one that reaches its own threshold.

    Args:
        probabilities: Of each image's labels, by heads that were trained without the image, float (N, K).
        targets: The index of each image's label, int64 (N,).

    Returns:
        The number of wrong labels.
    """
    labels = np.arange(probabilities.shape[1])
    own = probabilities[np.arange(len(targets)), targets]
    counts = np.bincount(targets, minlength=len(labels))
    means = np.bincount(targets, own, len(labels)) / np.maximum(counts, 1)
    thresholds = np.where(counts > 0, np.minimum(means, CONFIDENT), np.inf)  # never reached by a label without images
    reached = (probabilities >= thresholds) & (probabilities > own[:, np.newaxis])
    return int((reached.any(1) & (own < thresholds[targets])).sum())
