"""The numbers of the report. Shapes: N images, K labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import precision_recall_fscore_support
from torch import nn

from evalmode.certification.metrics import measure_reliability
from training.datasets import Split
from training.datasets.dataset import Indices
from training.evaluation import predict_logits

SHIFTED_IMAGES = 200, 1000  # fewer large ones than small ones, as each is asked about 17 times
SHIFTED_PIXELS = 2**20  # of all images together
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a network in eval mode says about N images: the label with the highest probability."""

    predicted: Indices
    confidence: Floats  # the probability of that label
    right: npt.NDArray[np.bool_]


def answer(network: nn.Module, split: Split) -> Answers:
    """Ask about every image of a split."""
    probabilities = predict_logits(network, split).double().softmax(1).numpy()
    predicted = probabilities.argmax(1)
    return Answers(predicted, probabilities.max(1), predicted == split.targets)


def score_classes(
    targets: Indices, predicted: Indices, labels: tuple[str, ...]
) -> list[tuple[str, int, float, float, float]]:
    """Label, images, precision, recall and F1, the lowest F1 first, of every label that has images or was predicted.

    Precision is NaN for a label that was never predicted, recall for one without images.
    """
    scores = precision_recall_fscore_support(targets, predicted, labels=range(len(labels)), zero_division=np.nan)
    precision, recall, f1, images = (score.tolist() for score in scores)
    rows = zip(labels, images, precision, recall, f1, strict=True)
    return sorted((row for row in rows if not math.isnan(row[-1])), key=lambda row: row[-1])


def find_confusions(matrix: Indices, labels: tuple[str, ...], count: int) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes of a confusion matrix, int64 (K, K), rows true and columns predicted.

    Returns:
        True label, predicted label, images, and their share of the true label's images.
    """
    wrong, totals = matrix - np.diag(matrix.diagonal()), matrix.sum(1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count].tolist()
    pairs = [divmod(cell, len(labels)) for cell in order if wrong.flat[cell]]
    return [
        (labels[true], labels[predicted], wrong[true, predicted], wrong[true, predicted] / totals[true])
        for true, predicted in pairs
    ]


def calibrate(answers: Answers) -> tuple[Floats, Floats, Indices, float]:
    """Hold the predicted probabilities against the share right.

    Returns:
        For each bin of probabilities that holds images: their mean, the share right, the images; and the expected
        calibration error, the mean distance of the two over all images.
    """
    found = measure_reliability(answers.confidence, answers.right)
    return found.confidence, found.accuracy, found.images, found.error


def try_shifts(network: nn.Module, split: Split, furthest: int = 4) -> list[tuple[int, float, float]]:
    """Shift some images up, down, left and right, repeating the edge, and ask again.

    Returns:
        For 0 to ``furthest`` pixels: the shift, the accuracy, and the share of images with the same label as without.
    """
    height, width = split.images.shape[1:3]
    count = min(len(split), int(np.clip(SHIFTED_PIXELS // (height * width), *SHIFTED_IMAGES)))
    some = np.linspace(0, len(split) - 1, count).astype(int)
    border = (furthest, furthest)
    padded = np.pad(split.images[some], ((0, 0), border, border, (0, 0)), mode="edge")

    def ask(down: int, right: int) -> Answers:
        moved = padded[:, furthest - down :, furthest - right :][:, :height, :width]
        return answer(network, Split(moved, split.targets[some]))

    still = ask(0, 0)
    shifts = [(0, float(still.right.mean()), 1.0)]
    for pixels in range(1, furthest + 1):
        moved = [ask(pixels, 0), ask(-pixels, 0), ask(0, pixels), ask(0, -pixels)]
        right, same = [one.right for one in moved], [one.predicted == still.predicted for one in moved]
        shifts.append((pixels, float(np.mean(right)), float(np.mean(same))))
    return shifts
