"""Accuracy of a head on the features of EfficientNet-Lite0, by how the photos are resized and cropped.

    python -m benchmarks.quality.resizes PHOTOS [--out FILE]

PHOTOS is a folder of <label>/<photo>. For each crop ratio and interpolation, the features of all photos are computed,
the penalty of the head is chosen on the validation images, and the accuracy is cross-validated: each photo is predicted
by a head that was trained without it, in the same five folds. The photos that two resizes are not both right about say
whether they differ: the p-value is McNemar's, exact, against the first resize.
"""

from __future__ import annotations

import argparse
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.record import add_out, write_result
from evalmode.certification.metrics import wilson_interval
from evalmode.images.pixels import Resize
from training.cross_validation import FOLDS, cross_validate, refit_head
from training.datasets import ReadOptions, load_dataset
from training.features import compute_features
from training.head import HeadExamples, choose_head
from training.networks import NETWORKS, PretrainedNetwork, build_network

NAME, SIDE = "efficientnet-lite0", 224
RESIZES = (Resize(1.0, "bilinear"), Resize(1.0, "bicubic"), Resize(0.875, "bicubic"), Resize(0.875, "bilinear"))


def main() -> None:
    """Print a row for each resize, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    add_out(parser, required=False)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    first: npt.NDArray[np.bool_] | None = None
    for resize in RESIZES:
        right, penalty = predict(arguments.photos, resize)
        first = right if first is None else first
        won, lost = int((right & ~first).sum()), int((first & ~right).sum())
        low, high = wilson_interval(int(right.sum()), len(right))
        row = {
            "interpolation": resize.interpolation,
            "crop_ratio": resize.crop_ratio,
            "accuracy": round(float(right.mean()), 4),
            "interval": [round(low, 4), round(high, 4)],
            "images": len(right),
            "right_only_here": won,
            "right_only_by_first": lost,
            "p_value": round(compare_pairs(won, lost), 4),
            "penalty": penalty,
        }
        print(row, flush=True)
        rows.append(row)
    write_result(arguments, {"network": NAME, "rows": rows})


def predict(photos: Path, resize: Resize) -> tuple[npt.NDArray[np.bool_], float]:
    """Cross-validate a head on photos that were resized in a way.

    Returns:
        Whether the prediction for each photo is right, bool (N,), and the penalty of the head.
    """
    torch.manual_seed(0)
    dataset = load_dataset(str(photos), ReadOptions((SIDE, SIDE), resize=resize))
    network = build_network(NAME, dataset.contract.shape, len(dataset.labels), 1.0, 0.0)
    assert isinstance(network, PretrainedNetwork)
    NETWORKS[NAME].load_weights(network, NAME, None)
    splits = (dataset.train, dataset.val, dataset.test)
    features = compute_features(network, [split.images for split in splits])
    train, val = (HeadExamples(torch.from_numpy(features[i]), torch.from_numpy(splits[i].targets)) for i in range(2))
    penalty = choose_head(network.head, train, val).penalty
    targets = np.concatenate([split.targets for split in splits])
    probabilities = cross_validate(np.concatenate(features), targets, refit_head(network.head, penalty), FOLDS)
    return probabilities.argmax(1) == targets, penalty


def compare_pairs(won: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test."""
    count = won + lost
    tail = sum(comb(count, fewer) for fewer in range(min(won, lost) + 1)) * 0.5**count
    return min(1.0, 2 * tail)


if __name__ == "__main__":
    main()
