"""What the report shows of where a network looked: class activation maps of mistakes, and of an image of each label."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from evalmode.images.pixels import Pixels
from training.datasets import Dataset
from training.datasets.dataset import Indices
from training.report import pictures
from training.report.activation import Floats, compare_labels, compute_activation_maps, overlay_map
from training.report.findings import Predictions

SHOWN_MISTAKES = 8
SHOWN_LABELS = 20


def describe_attention(
    network: nn.Module, dataset: Dataset, predictions: Predictions, mistakes: Indices
) -> dict[str, Any]:
    """Collect what the page shows of where the network looked.

    Args:
        network: The network, on the CPU; it is put into eval mode.
        dataset: The data set; its test images are shown.
        predictions: The predictions for the test images.
        mistakes: The test images that are classified incorrectly, the worst first, int64.

    Returns:
        ``looked_mistakes`` and ``looked_labels``: both empty if the network has no class activation maps.
    """
    mistakes = mistakes[:SHOWN_MISTAKES]
    samples = _choose_samples(dataset, predictions)
    rows = np.concatenate([mistakes, samples]).astype(np.int64)
    test = dataset.test
    maps = compute_activation_maps(network, test.images[rows])
    if maps is None:
        return {"looked_mistakes": [], "looked_labels": []}
    shown = [
        _draw_maps(dataset, row, compare_labels(one), predictions.predicted[row])
        for row, one in zip(rows.tolist(), maps, strict=True)
    ]
    return {"looked_mistakes": shown[: len(mistakes)], "looked_labels": shown[len(mistakes) :]}


def _choose_samples(dataset: Dataset, predictions: Predictions) -> Indices:
    """Choose a test image of each of at most 20 labels: the first correct prediction, or else the first image."""
    targets = dataset.test.targets
    present = np.unique(targets)
    chosen = present[np.linspace(0, len(present) - 1, min(SHOWN_LABELS, len(present))).astype(int)]
    rows = (np.flatnonzero(targets == label) for label in chosen)
    return np.array([one[np.argmax(predictions.correct[one])] for one in rows], np.int64)


def _draw_maps(dataset: Dataset, row: int, maps: Floats, predicted: int) -> dict[str, Any]:
    """Draw the maps of the predicted and of the true label of a test image, float32 (K, h, w), on one scale."""
    test = dataset.test
    pixels: Pixels = test.images[row]
    true = int(test.targets[row])
    strongest = max(float(np.abs(maps[[predicted, true]]).max()), 1e-12)
    return {
        "picture": pictures.embed_photo(pixels),
        "true": dataset.labels[true],
        "predicted": dataset.labels[predicted],
        "for_predicted": pictures.embed_photo(overlay_map(pixels, maps[predicted], strongest)),
        "for_true": pictures.embed_photo(overlay_map(pixels, maps[true], strongest)),
        "name": pictures.name_image(test, row, "test"),
    }
