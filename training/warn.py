"""Warnings about a training that goes wrong while its loss is still finite."""

from __future__ import annotations

import math
from collections.abc import Collection

from training.observe import LayerStatistics

# Trainings on CIFAR-10 stay below half of each threshold from the first epoch on. With few images, the moving
# statistics lag for some epochs.
LOSS_THRESHOLD = 10.0  # times the loss of guessing
GAP_THRESHOLD = 0.5  # standard deviations, or the logarithm of their ratio
DRIFT_THRESHOLD = 3.0  # standard deviations


def find_warnings(
    loss: float,
    classes: int,
    layers: list[LayerStatistics],
    before: list[LayerStatistics],
    still: Collection[str] = (),
) -> list[str]:
    """Find what the user should know after an epoch: at most one warning of each kind, about the worst layer.

    Args:
        loss: Mean loss over the epoch, in train mode.
        classes: Number of labels.
        layers: Statistics of the batch norm layers after the epoch.
        before: The same after the previous epoch; empty after the first one, which changes every layer.
        still: Names of layers whose moving statistics training does not change; they cannot lag.

    Returns:
        Warnings, a sentence each.
    """
    warnings = []
    if loss > LOSS_THRESHOLD * math.log(classes):
        warnings.append(
            f"the loss is {loss:.3g}, guessing would have {math.log(classes):.3g}: weights have exploded, try a lower "
            "--learning-rate"
        )
    gaps = [(_choose_worst(one.mean_gap, one.std_gap), one.layer) for one in layers if one.layer not in still]
    if gaps and max(gaps)[0] > GAP_THRESHOLD:
        warnings.append(
            f"{max(gaps)[1]}: moving statistics are {max(gaps)[0]:.2f} standard deviations off (more than "
            f"{GAP_THRESHOLD:g}): eval mode lags behind train mode; validation and export recompute the statistics"
        )
    drifts = [(_measure_drift(now, then), now.layer) for now, then in zip(layers, before, strict=False)]
    if drifts and max(drifts)[0] > DRIFT_THRESHOLD:
        warnings.append(
            f"{max(drifts)[1]}: activations drifted by {max(drifts)[0]:.1f} times their spread (more than "
            f"{DRIFT_THRESHOLD:g}): weights may explode, try a lower --learning-rate"
        )
    return warnings


def _measure_drift(now: LayerStatistics, then: LayerStatistics) -> float:
    """Measure the change of the input of a layer since the previous epoch, in its standard deviations of that epoch."""
    std = max(then.batch_std, 1e-3)
    return _choose_worst(now.batch_std / std, abs(now.batch_mean - then.batch_mean) / std)


def _choose_worst(*values: float) -> float:
    """Choose the largest value; NaN and infinity count as infinity."""
    return max(values) if all(map(math.isfinite, values)) else math.inf
