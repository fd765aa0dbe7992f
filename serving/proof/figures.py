"""Figures that tell chance from fact. Shapes: N images, K labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.certificate import Floats, softmax
from serving.pixels import Pixels

Z_95 = 1.959964  # 95% of a normal distribution lie within as many standard deviations
BINS = 15  # of told probability, for the calibration error

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """How good the artifact's answers to the test images are.

    Attributes:
        images: how many: the whole test set.
        accuracy: share right.
        interval: where the true share lies with 95% confidence.
        calibration_error: before and after the temperature.
        temperature: fitted on validation images.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    calibration_error: tuple[float, float]
    temperature: float


def measure_quality(logits: Floats, targets: Indices, temperature: float) -> Quality:
    """Accuracy with its interval, and calibration before and after the temperature, of the artifact's own answers."""
    right = int((logits.argmax(1) == targets).sum())
    before, after = (calibration_error(softmax(logits / t), targets) for t in (1.0, temperature))
    return Quality(
        len(targets), right / len(targets), wilson_interval(right, len(targets)), (before, after), temperature
    )


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Where the true share lies with 95% confidence. Source: E. B. Wilson, 1927; it holds near 0 and 1 too."""
    share, z2 = right / count, Z_95**2 / count
    reach = math.sqrt(share * (1 - share) * z2 + z2**2 / 4)
    return (share + z2 / 2 - reach) / (1 + z2), (share + z2 / 2 + reach) / (1 + z2)


def calibration_error(probabilities: npt.NDArray[np.floating], targets: Indices) -> float:
    """The expected calibration error: how far the told probability of the best label is from how often it is right.

    Images are put into bins of equal width by that probability; the error is the mean gap, weighted by images.
    Source: Guo et al., On Calibration of Modern Neural Networks (1706.04599).

    Args:
        probabilities: float (N, K).
        targets: int64 (N,).
    """
    told, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    bins = np.minimum((told * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, right - told.astype(np.float64), BINS)
    return float(np.abs(gaps).sum() / len(targets))


def binomial_tail(right: int, count: int, share: float) -> float:
    """How likely at most ``right`` of ``count`` are right, where each is with a chance of ``share``."""
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(right + 1))


def mcnemar(gained: int, lost: int) -> float:
    """How likely so uneven a split of changed answers is, if both networks are equally good: exact, two-sided.

    Args:
        gained: images that only the new network gets right.
        lost: images that only the old one gets right.
    """
    changed, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * binomial_tail(fewer, changed, 0.5))


def describe_pixels(images: Pixels) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of images, uint8 (N, H, W, C), in 0..255."""
    flat = images.reshape(-1, images.shape[-1])
    return {"mean": flat.mean(0, np.float64).tolist(), "std": flat.std(0, np.float64).tolist()}
