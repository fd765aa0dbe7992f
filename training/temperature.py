"""Temperature scaling: calibrated probabilities, fitted on validation images.

Source: Guo et al., On Calibration of Modern Neural Networks (1706.04599).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional

from evalmode.artifact.tensors import softmax
from evalmode.certification.metrics import Indices, calibration_error

TEMPERATURES = 0.05, 20.0  # range of the search
FOLDS = 5  # of the validation images; each is judged by the temperature that is fitted on the others


def fit_temperature(logits: Tensor, targets: Indices) -> float:
    """Fit the temperature with the lowest cross-entropy of softmax(logits / temperature).

    Args:
        logits: float32 (N, K).
        targets: Labels, int64 (N,).

    Returns:
        The temperature, from 0.05 to 20. It is 1 if every prediction is right, since the lowest temperature would fit
        best and turn every probability into 1.
    """
    labels = torch.from_numpy(targets)
    if bool((logits.argmax(1) == labels).all()):
        return 1.0

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(logits.double() / np.exp(log_temperature), labels).item()

    return float(np.float32(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x)))


def choose_temperature(logits: Tensor, targets: Indices) -> tuple[float, str]:
    """Choose a temperature if it lowers the calibration error of images that it was not fitted on.

    The images are split into folds, and each fold is judged by the temperature that is fitted on the others. If these
    temperatures lower the calibration error over all folds, one temperature is fitted on all images.

    Args:
        logits: Logits of the validation images, float32 (N, K).
        targets: Their labels, int64 (N,).

    Returns:
        The temperature, 1 if none is used, and the reason in words.
    """
    if not logits.isfinite().all():  # the export is refused later
        return 1.0, "no temperature is fitted: logits of validation images are NaN or infinite"
    if bool((logits.argmax(1) == torch.from_numpy(targets)).all()):
        return 1.0, (
            "no temperature is fitted, since every validation image is classified right. The probabilities are not "
            "calibrated: no threshold should rely on them before there are more validation images"
        )
    temperatures = np.ones((len(targets), 1), np.float32)
    folds = np.random.default_rng(0).permutation(len(targets)) % FOLDS  # shuffled, as images are sorted by label
    for fold in range(FOLDS):
        if (others := folds != fold).any():
            temperatures[~others] = fit_temperature(logits[torch.from_numpy(others)], targets[others])
    without, error = (
        calibration_error(softmax(logits.numpy() / one), targets) for one in (np.float32(1), temperatures)
    )
    change = f"the calibration error from {without:.4f} to {error:.4f} on validation images it was not fitted on"
    if not error < without:
        return 1.0, f"no temperature is used: it would change {change}"
    return fit_temperature(logits, targets), f"a temperature lowers {change}"
