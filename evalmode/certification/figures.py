"""Figures that tell chance from fact. Shapes: N images, K labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalmode.artifact.tensors import Floats, softmax
from evalmode.images.pixels import Pixels

Z_95 = 1.959964  # 95% of a normal distribution lie within as many standard deviations
BINS = 10  # of told probability, for the calibration error

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """How good the artifact's answers to the test images are.

    Attributes:
        images: how many: the whole test set.
        accuracy: share right.
        interval: where the true share lies with 95% confidence.
        least_recalls: of each label's images, the share right is at least this, likewise; 0 where there are none.
        calibration_error: before and after the temperature.
        temperature: fitted on validation images.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    least_recalls: tuple[float, ...]
    calibration_error: tuple[float, float]
    temperature: float


def measure_quality(logits: Floats, targets: Indices, temperature: float) -> Quality:
    """Accuracy with its interval, and calibration before and after the temperature, of the artifact's own answers."""
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
    """How likely so uneven a split of changed answers is, if both networks are equally good: exact, two-sided.

    Args:
        gained: images that only the new network gets right.
        lost: images that only the old one gets right.
    """
    changed, fewer = gained + lost, min(gained, lost)
    return min(1.0, 2 * binomial_tail(fewer, changed, 0.5))


def describe_pixels(images: Pixels) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of images, uint8 (N, H, W, C), in 0..255."""
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for image in images:  # one at a time: a float64 copy of all would be eight times as large
        for channel, row in enumerate(counts):
            row += np.bincount(image[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    mean = counts @ values / counts.sum(1)
    variance = counts @ values**2 / counts.sum(1) - mean**2
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 0)).tolist()}
