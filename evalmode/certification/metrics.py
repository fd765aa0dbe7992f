"""How good a classifier is, and how certain that is: accuracy, intervals, calibration, tests of significance.

scipy and scikit-learn have some of these, but belong to the extra ``train``; certificates are made without it, too.
Shapes: N images, H height, W width, C channels, K labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalmode.artifact.tensors import Floats, softmax
from evalmode.images.pixels import Pixels

Z_95 = 1.959964  # 95% of a normal distribution lie within this many standard deviations of its mean
BINS = 10  # of confidence, for the calibration error

Indices = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CrossValidated:
    """The accuracy of heads on pretrained features, each tested on the images that it was not trained on.

    Attributes:
        accuracy: The share of images whose predicted label is correct.
        interval: The 95% confidence interval of the accuracy.
        images: The number of images, of all splits.
        folds: The number of heads.
    """

    accuracy: float
    interval: tuple[float, float]
    images: int
    folds: int


@dataclass(frozen=True)
class Quality:
    """How well an artifact classifies its test images.

    Attributes:
        images: The number of test images.
        accuracy: The share of images whose predicted label is correct.
        interval: The 95% confidence interval of the accuracy.
        least_recalls: For each label, the lower bound of the 95% confidence interval of its recall; 0 for a label
            without images.
        calibration_error: The expected calibration error without and with the temperature.
        temperature: Logits are divided by it; fitted on validation images.
        cross_validated: Cross-validated accuracy, if the test images are few and the network is pretrained.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    least_recalls: tuple[float, ...]
    calibration_error: tuple[float, float]
    temperature: float
    cross_validated: CrossValidated | None = None


@dataclass(frozen=True, eq=False)
class Reliability:
    """Predicted probability against accuracy, in bins of equal width; bins without images are left out.

    Attributes:
        confidence: The mean probability of the predicted label in each bin, float64 (bins,).
        accuracy: The share of correct predictions in each bin, float64 (bins,).
        images: The number of images in each bin, int64 (bins,).
        error: The expected calibration error: the mean of abs(accuracy - confidence), weighted by images.
    """

    confidence: Doubles
    accuracy: Doubles
    images: Indices
    error: float


def measure_quality(logits: Floats, targets: Indices, temperature: float) -> Quality:
    """Measure accuracy and calibration.

    Args:
        logits: float32 (N, K).
        targets: The index of each image's label, int64 (N,).
        temperature: Logits are divided by it, above 0.

    Returns:
        The quality, with confidence intervals.
    """
    right = logits.argmax(1) == targets
    counts, rights = (np.bincount(targets[chosen], minlength=logits.shape[1]) for chosen in (slice(None), right))
    return Quality(
        images=len(targets),
        accuracy=float(right.mean()),
        interval=wilson_interval(int(right.sum()), len(targets)),
        least_recalls=tuple(
            wilson_interval(int(r), int(n))[0] if n else 0.0 for r, n in zip(rights, counts, strict=True)
        ),
        calibration_error=(
            calibration_error(softmax(logits), targets),
            calibration_error(softmax(logits / temperature), targets),
        ),
        temperature=temperature,
    )


def measure_cross_validated(probabilities: Floats, targets: Indices, folds: int) -> CrossValidated:
    """Measure the accuracy of cross-validated predictions.

    Args:
        probabilities: Of each image's labels, by a head that was trained without the image, float32 (N, K).
        targets: The index of each image's label, int64 (N,).
        folds: The number of heads.

    Returns:
        The accuracy, with its confidence interval.
    """
    right = int((probabilities.argmax(1) == targets).sum())
    return CrossValidated(right / len(targets), wilson_interval(right, len(targets)), len(targets), folds)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95% confidence interval of a share. It holds near 0 and 1, too.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.

    Args:
        right: The number of successes, 0 to ``count``.
        count: The number of trials, at least 1.

    Returns:
        The lower and the upper bound, each in 0..1.
    """
    share, z2 = right / count, Z_95**2 / count
    reach = math.sqrt(share * (1 - share) * z2 + z2**2 / 4)
    return (share + z2 / 2 - reach) / (1 + z2), (share + z2 / 2 + reach) / (1 + z2)


def calibration_error(probabilities: npt.NDArray[np.floating], targets: Indices) -> float:
    """The expected calibration error, see ``measure_reliability``.

    Args:
        probabilities: float (N, K).
        targets: The index of each image's label, int64 (N,).

    Returns:
        The error, in 0..1.
    """
    return measure_reliability(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets).error


def measure_reliability(confidence: npt.NDArray[np.floating], right: npt.NDArray[np.bool_]) -> Reliability:
    """Compare the predicted probabilities with the accuracy.

    Source: Guo et al., On Calibration of Modern Neural Networks (1706.04599).

    Args:
        confidence: The probability of each image's predicted label, float (N,) in 0..1.
        right: Whether the prediction is correct, bool (N,).

    Returns:
        The bins that hold images, and the expected calibration error.
    """
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, right - confidence.astype(np.float64), BINS)
    counts = np.bincount(bins, minlength=BINS)
    used = counts > 0
    confidences, rights = (np.bincount(bins, values, BINS)[used] for values in (confidence, right))
    error = float(np.abs(gaps).sum() / len(right))
    return Reliability(confidences / counts[used], rights / counts[used], counts[used], error)


def binomial_tail(right: int, count: int, share: float) -> float:
    """The cumulative distribution function of the binomial distribution.

    Args:
        right: The number of successes.
        count: The number of trials, at least 0.
        share: The probability of a success, in 0..1.

    Returns:
        The probability of at most ``right`` successes.
    """
    if share <= 0 or right >= count:
        return 1.0
    if share >= 1:
        return 0.0
    orders = math.lgamma(count + 1) - np.array(
        [math.lgamma(k + 1) + math.lgamma(count - k + 1) for k in range(right + 1)]
    )
    k = np.arange(right + 1)
    return math.fsum(np.exp(orders + k * math.log(share) + (count - k) * math.log1p(-share)))


def mcnemar(gained: int, lost: int) -> float:
    """McNemar's exact test, two-sided, of whether two classifiers are equally accurate.

    Args:
        gained: The number of images that only the new classifier classifies correctly.
        lost: The number of images that only the old one classifies correctly.

    Returns:
        The p-value: the probability of a split at least as uneven if both are equally accurate.
    """
    changed, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * binomial_tail(fewer, changed, 0.5))


def gives_probabilities(scores: Floats) -> bool:
    """Whether scores are probabilities already: none is negative, and each row sums to 1.

    Args:
        scores: float32 (N, K).
    """
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def describe_pixels(images: Pixels) -> dict[str, list[float]]:
    """The mean and the standard deviation of each channel.

    Args:
        images: uint8 (N, H, W, C).

    Returns:
        ``mean`` and ``std``, C values each, in 0..255.
    """
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for image in images:  # one at a time: a float64 copy of all would be eight times as large
        for channel, row in enumerate(counts):
            row += np.bincount(image[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    mean = counts @ values / counts.sum(1)
    variance = counts @ values**2 / counts.sum(1) - mean**2
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 0)).tolist()}
