"""Tensors: the names and types that all parts share, and how differences between tensors are measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Tensors = Mapping[str, Array]  # by the names in the graph; the first axis of each is the batch
Run = Callable[[Tensors], Tensors]

INPUT, PROBABILITIES, LOGITS = "image", "probabilities", "logits"  # the tensors of an image classifier
ACTIVATION_MAP = "activation_map"  # an optional output of an image classifier
DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
FLOAT32_STEP = 2.0**-23  # the distance between adjacent float32 values, relative to their magnitude


def largest_value(output: Array) -> float:
    """Return the scale that relative differences of an output are divided by.

    Args:
        output: Values of any numeric dtype and any shape, not empty.

    Returns:
        The largest absolute value, or 1.0 if all values are 0.
    """
    return float(np.abs(output.astype(np.float64)).max()) or 1.0


def scale_tolerance(tolerance: float, logits: Array) -> float:
    """Scale a tolerance for differences of logits to their magnitude, since float32 rounds in proportion to it.

    The tolerance is unchanged if the largest absolute logit is between 1 and 10. Above 10 it is multiplied by a tenth
    of the largest logit, below 1 by the largest logit. As a result, a tolerance of 1e-4 is never less than 84 float32
    steps of the largest logit, and never more than a ten-thousandth of it.

    Args:
        tolerance: The tolerance for logits with a largest absolute value between 1 and 10.
        logits: Float (N, K), the logits of all inputs that are compared.

    Returns:
        The largest difference to allow.
    """
    size = largest_value(logits)
    return tolerance * max(min(size, 1.0), size / 10)


def softmax(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Compute the softmax of each row.

    Args:
        logits: Float (N, K).

    Returns:
        Probabilities, float64 (N, K).
    """
    powers: npt.NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
