"""Measure what cross-validation on features finds: labels made wrong on purpose, and the accuracy from few images.

    python -m benchmarks.quality.doubts DATA --out FILE

DATA is a folder of photos whose labels are right, or nearly. The features are those of EfficientNet-Lite0.

Wrong labels: a share of the labels is replaced by other labels at random. Precision counts only those as wrong, so the
wrong labels and the ambiguous images that the data set has by itself count as false alarms.

Accuracy: few images are drawn and cross-validated. Their interval should hold the accuracy, on all other images, of a
head that is fitted to all of the few. The same for one that is fitted to nine tenths of them and tested on one tenth.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks.record import add_out, write_result
from evalmode.artifact.tensors import Floats
from evalmode.certification.metrics import measure_cross_validated, wilson_interval
from training.cross_validation import FOLDS, Fit, cross_validate, refit_head
from training.datasets import ReadOptions, load_dataset
from training.datasets.dataset import Indices
from training.features import compute_features
from training.networks import get_architecture
from training.networks.pretrained import Head
from training.wrong_labels import find_wrong_labels

NETWORK = "efficientnet-lite0"
SHARES = (0.0, 0.01, 0.03, 0.1)  # of labels that are made wrong
SHOWN = (20, 50, 100)
FEW = (120, 240, 480)


def main() -> None:
    """Parse the arguments, measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--penalty", type=float, default=0.1, help="of the heads (default: 0.1)")
    parser.add_argument("--seeds", type=int, default=3, help="for wrong labels (default: 3)")
    parser.add_argument("--draws", type=int, default=20, help="of few images (default: 20)")
    add_out(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    features, targets, head = compute(arguments.data)
    fit = refit_head(head, arguments.penalty)
    results: dict[str, Any] = {"images": len(targets)}
    results["wrong_labels"] = [find_flipped(features, targets, fit, share, arguments.seeds) for share in SHARES]
    results["accuracy"] = [measure_few(features, targets, fit, count, arguments.draws) for count in FEW]
    write_result(arguments, results)


def compute(data: Path) -> tuple[Floats, Indices, Head]:
    """Compute the features of all images, and return them with their targets and the head of the network."""
    architecture = get_architecture(NETWORK)
    suited = architecture.describe_input(NETWORK)
    dataset = load_dataset(str(data), ReadOptions(image_size=suited.size, resize=suited.resize))
    network = architecture.build(NETWORK, dataset.contract.shape, len(dataset.labels), 1.0, 0.0)
    architecture.load_weights(network, NETWORK, None)
    splits = dataset.train, dataset.val, dataset.test
    features = np.concatenate(compute_features(network, [split.images for split in splits]))
    return features, np.concatenate([split.targets for split in splits]), network.head


def find_flipped(features: Floats, targets: Indices, fit: Fit, share: float, seeds: int) -> dict[str, float]:
    """Replace a share of the labels, and measure how many of them are found: means over the seeds."""
    count, labels = round(share * len(targets)), int(targets.max()) + 1
    runs = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        flipped = rng.choice(len(targets), count, replace=False)
        given = targets.copy()
        given[flipped] = (given[flipped] + rng.integers(1, labels, count)) % labels
        probabilities = cross_validate(features, given, fit, seed=seed)
        found = find_wrong_labels(probabilities, given, limit=len(targets))
        hits = np.isin(found, flipped)
        right = (probabilities.argmax(1) == targets)[found[hits]]
        run = {"flipped": count, "listed": len(found), "false_alarms": float((~hits).sum() / (len(targets) - count))}
        if count:
            run |= {f"precision_{shown}": float(hits[:shown].mean()) for shown in SHOWN}
            run |= {"recall": float(hits.sum() / count), "recall_100": float(hits[:100].sum() / count)}
            run["suggestion_right"] = float(np.mean(right))
        runs.append(run)
    averaged = {"share": share} | {key: round(mean(run[key] for run in runs), 4) for key in runs[0]}
    print(averaged, flush=True)
    return averaged


def measure_few(features: Floats, targets: Indices, fit: Fit, count: int, draws: int) -> dict[str, float]:
    """Compare cross-validated accuracy, and that of a tenth, with the accuracy on all other images."""
    runs = []
    for seed in range(draws):
        order = np.random.default_rng(seed).permutation(len(targets))
        few, rest = order[:count], order[count:]
        kept, tenth = few[: count * 9 // 10], few[count * 9 // 10 :]
        accuracy = score(fit, features, targets, few, rest)
        crossed = measure_cross_validated(
            cross_validate(features[few], targets[few], fit, seed=seed), targets[few], FOLDS
        )
        tested = score(fit, features, targets, kept, tenth)
        interval = wilson_interval(round(tested * len(tenth)), len(tenth))
        runs.append(
            {
                "accuracy": accuracy,
                "cross_validated": crossed.accuracy,
                "covered": crossed.interval[0] <= accuracy <= crossed.interval[1],
                "width": crossed.interval[1] - crossed.interval[0],
                "covered_by_tenth": interval[0] <= accuracy <= interval[1],
                "width_of_tenth": interval[1] - interval[0],
            }
        )
    averaged = {"images": count} | {key: round(mean(run[key] for run in runs), 4) for key in runs[0]}
    print(averaged, flush=True)
    return averaged


def score(fit: Fit, features: Floats, targets: Indices, train: Indices, test: Indices) -> float:
    """Fit a head to some images, and measure its accuracy on others."""
    return float((fit(features[train], targets[train])(features[test]).argmax(1) == targets[test]).mean())


if __name__ == "__main__":
    main()
