"""Signs that a training goes wrong while its numbers are still finite."""

from __future__ import annotations

import math
from collections.abc import Collection

from training.observe import LayerStatistics

# Trainings of CIFAR-10 stay below half of each from the first epoch on; of few images, eval mode lags for some epochs.
MUCH_LOSS = 10.0  # times that of guessing
MUCH_GAP = 0.5  # standard deviations, or the logarithm of their ratio
MUCH_DRIFT = 3.0  # standard deviations


def find_warnings(
    loss: float,
    classes: int,
    layers: list[LayerStatistics],
    before: list[LayerStatistics],
    still: Collection[str] = (),
) -> list[str]:
    """What to tell the user after an epoch, of each kind the worst.

    Args:
        loss: mean over the epoch, in train mode.
        classes: labels.
        layers: what batch norm saw after the epoch.
        before: the same after the epoch before; nothing after the first, which moves all.
        still: the names of layers whose statistics training does not move: those do not lag.
    """
    warnings = []
    if loss > MUCH_LOSS * math.log(classes):
        warnings.append(
            f"the loss is {loss:.3g}, guessing would have {math.log(classes):.3g}: weights have exploded, try a lower "
            "--learning-rate"
        )
    gaps = [(_choose_worst(one.mean_gap, one.std_gap), one.layer) for one in layers if one.layer not in still]
    if gaps and max(gaps)[0] > MUCH_GAP:
        warnings.append(
            f"{max(gaps)[1]}: moving statistics are {max(gaps)[0]:.2f} standard deviations off (more than "
            f"{MUCH_GAP:g}): eval mode lags behind train mode by them; validation and export recompute them"
        )
    drifts = [(_measure_drift(now, then), now.layer) for now, then in zip(layers, before, strict=False)]
    if drifts and max(drifts)[0] > MUCH_DRIFT:
        warnings.append(
            f"{max(drifts)[1]}: activations drifted {max(drifts)[0]:.1f} times as far as they spread (more than "
            f"{MUCH_DRIFT:g}): weights may explode, try a lower --learning-rate"
        )
    return warnings


def _measure_drift(now: LayerStatistics, then: LayerStatistics) -> float:
    """How far a layer's input moved or spread, in its standard deviations of an epoch before."""
    std = max(then.batch_std, 1e-3)
    return _choose_worst(now.batch_std / std, abs(now.batch_mean - then.batch_mean) / std)


def _choose_worst(*values: float) -> float:
    """The largest; NaN or infinity is worse than any."""
    return max(values) if all(map(math.isfinite, values)) else math.inf
