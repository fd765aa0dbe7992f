"""The numbers of the report. To add one, add a field to ``Findings`` and show it in ``page.html.j2``.

Shapes: N images, H height, W width, C channels, K labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn

from evalmode.certification.metrics import Reliability, measure_reliability, wilson_interval
from training.datasets import Split
from training.datasets.dataset import Indices
from training.evaluation import predict_logits

LISTED_CONFUSIONS = 10
MIN_SHIFTED, MAX_SHIFTED = 32, 1000  # images that are shifted: fewer if they are large, because each is run 17 times
SHIFTED_PIXELS = 2**20  # of all shifted images together
LARGE = 160  # pixels of the shorter side, from which shifts are larger: 4 pixels are nothing to such an image
SHIFTS, LARGE_SHIFTS = (1, 2, 3, 4), (4, 16)  # pixels
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions that the exported artifact makes for N images.

    Attributes:
        predicted: The index of the label with the highest probability, int64 (N,).
        confidence: Its probability, float64 (N,).
        correct: Whether it is the true label, bool (N,).
    """

    predicted: Indices
    confidence: Floats
    correct: npt.NDArray[np.bool_]


class ClassScores(NamedTuple):
    """How well one label is predicted. Precision is NaN if it was never predicted, recall if it has no images."""

    label: str
    images: int
    precision: float
    recall: float
    f1: float


class Confusion(NamedTuple):
    """A mistake of the network: how many images of a label were predicted as another one."""

    label: str
    predicted: str
    images: int
    share: float  # of the label's images


class Shift(NamedTuple):
    """How a network classifies shifted images."""

    pixels: int
    accuracy: float
    unchanged: float  # share of the images with the same prediction as without a shift


@dataclass(frozen=True, eq=False)
class Findings:
    """How well a network classifies the test images.

    Attributes:
        predictions: Its predictions.
        accuracy: The share of correct predictions.
        interval: The 95% confidence interval of the accuracy.
        matrix: The confusion matrix, int64 (K, K): true labels in rows, predicted labels in columns.
        confusions: The most frequent mistakes.
        classes: The scores of each label, lowest F1 first.
        reliability: Predicted probability and accuracy, as exported: with the temperature.
        uncalibrated: The same without the temperature; None if it is 1.
        shifts: The accuracy on shifted images, from no shift to the largest.
    """

    predictions: Predictions
    accuracy: float
    interval: tuple[float, float]
    matrix: Indices
    confusions: list[Confusion]
    classes: list[ClassScores]
    reliability: Reliability
    uncalibrated: Reliability | None
    shifts: list[Shift]


def examine(
    network: nn.Module,
    split: Split,
    labels: tuple[str, ...],
    logits: Tensor | None = None,
    temperature: float = 1.0,
) -> Findings:
    """Measure how well a network classifies the images of a split.

    Args:
        network: The network; it is put into eval mode.
        split: N images.
        labels: The K class names.
        logits: The logits of the network for the images, float32 (N, K); None to compute them.
        temperature: The export divides the logits by it.

    Returns:
        The measurements.
    """
    logits = predict_logits(network, split) if logits is None else logits
    predictions, before = predict(split, logits / temperature), predict(split, logits)
    matrix = confusion_matrix(split.targets, predictions.predicted, labels=range(len(labels)))
    return Findings(
        predictions=predictions,
        accuracy=float(predictions.correct.mean()),
        interval=wilson_interval(int(predictions.correct.sum()), len(split)),
        matrix=matrix,
        confusions=find_confusions(matrix, labels, LISTED_CONFUSIONS),
        classes=score_classes(split.targets, predictions.predicted, labels),
        reliability=measure_reliability(predictions.confidence, predictions.correct),
        uncalibrated=None if temperature == 1 else measure_reliability(before.confidence, before.correct),
        shifts=try_shifts(network, split),
    )


def predict(split: Split, logits: Tensor) -> Predictions:
    """Predict the label of every image.

    Args:
        split: N images.
        logits: Their logits, float32 (N, K).

    Returns:
        The predictions in the order of the images.
    """
    probabilities = logits.double().softmax(1).numpy()
    predicted = probabilities.argmax(1)
    return Predictions(predicted, probabilities.max(1), predicted == split.targets)


def score_classes(targets: Indices, predicted: Indices, labels: tuple[str, ...]) -> list[ClassScores]:
    """Compute precision, recall and F1 of each label.

    Args:
        targets: The true labels, int64 (N,).
        predicted: The predicted labels, int64 (N,).
        labels: The class names.

    Returns:
        The scores of every label that has images or was predicted, lowest F1 first.
    """
    scores = precision_recall_fscore_support(targets, predicted, labels=range(len(labels)), zero_division=np.nan)
    precision, recall, f1, images = (score.tolist() for score in scores)
    rows = map(ClassScores, labels, images, precision, recall, f1)
    return sorted((row for row in rows if not math.isnan(row.f1)), key=lambda row: row.f1)


def find_confusions(matrix: Indices, labels: tuple[str, ...], count: int) -> list[Confusion]:
    """Find the most frequent mistakes.

    Args:
        matrix: The confusion matrix, int64 (K, K): true labels in rows, predicted labels in columns.
        labels: The class names.
        count: The number of mistakes to return.

    Returns:
        At most that many, the most frequent first.
    """
    wrong, totals = matrix - np.diag(matrix.diagonal()), matrix.sum(1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count].tolist()
    pairs = [divmod(cell, len(labels)) for cell in order if wrong.flat[cell]]
    return [
        Confusion(labels[true], labels[predicted], wrong[true, predicted], wrong[true, predicted] / totals[true])
        for true, predicted in pairs
    ]


def try_shifts(network: nn.Module, split: Split) -> list[Shift]:
    """Classify images that are shifted up, down, left and right; pixels at the edge are repeated.

    Args:
        network: The network; it is put into eval mode.
        split: The images; some of them are used.

    Returns:
        One result for each shift, beginning with that of no shift.
    """
    height, width = split.images.shape[1:3]
    count = count_shifted(split)
    steps = LARGE_SHIFTS if min(height, width) >= LARGE else SHIFTS
    max_pixels = steps[-1]
    some = np.linspace(0, len(split) - 1, count).astype(int)
    border = (max_pixels, max_pixels)
    padded = np.pad(split.images[some], ((0, 0), border, border, (0, 0)), mode="edge")

    def predict_shifted(down: int, right: int) -> Predictions:
        shifted = padded[:, max_pixels - down :, max_pixels - right :][:, :height, :width]
        moved = Split(shifted, split.targets[some])
        return predict(moved, predict_logits(network, moved))

    still = predict_shifted(0, 0)
    shifts = [Shift(0, float(still.correct.mean()), 1.0)]
    for pixels in steps:
        moved = [predict_shifted(*by) for by in ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels))]
        correct, same = [one.correct for one in moved], [one.predicted == still.predicted for one in moved]
        shifts.append(Shift(pixels, float(np.mean(correct)), float(np.mean(same))))
    return shifts


def count_shifted(split: Split) -> int:
    """Count the images of a split that are shifted."""
    height, width = split.images.shape[1:3]
    return min(len(split), int(np.clip(SHIFTED_PIXELS // (height * width), MIN_SHIFTED, MAX_SHIFTED)))
